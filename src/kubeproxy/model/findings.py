"""Probable mistakes in Services whose objects are valid by themselves.

`of_service` checks one Service: whether it has endpoints, whether one of them is usable, whether the names of
the ports match, and whether there is an endpoint on this node if a policy needs one. `Findings` stores the
findings of all Services and checks only those that changed, so that the cost depends on the change. Findings
are reported by `reporter`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, Literal, get_args

from msgspec import Struct

from kubeproxy.api import types
from kubeproxy.api.addresses import Family, family_of
from kubeproxy.api.rows import Condition, PortRow, ServiceRow, SliceRow
from kubeproxy.model.distribution import EVERYTHING, BalancingSupport, without_effect
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
    "IgnoredAnnotation",
]
"""The kinds of findings:

- NoEndpoints: there is no endpoint at all.
- NoReadyEndpoints: there are endpoints, but none is ready or still serves while it terminates.
- PortWithoutEndpoints: there are endpoints, but no EndpointSlice has a port with the name and protocol of the
  Service's port.
- UnknownEndpointPort: an EndpointSlice has a port that the Service does not have.
- NoLocalEndpointsInternal, -External: a traffic policy is Local, and all usable endpoints are on other nodes.
- NoService: EndpointSlices name a Service that does not exist.
- IgnoredAnnotation: an annotation of the Service, of those that are ours, cannot be used.
"""

REASONS: Final[Sequence[Reason]] = get_args(Reason)

MOST_NAMES: Final = 5
"""The maximum number of ports or slices that a detail names, and of findings of one annotation."""

_READY = int(Condition.READY)
_DRAINING = int(Condition.SERVING | Condition.TERMINATING)


class Finding(Struct, frozen=True, gc=False):
    """A probable mistake in a Service.

    Attributes:
        reason: its kind.
        family: the IP family that it concerns; "" for all families of the Service.
        ports: the ports that it concerns, as text; "" for all ports of the Service.
        detail: for NoEndpoints, the families of the endpoints; for PortWithoutEndpoints, the ports of the
            EndpointSlices; for NoService, the EndpointSlices; for IgnoredAnnotation, the annotation and what
            is wrong with it.
    """

    reason: Reason
    family: Family | Literal[""] = ""
    ports: str = ""
    detail: str = ""


def of_service(
    service: ServiceRow, slices: Iterable[SliceRow], node: str, balancing: BalancingSupport = EVERYTHING
) -> tuple[Finding, ...]:
    """The findings of a Service on a node.

    Args:
        service: the Service.
        slices: all its EndpointSlices, in any order.
        node: the name of the node.
        balancing: which ways to divide connections the mode has.
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
    ignored = without_effect(service, balancing)[:MOST_NAMES]
    return (*merged, *[Finding("IgnoredAnnotation", detail=f"{a.name}: {a.reason}") for a in ignored])


def _of_family(service: ServiceRow, family: Family, pieces: Sequence[SliceRow], node: str) -> list[Finding]:
    """The findings for one family, without its name."""
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
    """The ports of slices, by name and protocol: whether they have a usable endpoint, and one on a node."""
    offered: dict[tuple[str, str], tuple[bool, bool]] = {}
    for piece in pieces:
        usable, here = _usable(piece, node)
        for port in piece.ports:
            before = offered.get((port.name, port.protocol), (False, False))
            offered[port.name, port.protocol] = before[0] or usable, before[1] or here
    return offered


def _usable(piece: SliceRow, node: str | None) -> tuple[bool, bool]:
    """Whether an endpoint of a slice gets new connections, and whether one on a node does so."""
    usable = False
    for endpoint in piece.endpoints:
        if endpoint.conditions & _READY or endpoint.conditions & _DRAINING == _DRAINING:
            usable = True
            if node is None or endpoint.node == node:
                return True, True
    return usable, False


def _ports(ports: Iterable[tuple[str, str]]) -> str:
    """Names and protocols of ports, limited to the length of a message."""
    return types.listed([f"{name or '(unnamed)'}/{protocol}" for name, protocol in ports], MOST_NAMES)


class Findings:
    """The findings of all Services of a state.

    Attributes:
        known: the findings of each Service that has any, at the last `update`.
        counts: the number of Services with a finding, by reason.
    """

    def __init__(
        self, state: State, node: str, *, orphans: bool, balancing: BalancingSupport = EVERYTHING
    ) -> None:
        """Creates it without findings.

        `touch` or `touch_all` must be called for existing Services, and then `update`.

        Args:
            state: the Services.
            node: the name of this node.
            orphans: EndpointSlices of a Service that does not exist are a finding. In a cluster they exist
                for a moment after a Service was deleted; in manifests they are probably a mistake.
            balancing: which ways to divide connections the mode has.
        """
        self._state = state
        self._node = node
        self._orphans = orphans
        self._balancing = balancing
        self._touched: dict[Key, None] = {}
        self.known: dict[Key, tuple[Finding, ...]] = {}
        self.counts: Counter[Reason] = Counter()

    @property
    def pending(self) -> int:
        """How many Services must be checked again."""
        return len(self._touched)

    def touch(self, key: Key) -> None:
        """A Service or one of its EndpointSlices was changed, added or removed."""
        self._touched[key] = None

    def touch_all(self) -> None:
        """All Services must be checked."""
        self._touched.update(dict.fromkeys(self._state.services))
        self._touched.update(dict.fromkeys(self.known))
        if self._orphans:
            self._touched.update(dict.fromkeys(self._state.sliced))

    def use(self, balancing: BalancingSupport) -> None:
        """Another mode is used, which has these ways to divide connections."""
        if balancing != self._balancing:
            self._balancing = balancing
            annotated = [key for key, row in self._state.services.items() if row.balancing is not None]
            self._touched.update(dict.fromkeys(annotated))

    def update(self, most: int | None = None) -> list[Key]:
        """Checks the Services that were touched; returns those whose findings changed.

        Args:
            most: how many at most; None for all.
        """
        changed = []
        for key in list(islice(self._touched, most)):
            del self._touched[key]
            before, after = self.known.get(key, ()), self._check(key)
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

    def _check(self, key: Key) -> tuple[Finding, ...]:
        service = self._state.services.get(key)
        if service is not None:
            return of_service(service, self._state.slices(key), self._node, self._balancing)
        if not self._orphans or key in self._state.foreign:
            return ()
        names = sorted(f"{kind} {namespace}/{name}" for kind, namespace, name in self._state.sources(key))
        return (Finding("NoService", detail=types.listed(names, MOST_NAMES)),) if names else ()
