"""The cluster at one moment, planned for one node: what every command works on.

The sources are those of the daemon, used until their first lists are complete. What cannot be read, such as a
Node that access rules hide, becomes a trouble that is reported beside the answer; without Services and
EndpointSlices there is no answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Struct

from kubeproxy import host as hosts
from kubeproxy import nodewatch
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api import types
from kubeproxy.api.addresses import FAMILIES, Family, family_of
from kubeproxy.hub import Hub
from kubeproxy.insight import daemon
from kubeproxy.insight.origin import Origin
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import LOOPBACK
from kubeproxy.model.plan import Key
from kubeproxy.model.state import Touched
from kubeproxy.sources.base import Source, Status
from kubeproxy.sources.errors import ApiError, UnreachableError
from kubeproxy.sources.manifests import Manifests

if TYPE_CHECKING:
    from kubeproxy.sources.client import Client

PATIENCE_SECONDS: Final = 30.0
"""So long Services and EndpointSlices are waited for."""

_ERRORS_SECONDS: Final = 5.0
"""So long if the API server answers nothing but errors."""

_EXTRAS_SECONDS: Final = 2.0
"""So long the Node and ServiceCIDRs are waited for when those are known."""


class SnapshotError(Exception):
    """The cluster cannot be read; the message has the reason."""


class ObjectChange(NamedTuple):
    """An object that changed a Service.

    Attributes:
        object: e.g. "EndpointSlice shop/api-x8f2k".
        triggered: when that was caused, as the object says it in an annotation; "" if it does not.
    """

    object: str
    triggered: str = ""


def _about(kind: str, namespace: str, name: str) -> str:
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


class _Sink(Hub):
    """A hub that remembers which first lists are complete, and which objects changed what."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.changes: dict[Key, ObjectChange] = {}
        self._open = {"Service", "EndpointSlice", "Node", "ServiceCIDR"}
        self.complete_all = asyncio.Event()

    def set(self, obj: types.Object) -> None:
        """See `Sink`."""
        metadata = obj.metadata
        annotations = metadata.annotations if isinstance(obj, types.EndpointSlice) else None
        triggered = annotations.triggered or "" if annotations is not None else ""
        self._object = ObjectChange(_about(type(obj).__name__, metadata.namespace, metadata.name), triggered)
        super().set(obj)

    def gone(self, kind: str, namespace: str, name: str) -> None:
        """See `Sink`."""
        self._object = ObjectChange(_about(kind, namespace, name))
        super().gone(kind, namespace, name)

    def _touch(self, touched: Touched, triggered: float | None = None) -> None:
        super()._touch(touched, triggered)
        for key in touched:
            last = self.changes.get(key)
            if last is None or self._object.triggered >= last.triggered:
                self.changes[key] = self._object

    def complete(self, kind: str) -> None:
        """See `Sink`."""
        super().complete(kind)
        self._open.discard(kind)
        if not self._open:
            self.complete_all.set()


class LiveCluster(Struct, frozen=True):
    """The cluster while it is read.

    Attributes:
        snapshot: what was read first. Its state changes with the cluster.
        changes: what changed since it was emptied last: Services, each with the object that changed, e.g.
            "EndpointSlice shop/api-x8f2k", and when it did, if the object says so.
    """

    snapshot: Snapshot
    changes: dict[Key, ObjectChange]


async def take(
    origin: Origin,
    machine: Machine,
    *,
    node: str = "",
    paths: Sequence[str] = (),
    patience: float = PATIENCE_SECONDS,
) -> Snapshot:
    """Reads the cluster and works out the node.

    Args:
        origin: the configuration.
        machine: this host.
        node: the node to answer for; "" for the own one.
        paths: other objects to read from the API server, if there is one.
        patience: so many seconds Services and EndpointSlices are waited for.

    Raises:
        SnapshotError: the cluster cannot be read, or the node cannot be worked out.
        OSError: manifests do not exist.
    """
    async with follow(origin, machine, node=node, paths=paths, patience=patience) as found:
        return found.snapshot


@contextlib.asynccontextmanager
async def follow(
    origin: Origin,
    machine: Machine,
    *,
    node: str = "",
    paths: Sequence[str] = (),
    patience: float = PATIENCE_SECONDS,
) -> AsyncIterator[LiveCluster]:
    """Reads the cluster, as `take` does, and all changes until the block ends.

    Raises:
        SnapshotError: see `take`.
        OSError: see `take`.
    """
    config = origin.options.config
    name = node or config.node_name
    own = not node or node == config.node_name
    if not name:
        raise SnapshotError(
            "this host has no name; add --node or --hostname-override with the name of its Node"
        )
    hub = _Sink(name)
    try:
        source, statuses, client = _source(origin, machine, hub, name)
    except ValueError as e:
        raise SnapshotError(str(e)) from e
    reading = asyncio.create_task(source.run())
    try:
        await _wait(reading, hub.lists_complete, min(patience, _ERRORS_SECONDS))
        if not (statuses and all(status.trouble for status in statuses.values())):
            await _wait(reading, hub.lists_complete, max(0, patience - _ERRORS_SECONDS))
        if not hub.lists_complete.is_set():
            raise SnapshotError(_unread(statuses, patience))
        await _wait(reading, hub.complete_all, _EXTRAS_SECONDS)
        found, troubles = await _objects(client, paths)
        troubles += [f"{status.kind}: {status.trouble}" for status in statuses.values() if status.trouble]
        troubles += source.unusable.unknown() if isinstance(source, Manifests) else ()
        if hub.node is None:
            troubles.append(
                f"Node {name} is not known: zone, podCIDRs and addresses of its object are missing from the answer"
            )
        if own and any(row.skips_silent for row in hub.state.services.values()):
            hub.state.silent = await asyncio.to_thread(daemon.silent, machine)
        if own and any(row.balancing and row.balancing.near for row in hub.state.services.values()):
            hub.state.full = await asyncio.to_thread(daemon.full, machine)
        taken = _snapshot(origin, machine, hub, name, own=own, troubles=troubles, objects=found)
        yield LiveCluster(taken, hub.changes)
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await reading


