"""Deletes stale flows from connection tracking after a sync: those that lead to no endpoint of their Service.

These are UDP and SCTP flows, and TCP connections without an answer that began before there were rules, or to
an endpoint that was removed; and all TCP connections to a removed endpoint if an annotation of the Service
says so (`model.endings`). Those to removed endpoints are checked a second after the removal, for all removals
of that second at once: an answer that has not arrived by then is not in transit, and however often endpoints
of TCP Services change, the table is read once a second.

Each family has one `FlowCleaner`. The ledger reports to it what is in the kernel; it selects what concerns
flows, and one thread at a time does the rest, so the event loop never waits and changes in the meantime are
handled together. Which flows are stale, and which ones must be checked after a change, is decided by
`model.flows`; here the kernel is queried.

After a full sync, in particular the first one, every flow to any front is checked: what happened before or
while rules were missing is not known. Newer syncs are taken into account before anything is deleted, so that
a flow to an endpoint that was just added is not considered stale.

A failure is logged once, and the work retried with the next change.
"""

import asyncio
import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from socket import AF_INET, AF_INET6
from typing import Any, Final

from msgspec import Struct

from kubeproxy.api.addresses import IPV4, Family, unpack
from kubeproxy.backends import own_addresses
from kubeproxy.backends.sockets import Destroyer, TranslatedSockets
from kubeproxy.log import V2
from kubeproxy.machine.base import Machine
from kubeproxy.model import arrivals, endings
from kubeproxy.model.arrivals import TCP, Arrivals
from kubeproxy.model.endings import Endings, Gone, PortKey
from kubeproxy.model.flows import PROTOCOLS, Fronts, Listing
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink import conntrack
from kubeproxy.netlink.conntrack import ConntrackFlow
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler

log = logging.getLogger(__name__)

_NONE: Final[frozenset[Endpoint]] = frozenset()

_BATCH = 200
"""How many stale flows are deleted at a time; each keeps its netlink message in memory."""

UNANSWERED_SECONDS: Final = 1.0
"""After an endpoint was removed, a connection to it that is unanswered for so long will not be answered."""

_HINTS: Mapping[int | None, str] = {
    errno.EPERM: "; CAP_NET_ADMIN is needed",
    errno.EINVAL: "; the kernel needs CONFIG_NF_CT_NETLINK, module nf_conntrack_netlink",
}


_Judge = Callable[[Any], bool]
"""Whether a flow, or a socket, is stale."""


class News(Struct, frozen=True, gc=False):
    """The changes of a sync that concern flows.

    Attributes:
        full: rules may have been missing before.
        plans: plans that are in the kernel now, of Services that have UDP or SCTP ports, or had; after a full
            sync all such plans.
        came: TCP ports, as the kernel has them, at whose fronts clients may wait.
        gone: TCP ports and endpoints that were removed from them, whose connections are to end.
    """

    full: bool
    plans: Sequence[tuple[Key, ServicePlan | None]]
    came: Sequence[PortPlan] = ()
    gone: Sequence[tuple[Key, PortPlan, frozenset[Endpoint]]] = ()


class Cleaned(Struct, frozen=True, gc=False):
    """The result of a cleaning.

    Attributes:
        listed: how many flows were checked.
        deleted: how many of them were deleted.
        seconds: how long it took.
    """

    listed: int
    deleted: int
    seconds: float


