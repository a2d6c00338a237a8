"""Stale UDP and SCTP flows: tracked flows that do not lead to an endpoint of their Service.

The packets of a connectionless flow are sent to the endpoint of its first packet as long as the client sends
any. If that endpoint is removed, or if there was none and the flow was not translated, the client never gets
an answer, so its flow must be deleted. A flow is stale if its destination is a front of a Service and

- it was translated to an address that is not a serving endpoint of that Service, or
- it was not translated, although the Service has endpoints.

At a front that no Service has any more, flows to the endpoints of its last owner are stale. Endpoints that
still serve while they terminate keep their flows, because traffic policies and topology apply to new flows
only. Of TCP, only connections without an answer are deleted (see `arrivals`), and those that a Service's
annotation says are to end (see `endings`): other connections end by themselves, and deleting their flow would
reset them.

`Fronts` has the owners of all fronts, and determines which flows must be checked after a change: those to
some endpoints, or those to some fronts. Each listed flow is checked against all fronts, so that a listing may
contain more flows than necessary.

Source: KEP-1669; the reference's reconciler as of Kubernetes v1.37, and SCTP.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from kubeproxy.api.addresses import pack
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.protocols import SCTP, UDP

PROTOCOLS: Final = {"UDP": UDP, "SCTP": SCTP}

MOST_LISTINGS: Final = 8
"""The kernel walks its whole table for each listing.

So instead of more, one that lists all flows of the protocol is used.
"""

_FEW: Final = 4
"""Up to this number endpoints are listed one by one, even if there are fewer fronts.

A front such as that of DNS may have most flows.
"""

Place = bytes
"""A packed address and a port in network order; a node port has no address."""


class Listing(NamedTuple):
    """Flows that must be checked: those to a front, or those to an endpoint.

    Without both, all flows of the protocol. Of TCP only connections without an answer, unless `answered`.
    """

    protocol: int
    destination: Place = b""
    source: Place = b""
    answered: bool = False


class TrackedFlow(Protocol):
    """A tracked flow."""

    @property
    def protocol(self) -> int:
        """Its number."""

    @property
    def destination(self) -> Place:
        """The place to which its client sends."""

    @property
    def source(self) -> Place:
        """The place from which the answers are sent."""

    @property
    def zone(self) -> int:
        """Its conntrack zone."""


class Owner(NamedTuple):
    """The fronts and serving endpoints of a Service port."""

    protocol: int
    fronts: frozenset[Place]
    serving: frozenset[Place]


_NONE: Final = Owner(0, frozenset(), frozenset())


class Fronts:
    """The fronts of one family, their owners, and the flows that must be checked."""

    def __init__(self) -> None:
        self._services: dict[Key, dict[tuple[str, str, int], Owner]] = {}
        self._owners: dict[tuple[int, Place], tuple[Owner, ...]] = {}
        self._left: dict[tuple[int, Place], set[frozenset[Place]]] = {}
        self._listings: dict[Listing, None] = {}

    @property
    def services(self) -> Iterable[Key]:
        """The Services that have UDP or SCTP ports."""
        return self._services.keys()

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """Sets the plan of a Service; None if it has none."""
        before = self._services.pop(key, {})
        ports = [port for port in plan.ports if port.protocol in PROTOCOLS] if plan else ()
        after = {(port.name, str(port.protocol), port.port): owner(port) for port in ports}
        if after:
            self._services[key] = after
        for which in before.keys() | after.keys():
            old, new = before.get(which), after.get(which)
            if old != new:
                self._change(old, new)

    def look_at_all(self) -> None:
        """All flows to any front must be checked."""
        for protocol in {owner.protocol for ports in self._services.values() for owner in ports.values()}:
            self.look_at(Listing(protocol))

    def look_at(self, listing: Listing) -> None:
        """Adds flows that must be checked."""
        self._listings[listing] = None

    def next_listing(self) -> Listing | None:
        """Removes and returns the next flows that must be checked; None if there are no more."""
        if not self._listings:
            return None
        listing = next(iter(self._listings))
        whole = Listing(listing.protocol, answered=listing.answered)
        mine = [
            other
            for other in self._listings
            if (other.protocol, other.answered) == (whole.protocol, whole.answered)
        ]
        if len(mine) > MOST_LISTINGS or whole in self._listings:
            listing = whole
        else:
            mine = [listing]
        for each in mine:
            del self._listings[each]
        return listing

    def settled(self) -> None:
        """All flows were checked: the former owners of fronts are not needed any more."""
        self._left.clear()

    def is_stale(self, flow: TrackedFlow, local: Callable[[bytes], bool]) -> bool:
        """Whether a flow is stale.

        A flow in a conntrack zone that was not translated is kept: programs that use zones may translate it
        in another zone.

        Args:
            flow: the flow.
            local: returns whether a packed address is one of this node that accepts node ports.
        """
        protocol, destination, source = flow.protocol, flow.destination, flow.source
        front = (protocol, destination)
        if front not in self._owners and front not in self._left:
            front = (protocol, destination[-2:])
            if (front not in self._owners and front not in self._left) or not local(destination[:-2]):
                return False
        owners = self._owners.get(front, ())
        if any(source in owner.serving for owner in owners):
            return False
        if source == destination:
            return any(owner.serving for owner in owners) and flow.zone == 0
        return bool(owners) or any(source in serving for serving in self._left[front])

    def _change(self, old: Owner | None, new: Owner | None) -> None:
        """Replaces a Service port: changes the owners of its fronts, and adds flows that must be checked."""
        protocol = (new or old or _NONE).protocol
        old, new = old or _NONE, new or _NONE
        for front in old.fronts | new.fronts:
            self._own(
                (protocol, front), old if front in old.fronts else None, new if front in new.fronts else None
            )
        lost, came, kept = old.fronts - new.fronts, new.fronts - old.fronts, old.fronts & new.fronts
        gone = old.serving - new.serving
        # The front may be lost before its flows are looked at: they are stale then, too.
        for at_front, endpoints in ((lost, old.serving), (kept, gone)):
            for front in at_front if endpoints else ():
                self._left.setdefault((protocol, front), set()).add(endpoints)
        # Translated to endpoints that may not have them any more.
        endpoints = old.serving if lost else gone
        at = (lost if endpoints else frozenset()) | (kept if gone else frozenset())
        if len(endpoints) <= max(len(at), _FEW):
            for endpoint in endpoints if at else ():
                self.look_at(Listing(protocol, source=endpoint))
        else:
            for front in at:
                self.look_at(Listing(protocol, destination=front))
        # Flows that were not translated because there was no endpoint.
        for front in (came if old.serving else new.fronts) if new.serving else ():
            self.look_at(Listing(protocol, destination=front))

    def _own(self, front: tuple[int, Place], old: Owner | None, new: Owner | None) -> None:
        owners = list(self._owners.get(front, ()))
        if old is not None:
            owners.remove(old)
        if new is not None:
            owners.append(new)
        if owners:
            self._owners[front] = tuple(owners)
        else:
            del self._owners[front]


def owner(port: PortPlan) -> Owner:
    """A UDP or SCTP port of a plan."""
    return Owner(
        PROTOCOLS[port.protocol],
        frozenset(fronts(port)),
        frozenset([place(b.address, b.port) for b in port.serving]),
    )


def place(address: str, port: int) -> Place:
    """An address and a port in the kernel's format; a node port has no address."""
    return (pack(address) if address else b"") + port.to_bytes(2)


def fronts(port: PortPlan) -> Iterator[Place]:
    """The fronts of a port."""
    for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
        if address:
            yield place(address, port.port)
    if port.node_port:
        yield place("", port.node_port)