async def objects(
    origin: Origin, machine: Machine, paths: Sequence[str]
) -> tuple[Mapping[str, bytes | None], Sequence[str]]:
    """Reads single objects from the API server, and no Services.

    Args:
        origin: the configuration.
        machine: this host.
        paths: the objects, by path.

    Returns:
        The objects by path, None for those that the server refused, and why they cannot be read.

    Raises:
        SnapshotError: the configuration names no server that can be asked.
    """
    try:
        _, _, client = _source(origin, machine, Hub(""), "")
    except ValueError as e:
        raise SnapshotError(str(e)) from e
    try:
        return await _objects(client, paths)
    finally:
        if client is not None:
            await client.close()


async def _objects(
    client: "Client | None", paths: Sequence[str]
) -> tuple[dict[str, bytes | None], list[str]]:
    found: dict[str, bytes | None] = {}
    troubles = []
    for path in paths:
        if client is None:
            troubles.append(f"{path} cannot be read from manifests")
            continue
        try:
            found[path] = await client.request("GET", path)
        except (ApiError, UnreachableError) as e:
            found[path] = None
            troubles.append(f"{path} cannot be read: {e}")
    return found, troubles


def _source(
    origin: Origin, machine: Machine, hub: Hub, name: str
) -> "tuple[Source, Mapping[str, Status], Client | None]":
    """The source of the configuration, what it knows of its connections, and its client."""
    options = origin.options
    if options.manifests:
        return Manifests([Path(path) for path in options.manifests], hub, serves=None), {}, None
    from kubeproxy.sources.apiserver import ApiServer

    source = ApiServer(
        hub,
        name,
        kubeconfig=options.config.client_connection.kubeconfig,
        master=options.master,
        root=origin.root,
        environment=origin.environment,
        make_socket=machine.socket,
    )
    return source, source.statuses, source.client


async def _wait(reading: "asyncio.Task[None]", event: asyncio.Event, seconds: float) -> None:
    """Waits for an event, so long at most; an error of the source ends it."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait(
        list[asyncio.Task[Any]]([reading, waiting]), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
    )
    waiting.cancel()
    if reading.done():
        reading.result()


def _unread(statuses: Mapping[str, Status], patience: float) -> str:
    """Why Services and endpoints are not known."""
    kinds: dict[str, list[str]] = {}
    for status in statuses.values():
        if status.trouble:
            kinds.setdefault(status.trouble, []).append(status.kind)
    if not kinds:
        return f"the API server did not answer within {patience:g} s"
    found = (f"{trouble} ({', '.join(of)})" for trouble, of in kinds.items())
    return f"the API server cannot be read: {'; '.join(found)}"


def _snapshot(
    origin: Origin,
    machine: Machine,
    hub: Hub,
    name: str,
    *,
    own: bool,
    troubles: Sequence[str],
    objects: Mapping[str, bytes | None],
) -> Snapshot:
    config = origin.options.config
    row = hub.node
    supported: Sequence[Family] = hosts.supported_families(machine)
    found: Sequence[str] = hosts.own_addresses(machine)
    if not own:
        found = ()
        if row is None or not row.addresses:
            raise SnapshotError(f"Node {name} does not exist, or has no addresses")
        supported = [family for family in FAMILIES if any(family_of(a) == family for a in row.addresses)]
    try:
        host = hosts.host(config, name, row, supported=supported, found=found)
    except hosts.NodeError as e:
        raise SnapshotError(str(e)) from e
    if own and host.primary.address not in nodewatch.local_addresses(machine, host.primary.family):
        own = False
        troubles = (
            *troubles,
            f"this host does not have the address of Node {name}, {host.primary.address}: it is answered for as a"
            " node elsewhere, and this kernel is not read",
        )
    addresses: dict[Family, tuple[str, ...]] = {}
    for node in host.nodes:
        if own:
            addresses[node.family] = tuple(nodewatch.local_addresses(machine, node.family))
        else:
            theirs = (a for a in (row.addresses if row else ()) if family_of(a) == node.family)
            addresses[node.family] = tuple(dict.fromkeys((LOOPBACK[node.family], *theirs)))
    nodes = tuple(
        node.with_addresses(addresses[node.family]).with_service_cidrs(hub.service_cidrs)
        for node in host.nodes
    )
    mode = origin.options.mode
    relays = own and (not mode.forwards or any(node.localhost_relay for node in nodes))
    return Snapshot(
        hub.state,
        mode,
        nodes,
        addresses,
        own,
        tuple(troubles),
        objects,
        sockets=daemon.sockets(machine) if relays else {},
    )
