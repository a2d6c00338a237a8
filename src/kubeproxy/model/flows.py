"""Which tracked UDP and SCTP flows are stale: they go where their Service sends nobody any more.

A connectionless flow keeps the endpoint its first packet got, for as long as its client talks. When that endpoint is
gone, or when there was none and the flow was not translated at all, the client would talk into the void for ever, so
its flow must be forgotten. A flow is stale when the place its client speaks to (a front) belongs to a Service and

- it was translated to something that is not an endpoint of that Service which still serves, or
- it was not translated, though the Service has endpoints.

At a front that no Service has any more, flows to the endpoints that its last owner had are stale. Endpoints that serve
until they end keep their flows, as traffic policies and topology are about new ones only. Of TCP only connections that
nobody has answered yet are of interest, see `arrivals`: the others end by themselves, and a forgotten one would be reset.

`Fronts` knows who owns which front, and which flows a change asks to be looked at: those to some endpoints, or those to
some fronts. What is listed is judged by all that is known, so a list may hold more than was asked for.

Source: KEP-1669; the reference's reconciler as of Kubernetes v1.37, and SCTP.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from kubeproxy.api.addresses import pack
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.protocols import SCTP, UDP

PROTOCOLS: Final = {"UDP": UDP, "SCTP": SCTP}

MOST_LISTINGS: Final = 8
"""Each listing has the kernel walk its whole table; for more of a protocol, one that lists all its flows is cheaper."""

_FEW: Final = 4
"""So many endpoints are listed one by one whatever the number of fronts: all flows of a cluster's DNS are to one front."""

Place = bytes
"""A packed address and a port in network order; a node port has no address."""


class Listing(NamedTuple):
    """Flows to be looked at: those to a front, or those to an endpoint; with neither, all of the protocol."""

    protocol: int
    destination: Place = b""
    source: Place = b""


class TrackedFlow(Protocol):
    """A tracked flow."""

    @property
    def protocol(self) -> int:
        """Its number."""

    @property
    def destination(self) -> Place:
        """Where its client speaks to."""

    @property
    def source(self) -> Place:
        """Who answers."""

    @property
    def zone(self) -> int:
        """Its conntrack zone."""


class Owner(NamedTuple):
    """A Service port, as its flows see it."""

    protocol: int
    fronts: frozenset[Place]
    serving: frozenset[Place]


_NONE: Final = Owner(0, frozenset(), frozenset())


class Fronts:
    """The fronts of one family, who owns them, and what is to be looked at."""

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
        """The plan of a Service is this one now; None: it has none."""
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
        """Every flow to any front is to be looked at."""
        for protocol in {owner.protocol for ports in self._services.values() for owner in ports.values()}:
            self.look_at(Listing(protocol))

    def look_at(self, listing: Listing) -> None:
        """Flows are to be looked at."""
        self._listings[listing] = None

    def next_listing(self) -> Listing | None:
        """Takes the next flows to be looked at; None when there are no more."""
        if not self._listings:
            return None
        listing = next(iter(self._listings))
        mine = [other for other in self._listings if other.protocol == listing.protocol]
        whole = Listing(listing.protocol)
        if len(mine) > MOST_LISTINGS or whole in self._listings:
            listing = whole
        else:
            mine = [listing]
        for each in mine:
            del self._listings[each]
        return listing

    def settled(self) -> None:
        """Everything was looked at: who owned which front before is forgotten."""
        self._left.clear()

    def is_stale(self, flow: TrackedFlow, local: Callable[[bytes], bool]) -> bool:
        """Whether a flow is stale.

        A flow in a conntrack zone that was not translated is left alone: others who track there translate elsewhere.

        Args:
            flow: the flow.
            local: whether a packed address is one of this node's that accept node ports.
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
        """A Service port was so and is so now: who owns its fronts, and what is to be looked at."""
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
        # Not translated as long as there were no endpoints.
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
    """An address and a port as the kernel has them; no address for a node port."""
    return (pack(address) if address else b"") + port.to_bytes(2)


def fronts(port: PortPlan) -> Iterator[Place]:
    """Where a port is reached."""
    for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
        if address:
            yield place(address, port.port)
    if port.node_port:
        yield place("", port.node_port)