class FlowCleaner:
    """Deletes the stale flows of one family.

    Attributes:
        deleted: how many flows were deleted so far.
        ended: how many of them were TCP connections to endpoints that were removed.
    """

    def __init__(
        self,
        machine: Machine,
        loop: Reconciler,
        *,
        unanswered_seconds: float = UNANSWERED_SECONDS,
        destroyer: Destroyer | None = None,
        sockets: TranslatedSockets | None = None,
    ) -> None:
        """Follows a control loop; `run` does the work, on a host.

        Args:
            machine: the host.
            loop: the control loop.
            unanswered_seconds: see `UNANSWERED_SECONDS`.
            destroyer: destroys the clients' sockets of connections that are to end; None: these clients
                notice the end when they send.
            sockets: those that the mode connected to endpoints; they are destroyed where flows are deleted.
        """
        self._machine = machine
        self._loop = loop
        self._inbox: deque[News] = deque()
        self._wake = asyncio.Event()
        self._fronts = Fronts()
        self._arrivals = Arrivals()
        self._unanswered_seconds = unanswered_seconds
        self._lost: dict[Key, set[PortKey]] = {}
        self._gone: dict[Key, dict[PortKey, frozenset[Endpoint]]] = {}
        self._endings = Endings()
        self._destroyer = destroyer
        self._sockets = sockets
        self._logged = ""
        self._listeners: list[Callable[[Cleaned], None]] = []
        self.deleted = self.ended = 0
        loop.ledger.subscribe(self._recorded)

    @property
    def destroyed(self) -> int:
        """How many sockets of clients were destroyed so far."""
        return sum(each.destroyed for each in (self._destroyer, self._sockets) if each is not None)

    @property
    def family(self) -> Family:
        """The family it serves."""
        return self._loop.family

    def on_clean(self, listener: Callable[[Cleaned], None]) -> None:
        """Calls back after each cleaning, in the event loop."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Cleans after syncs; ends only by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                done = await asyncio.to_thread(self.clean)
            except Exception as e:
                self._failed(e)
                continue
            self._logged = ""
            if done.listed or done.deleted:
                log.log(
                    V2, "%(ipFamily)s: deleted %(count)d stale flows of %(listed)d checked, in %(milliseconds).1f ms",
                    {"ipFamily": self._loop.family, "count": done.deleted, "listed": done.listed, "milliseconds": 1e3 * done.seconds},
                )  # fmt: skip
            for listener in self._listeners:
                listener(done)
            await asyncio.sleep(done.seconds)  # never more than half a processor

    def _recorded(self, done: Recorded) -> None:
        """Stores what a sync did. Only UDP, SCTP and fronts that were added wake the cleaner."""
        plans: list[tuple[Key, ServicePlan | None]]
        for c in done.changes:
            if gone := endings.removed(c.before, c.after):
                self._schedule(c.key, (), gone)
        if done.full:  # rules may have been missing before: every front counts as added
            there = self._loop.ledger.plans
            plans = [(key, plan) for key, plan in there.items() if _has_flows(plan)]
            came = [port for plan in there.values() for port in self._come(None, plan)]
        else:
            for c in done.changes:
                if lost := arrivals.have_lost(c.before, c.after):
                    self._schedule(c.key, lost)
            plans = [(c.key, c.after) for c in done.changes if _has_flows(c.before) or _has_flows(c.after)]
            came = [port for c in done.changes for port in self._come(c.before, c.after)]
        if done.full or plans or came:
            known = [(key, plan and self._loop.in_kernel(plan)) for key, plan in plans]
            self._inbox.append(News(done.full, known, came))
            self._wake.set()

    def _schedule(self, key: Key, lost: Collection[PortKey], gone: Gone | None = None) -> None:
        """Ports of a Service lost endpoints: connections to these must be checked.

        Args:
            key: the Service.
            lost: ports that have others, to which connections that stay unanswered can be sent.
            gone: endpoints that were removed, whose connections are to end.
        """
        if not (self._lost or self._gone):
            asyncio.get_running_loop().call_later(self._unanswered_seconds, self._look_at_lost)
        if lost:
            self._lost.setdefault(key, set()).update(lost)
        if gone:
            before = self._gone.setdefault(key, {})
            for which, endpoints in gone.items():
                before[which] = before.get(which, frozenset()) | endpoints

    def _look_at_lost(self) -> None:
        """Checks the ports that lost endpoints, as they are now: an endpoint may have come back.

        One that is moved to another EndpointSlice may be in none for a moment.
        """
        lost, self._lost = self._lost, {}
        gone, self._gone = self._gone, {}
        ports: list[PortPlan] = []
        over: list[tuple[Key, PortPlan, frozenset[Endpoint]]] = []
        for key in lost.keys() | gone.keys():
            plan = self._loop.ledger.plans.get(key)
            if plan is None or self._loop.in_kernel(plan) is not plan:
                continue  # a relay does this itself
            which, endpoints = lost.get(key, ()), gone.get(key, {})
            for port in plan.ports:
                at = port.name, port.port
                if at in which and (port.cluster or port.local):
                    ports.append(port)
                if port.present is not None and (left := endpoints.get(at, _NONE).difference(port.present)):
                    over.append((key, port, left))
        if ports or over:
            self._inbox.append(News(False, (), ports, over))
            self._wake.set()

    def _come(self, before: ServicePlan | None, after: ServicePlan | None) -> Sequence[PortPlan]:
        """The TCP ports of a Service of which fronts were added."""
        if after is None or not (ports := arrivals.have_come(before, after)):
            return ()
        known = self._loop.in_kernel(after)
        if known is after:
            return ports
        which = {(port.name, port.port) for port in ports}
        return [port for port in known.ports if port.protocol == "TCP" and (port.name, port.port) in which]

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, OSError):
            log.error(
                "%(ipFamily)s: the check for stale flows failed, trying again with the next change",
                {"ipFamily": self._loop.family},
                exc_info=error,
            )
            return
        reason = f"{error}{_HINTS.get(error.errno, '')}"
        if reason != self._logged:
            self._logged = reason
            log.warning(
                "%(ipFamily)s: flows that lead to no endpoint stay in the connection table: %(reason)s",
                {"ipFamily": self._loop.family, "reason": reason},
            )

    def clean(self) -> Cleaned:
        """Checks the flows that must be checked, and deletes the stale ones. Runs in a thread.

        Raises:
            OSError: the kernel refused; what could not be done is kept for the next time.
        """
        started, before, listed = time.monotonic(), self.deleted, 0
        failed: dict[Listing, OSError] = {}
        local: Callable[[bytes], bool] | None = None
        self._take()
        while listing := self._fronts.next_listing():
            local = local or self._local()
            try:
                listed += self._look(listing, self._judge(listing, local))
            except OSError as e:
                failed[listing] = e
            self._take()
        for listing in failed:
            self._fronts.look_at(listing)
        for error in failed.values():
            raise error
        self._fronts.settled()
        self._arrivals.settled()
        self._endings.settled()
        return Cleaned(listed, self.deleted - before, time.monotonic() - started)

    def _look(self, listing: Listing, is_stale: _Judge) -> int:
        """Lists flows and deletes the stale ones; returns how many were listed."""
        family = AF_INET if self._loop.family == IPV4 else AF_INET6
        listed = self._look_at_sockets(listing, is_stale)
        stale: list[ConntrackFlow] = []
        for flow in conntrack.flows(
            self._machine,
            family,
            listing.protocol,
            destination=listing.destination,
            source=listing.source,
            unanswered=listing.protocol == TCP and not listing.answered,
        ):
            listed += 1
            if is_stale(flow):
                stale.append(flow)
                if len(stale) == _BATCH:
                    self._delete(listing, stale, is_stale)
                    stale = []
        self._delete(listing, stale, is_stale)
        return listed

    def _look_at_sockets(self, listing: Listing, is_stale: _Judge) -> int:
        """Destroys the sockets that the mode connected to endpoints, where flows would be deleted."""
        if self._sockets is None or (listing.protocol == TCP and not listing.answered):
            return 0
        found = list(
            self._sockets.flows(listing.protocol, destination=listing.destination, source=listing.source)
        )
        self._take()
        self._sockets.end([each for each in found if is_stale(each)])
        return len(found)

    def _take(self) -> None:
        """Takes newer syncs into account."""
        while self._inbox:
            news = self._inbox.popleft()
            if news.full:
                there = {key for key, _ in news.plans}
                for key in [key for key in self._fronts.services if key not in there]:
                    self._fronts.set(key, None)
            for key, plan in news.plans:
                self._fronts.set(key, plan)
            if news.full:
                self._fronts.look_at_all()
            if news.came:
                self._arrivals.add(news.came)
                for listing in self._arrivals.listings():
                    self._fronts.look_at(listing)
            for ending in news.gone:
                self._endings.add(*ending)
            if news.gone:
                for listing in self._endings.listings():
                    self._fronts.look_at(listing)

    def _local(self) -> Callable[[bytes], bool]:
        """Decides whether a packed address is one of this node that accepts node ports."""
        node = self._loop.node
        own = frozenset(own_addresses.packed(self._machine, node.family))
        known: dict[bytes, bool] = {}

        def local(address: bytes) -> bool:
            answer = known.get(address)
            if answer is None:
                here = address in own or (len(address) == 4 and address[0] == 127)
                answer = known[address] = here and node.serves_node_ports(unpack(address))
            return answer

        return local

    def _judge(self, listing: Listing, local: Callable[[bytes], bool]) -> _Judge:
        """Decides whether a listed flow is stale."""

        def is_stale(flow: Any) -> bool:
            if listing.answered:
                return self._endings.is_over(flow, local, self._loop.ledger.plans)
            if flow.protocol == TCP:
                return self._arrivals.is_waiting(flow, local)
            return self._fronts.is_stale(flow, local)

        return is_stale

    def _delete(self, listing: Listing, stale: Sequence[ConntrackFlow], is_stale: _Judge) -> None:
        """Deletes the flows that are still stale with the newest sync."""
        if self._inbox or listing.answered:
            self._take()
            stale = [flow for flow in stale if is_stale(flow)]
        if not stale:
            return
        if listing.answered:
            self.ended += (ended := conntrack.delete(self._machine, stale))
            self.deleted += ended
            if self._destroyer is not None:
                self._destroyer.destroy([(flow.client, flow.destination) for flow in stale])
        else:
            delete = conntrack.delete_unanswered if listing.protocol == TCP else conntrack.delete
            self.deleted += delete(self._machine, stale)


def _has_flows(plan: ServicePlan | None) -> bool:
    """Whether a Service has UDP or SCTP ports."""
    return plan is not None and any(port.protocol in PROTOCOLS for port in plan.ports)
