"""Which Service port a tracked flow is for, found by the place to which its client sends."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeVar

from kubeproxy import protocols
from kubeproxy.api.addresses import Family, pack
from kubeproxy.api.rows import Protocol
from kubeproxy.model.plan import Key, PortId, PortPlan, ServicePlan

_K = TypeVar("_K")

Place = bytes
"""An address followed by a port, in network order."""


class PortName(NamedTuple):
    """A Service port under one IP family; `name` is that of its plan."""

    family: Family
    service: Key
    name: str
    protocol: Protocol

    @property
    def id(self) -> PortId:
        """Its name in the plan of its Service."""
        return self.name, self.protocol


def place(address: str, port: int) -> Place:
    """A place."""
    return pack(address) + port.to_bytes(2)


class FrontIndex:
    """The Service ports of one IP family.

    Attributes:
        ports: the ports, each with its plan.
    """

    def __init__(self, family: Family, local_addresses: Collection[str]) -> None:
        """Without Services.

        Args:
            family: the family.
            local_addresses: the addresses of the node, at which node ports are served.
        """
        self.ports: dict[PortName, PortPlan] = {}
        self._family = family
        self._local = {pack(address) for address in local_addresses}
        self._at: dict[tuple[int, Place], PortName] = {}
        self._at_node: dict[tuple[int, bytes], PortName] = {}
        self._of: dict[Key, list[PortName]] = {}

    def set_all(self, plans: Mapping[Key, ServicePlan]) -> None:
        """Adds plans."""
        for key, plan in plans.items():
            self.set(key, plan)

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """A Service has this plan now; None if it is gone."""
        for gone in self._of.pop(key, ()):
            self._fill(gone, self.ports.pop(gone), add=False)
        for port in plan.ports if plan is not None else ():
            name = PortName(self._family, key, port.name, port.protocol)
            self.ports[name] = port
            self._of.setdefault(key, []).append(name)
            self._fill(name, port, add=True)

    def of(self, key: Key) -> list[PortName]:
        """The ports of a Service."""
        return self._of.get(key, [])

    def find(self, protocol: int, destination: Place) -> PortName | None:
        """The Service port that serves a place; None if there is none."""
        found = self._at.get((protocol, destination))
        if found is None and destination[:-2] in self._local:
            found = self._at_node.get((protocol, destination[-2:]))
        return found

    def _fill(self, name: PortName, port: PortPlan, *, add: bool) -> None:
        number = protocols.NUMBERS[port.protocol]
        for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
            if address:
                _put(self._at, (number, place(address, port.port)), name, add=add)
        if port.node_port:
            _put(self._at_node, (number, port.node_port.to_bytes(2)), name, add=add)


def _put(table: dict[_K, PortName], key: _K, name: PortName, *, add: bool) -> None:
    if add:
        table[key] = name
    elif table.get(key) == name:
        del table[key]
