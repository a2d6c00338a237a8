"""What is probably wrong with a Service, though each object by itself is valid.

`of_service` judges one Service by its rows: does it have endpoints, is one of them usable, do the names of the ports
agree, and is an endpoint on this node where a policy asks for one. `Findings` keeps the judgement of every Service and
judges again only those that changed, so that its cost follows the change. Nothing is reported here: see `reporter`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, Literal, get_args

from msgspec import Struct

from kubeproxy.api import types
from kubeproxy.api.addresses import Family, family_of
from kubeproxy.api.rows import Condition, PortRow, ServiceRow, SliceRow
from kubeproxy.model.plan import Key
from kubeproxy.model.state import State

Reason = Literal[
    "NoEndpoints",
    "NoReadyEndpoints",
    "PortWithoutEndpoints",
    "UnknownEndpointPort",
    "NoLocalEndpointsInternal",
    "NoLocalEndpointsExternal",
    "NoService",
]
"""What can be wrong:

- NoEndpoints: there is no endpoint at all.
- NoReadyEndpoints: there are endpoints, but none is ready or still serves while it terminates.
- PortWithoutEndpoints: no EndpointSlice has a port of the Service's name and protocol, though there are endpoints.
- UnknownEndpointPort: an EndpointSlice has a port that the Service has not.
- NoLocalEndpointsInternal, -External: a traffic policy is Local, and all usable endpoints are on other nodes.
- NoService: EndpointSlices name a Service that does not exist.
"""

REASONS: Final[Sequence[Reason]] = get_args(Reason)

MOST_NAMES: Final = 5
"""So many ports or slices are named in a detail."""

_READY = int(Condition.READY)
_DRAINING = int(Condition.SERVING | Condition.TERMINATING)


class Finding(Struct, frozen=True, gc=False):
    """One thing that is wrong with a Service.

    Attributes:
        reason: what.
        family: the IP family it is limited to; "" where it is so in every family of the Service.
        ports: the ports it is limited to, as text; "" for all ports of the Service.
        detail: of NoEndpoints, the families that the endpoints are of; of PortWithoutEndpoints, the ports that the
            EndpointSlices have; of NoService, the EndpointSlices.
    """

    reason: Reason
    family: Family | Literal[""] = ""
    ports: str = ""
    detail: str = ""


def of_service(service: ServiceRow, slices: Iterable[SliceRow], node: str) -> tuple[Finding, ...]:
    """What is wrong with a Service, as seen from a node.

    Args:
        service: the Service.
        slices: all its EndpointSlices, in any order.
        node: the name of the node.
    """
    pieces = [piece for piece in slices if piece.endpoints]
    families = [family_of(ip) for ip in service.cluster_ips]
    found = {family: _of_family(service, family, pieces, node) for family in families}
    everywhere = set.intersection(*map(set, found.values())) if found else set()
    merged: dict[Finding, None] = {}
    for family, findings in found.items():
        for finding in findings:
            limited = Finding(finding.reason, family, finding.ports, finding.detail)
            merged[finding if finding in everywhere else limited] = None
    return tuple(merged)


def _of_family(service: ServiceRow, family: Family, pieces: Sequence[SliceRow], node: str) -> list[Finding]:
    """The same for one family, in which findings do not name it."""
    mine = [piece for piece in pieces if piece.family == family]
    if not mine:
        others = sorted({piece.family for piece in pieces} - set(map(family_of, service.cluster_ips)))
        return [Finding("NoEndpoints", detail=" and ".join(others))] if service.ports else []
    offered = _offered(mine, node if service.internal_local or service.external_local else None)
    addresses = (*service.external_ips, *service.load_balancer_ips)
    external = service.external_local and any(family_of(ip) == family for ip in addresses)
    lacking: dict[Reason, list[PortRow]] = {}
    for port in service.ports:
        usable, here = offered.get((port.name, port.protocol), (None, False))
        if usable is None:
            lacking.setdefault("PortWithoutEndpoints", []).append(port)
        elif not usable:
            lacking.setdefault("NoReadyEndpoints", []).append(port)
        elif not here:
            if service.internal_local:
                lacking.setdefault("NoLocalEndpointsInternal", []).append(port)
            if external or (service.external_local and port.node_port):
                lacking.setdefault("NoLocalEndpointsExternal", []).append(port)
    found = []
    for reason, ports in lacking.items():
        mismatch = reason == "PortWithoutEndpoints"
        limited = mismatch or len(ports) < len(service.ports)
        named = _ports((port.name, port.protocol) for port in ports) if limited else ""
        found.append(Finding(reason, ports=named, detail=_ports(sorted(offered)) if mismatch else ""))
    if unknown := offered.keys() - {(port.name, port.protocol) for port in service.ports}:
        found.append(Finding("UnknownEndpointPort", ports=_ports(sorted(unknown))))
    return found


def _offered(pieces: Iterable[SliceRow], node: str | None) -> dict[tuple[str, str], tuple[bool, bool]]:
    """The ports of slices, by name and protocol: whether one has a usable endpoint, and one on a node."""
    offered: dict[tuple[str, str], tuple[bool, bool]] = {}
    for piece in pieces:
        usable, here = _usable(piece, node)
        for port in piece.ports:
            before = offered.get((port.name, port.protocol), (False, False))
            offered[port.name, port.protocol] = before[0] or usable, before[1] or here
    return offered


def _usable(piece: SliceRow, node: str | None) -> tuple[bool, bool]:
    """Whether an endpoint of a slice gets new connections, and whether one on a node does."""
    usable = False
    for endpoint in piece.endpoints:
        if endpoint.conditions & _READY or endpoint.conditions & _DRAINING == _DRAINING:
            usable = True
            if node is None or endpoint.node == node:
                return True, True
    return usable, False


def _ports(ports: Iterable[tuple[str, str]]) -> str:
    """Names and protocols of ports; no more than a message can hold."""
    return types.listed([f"{name or '(unnamed)'}/{protocol}" for name, protocol in ports], MOST_NAMES)


class Findings:
    """What is wrong with every Service of a state.

    Attributes:
        known: the findings of each Service that has any, as of the last `update`.
        counts: how many Services have a finding of a reason.
    """

    def __init__(self, state: State, node: str, *, orphans: bool) -> None:
        """Nothing is known before `update`; what is there must be named to `touch`, or all of it with `touch_all`.

        Args:
            state: the Services.
            node: the name of this node.
            orphans: EndpointSlices of a Service that does not exist are a finding: whoever deletes a Service in a
                cluster leaves them for a moment, but files are written by people.
        """
        self._state = state
        self._node = node
        self._orphans = orphans
        self._touched: dict[Key, None] = {}
        self.known: dict[Key, tuple[Finding, ...]] = {}
        self.counts: Counter[Reason] = Counter()

    @property
    def pending(self) -> int:
        """How many Services must be judged again."""
        return len(self._touched)

    def touch(self, key: Key) -> None:
        """A Service or one of its EndpointSlices changed, came or is gone."""
        self._touched[key] = None

    def touch_all(self) -> None:
        """All there is must be judged."""
        self._touched.update(dict.fromkeys(self._state.services))
        self._touched.update(dict.fromkeys(self.known))
        if self._orphans:
            self._touched.update(dict.fromkeys(self._state.sliced))

    def update(self, most: int | None = None) -> list[Key]:
        """Judges Services that were touched; returns those of which something else is true now.

        Args:
            most: how many at most; None for all of them.
        """
        changed = []
        for key in list(islice(self._touched, most)):
            del self._touched[key]
            before, after = self.known.get(key, ()), self._judge(key)
            if after == before:
                continue
            changed.append(key)
            self.counts.subtract({finding.reason for finding in before})
            self.counts.update({finding.reason for finding in after})
            if after:
                self.known[key] = after
            else:
                del self.known[key]
        return changed

    def _judge(self, key: Key) -> tuple[Finding, ...]:
        service = self._state.services.get(key)
        if service is not None:
            return of_service(service, self._state.slices(key), self._node)
        if not self._orphans or key in self._state.foreign:
            return ()
        names = sorted(f"{kind} {namespace}/{name}" for kind, namespace, name in self._state.sources(key))
        return (Finding("NoService", detail=types.listed(names, MOST_NAMES)),) if names else ()
