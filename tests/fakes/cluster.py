"""Small clusters, and a proxy without a loop: objects it receives are planned and synced when the test calls it."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.backends.base import Change, Driver, Failures, SyncError
from kubeproxy.model.node import LocalTraffic, NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.model.state import State
from tests import strategies

NODE = NodeConfig(
    name="here",
    address="192.0.2.1",
    local_traffic=LocalTraffic("range", "10.244.0.0/16"),
    localhost_node_ports=True,
)
NODE6 = NodeConfig(
    family=IPV6,
    name="here",
    address="2001:db8:2::1",
    local_traffic=LocalTraffic("range", "fd00:10:244::/48"),
)


def service(
    name: str,
    *ips: str,
    namespace: str = "default",
    ports: Sequence[types.ServicePort] = (types.ServicePort(80),),
    balancer: Iterable[str] = (),
    **spec: Any,
) -> types.Service:
    """A Service with ClusterIPs and load balancer addresses; what else is given is of its spec."""
    status = types.ServiceStatus(
        types.LoadBalancerStatus(tuple(types.LoadBalancerIngress(ip) for ip in balancer))
    )
    return types.Service(
        types.ObjectMeta(name=name, namespace=namespace),
        types.ServiceSpec(ports=tuple(ports), cluster_ip=ips[0], cluster_ips=ips, **spec),
        status,
    )


def annotated(made: types.Service, **annotations: str) -> types.Service:
    """A Service with annotations."""
    given = types.Annotations(**annotations)
    return replace(made, metadata=replace(made.metadata, annotations=given))


def endpoints(
    service: str,
    *addresses: str,
    namespace: str = "default",
    name: str = "",
    port: int = 8080,
    port_name: str = "",
    protocol: str = "TCP",
    local: Iterable[str] = (),
    node: str = NODE.name,
) -> types.EndpointSlice:
    """An EndpointSlice of ready endpoints; those in `local` are on a node."""
    return types.EndpointSlice(
        types.ObjectMeta(
            name=name or f"{service}-1", namespace=namespace, labels=types.Labels(service=service)
        ),
        address_type=IPV6 if any(":" in a for a in addresses) else IPV4,
        endpoints=tuple(
            types.SliceEndpoint((a,), node_name=node if a in local else "there") for a in addresses
        ),
        ports=(types.EndpointPort(port_name, port, protocol),),
    )


class Folder:
    """A folder of manifests, each object in a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def put(self, *objects: types.Object) -> None:
        """Writes objects, each at one stroke."""
        for obj in objects:
            self.write(f"{type(obj).__name__}.{obj.metadata.namespace}.{obj.metadata.name}.json", [obj])

    def write(self, name: str, objects: Iterable[types.Object]) -> None:
        """Writes a file of objects at one stroke."""
        (self.path / ".new").write_bytes(
            msgspec.json.encode({"kind": "List", "items": [*map(wire, objects)]})
        )
        (self.path / ".new").rename(self.path / name)

    def remove(self, kind: str, name: str, namespace: str = "default") -> None:
        """Removes what `put` wrote."""
        (self.path / f"{kind}.{namespace}.{name}.json").unlink()


def wire(obj: types.Object) -> dict[str, Any]:
    """An object as the API server would write it, and some nulls."""
    kind = type(obj).__name__
    version = {"EndpointSlice": "discovery.k8s.io/v1", "ServiceCIDR": "networking.k8s.io/v1"}.get(kind, "v1")
    return {"apiVersion": version, "kind": kind, **msgspec.to_builtins(obj)}


class Proxy:
    """What the control loop does, at the test's command.

    Attributes:
        state: the objects it received.
        node: the node it plans for.
        applied: the plans that are in the kernel.
    """

    def __init__(self, backend: Driver, node: NodeConfig = NODE) -> None:
        self.backend = backend
        self.node = node
        self.state = State()
        self.applied: dict[Key, ServicePlan] = {}
        self._touched: set[Key] = set()

    def tell(self, *objects: types.Service | types.EndpointSlice) -> None:
        """Objects exist and look like this."""
        for obj in objects:
            self._touched.update(self.state.set(obj))

    def gone(self, kind: str, name: str, namespace: str = "default") -> None:
        """An object is no more."""
        self._touched.update(self.state.gone(kind, namespace, name))

    def hear(self, event: strategies.Event) -> None:
        """Receives any object."""
        self._touched.update(strategies.tell(self.state, event))

    def plans(self) -> dict[Key, ServicePlan]:
        """What should be."""
        found = ((key, self.state.plan(key, self.node)) for key in self.state.services)
        return {key: plan for key, plan in found if plan is not None}

    def full(self) -> Failures:
        """A full sync."""
        plans = self.plans()
        failures = self._run(self.backend.load(self.node, plans))
        self.applied = {key: plan for key, plan in plans.items() if key not in failures}
        return failures

    def partial(self) -> None:
        """A sync of what was received since the last one.

        Raises:
            SyncError: it must be full.
        """
        plans = self.plans()
        pairs = ((key, self.applied.get(key), plans.get(key)) for key in sorted(self._touched))
        changes = [Change(key, before, after) for key, before, after in pairs if before != after]
        if changes:
            assert not self._run(self.backend.apply(self.node, changes))
        self.applied = plans

    def sync(self) -> Failures:
        """A sync of what was received; a full one if a partial one is not possible."""
        try:
            self.partial()
        except SyncError:
            return self.full()
        return {}

    def intact(self) -> bool:
        """Whether the kernel holds what it was given."""
        return asyncio.run(self._intact())

    async def _intact(self) -> bool:
        return await self.backend.intact()

    def _run(self, work: Coroutine[None, None, Failures]) -> Failures:
        self._touched.clear()
        return asyncio.run(work)
