"""Keeps load balancers and endpoints of HNS equal to the plans of one IP family.

A change of a Service is compiled as it was and as it is to be, and only the difference is sent. A full sync
lists what HNS has, reads what is new, keeps what is right and changes the rest (`settle`).

What HNS refuses of a Service is left out and retried; all else of the Service is there (`Mode.piecewise`). An
endpoint on this node that the network plug-in has not made yet joins its load balancers when it is seen, at
the latest at the next look.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from kubeproxy.api.addresses import FAMILIES, Family
from kubeproxy.backends.base import (
    Change,
    Failures,
    HeldState,
    KernelComparison,
    StaleError,
    SyncError,
)
from kubeproxy.backends.kernelspace import describe, held, part
from kubeproxy.backends.kernelspace.compile import ServiceBalancers, compile_service
from kubeproxy.backends.kernelspace.desired import BalancerDelta, DesiredBalancers, no_delta
from kubeproxy.backends.kernelspace.finding import FactFinder
from kubeproxy.backends.kernelspace.held import HeldHns
from kubeproxy.backends.kernelspace.names import BalancerKey
from kubeproxy.backends.kernelspace.network import HnsFacts
from kubeproxy.backends.kernelspace.patience import called
from kubeproxy.backends.kernelspace.refused import Refused
from kubeproxy.backends.kernelspace.rehearse import RehearsedHcn
from kubeproxy.backends.kernelspace.settle import Settling
from kubeproxy.backends.kernelspace.steps import HnsSteps
from kubeproxy.backends.kernelspace.view import RECENT_SECONDS, HnsNews, HnsView
from kubeproxy.backends.kernelspace.watch import HnsWatch
from kubeproxy.backends.shared.compared import compared
from kubeproxy.clock import SystemClock
from kubeproxy.log import V2, ObjectRef
from kubeproxy.model.complaints import Complaints
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.windows.errors import HcnError
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer

log = logging.getLogger(__name__)


class KernelspaceDriver:
    """The kernelspace driver of one IP family. See `backends.base.Driver`."""

    def __init__(self, view: HnsView, node: NodeConfig, host_mac: Callable[[str], str]) -> None:
        """Makes a driver; HNS is asked nothing yet.

        Args:
            view: what HNS has; shared with the driver of the other family.
            node: the node.
            host_mac: returns the MAC address of the interface that has an address; "" if none has it.
        """
        self._view = view
        self._finder = FactFinder(view, node, host_mac)
        self._desired = DesiredBalancers()
        self._refused = Refused(view.clock)
        self._missing: dict[Key, dict[str, None]] = {}
        self._complaints = Complaints()
        self._serving = False
        self._loaded = False
        self._news: list[HnsNews] = []
        self._unsubscribe = view.subscribe(self._news.append)
        self._watch: HnsWatch | None = None

    @property
    def _facts(self) -> HnsFacts:
        """What is known of HNS and its network."""
        return self._finder.facts

    def serve(self) -> None:
        """Until it is closed, what HNS has of its IP family belongs to it. A driver that reads does not."""
        if not self._serving:
            self._serving = True
            self._view.served[self._facts.family] += 1

    def _retire(self) -> None:
        if self._serving:
            self._serving = False
            self._view.served[self._facts.family] -= 1

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        return await called(self._view.hcn, self.load_blocking, node, plans)

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`. What can be done of the changes is done before StaleError is raised."""
        await called(self._view.hcn, self._apply, node, changes)
        return {}

    @property
    def next_retry(self) -> float:
        """See `Retrying`."""
        return self._refused.next

    async def retry(self) -> Failures:
        """See `Retrying`."""
        return await called(self._view.hcn, self._retry)

    async def read(self) -> HeldHns:
        """See `Readable`."""
        return await called(self._view.hcn, self._read)

    async def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldHns:
        """See `Comparable`. HNS has no index: all is read if this process has not done so yet."""
        whole = await called(self._view.hcn, self._read)
        return part.only(whole, plans.values(), replace(self._facts, address=node.address))

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HnsSteps:
        """See `Readable`."""
        return HnsSteps(tuple(self._rehearsed(held, node, plans).steps))

    def compare(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> KernelComparison:
        """See `Comparable`."""
        there, after = _as_hns(held), self._rehearsed(held, node, plans)
        found = compared(there.lines, lambda: after.held().lines(), HnsSteps(tuple(after.steps)))
        return part.own(found) if there.part else found

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        root = self._view.endpoint(self._facts.root)
        host = describe.address_of(root, node.family) if root is not None else ""
        return describe.service(plan, self._facts, host)

    async def intact(self) -> bool:
        """See `Driver`."""
        return await called(self._view.hcn, self._is_intact)

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`. HNS reports its end and changes of networks; `intact` detects the rest."""
        self._watch = HnsWatch.of(self._view)
        self._watch.follow(self, disturbed)
        return False

    async def close(self) -> None:
        """See `Driver`."""
        self._unsubscribe()
        self._retire()
        if self._watch is not None:
            self._watch.unfollow(self)

    # Syncs

    def load_blocking(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver.load`; done in this thread."""
        with self._view.lock:
            try:
                self._look(node)
                self._news.clear()
                return self._load(plans) if self._finder.served else {}
            except HcnError as e:
                self._view.doubt()
                raise SyncError(f"HNS cannot be read: {e}") from e

    def _load(self, plans: Mapping[Key, ServicePlan]) -> Failures:
        before, delta = self._desired, no_delta()
        desired = DesiredBalancers()
        for service, plan in plans.items():
            desired.set(service, compile_service(plan, self._facts), delta)
        owners = {key: owner for key in before if (owner := before.owner(key)) is not None}
        delta.moved = {
            key for key, owner in owners.items() if (now := desired.owner(key)) is not None and now != owner
        }
        self._desired = desired
        self._refused.begin()
        self._missing.clear()
        self._settle(delta, owners, everything=True)
        self._refused.end()
        self._loaded = True
        for service in before.services.keys() - desired.services.keys():
            self._complaints.forget(("Service", *service))
        self._report(desired.services)
        return self._refused.services(desired)

    def _apply(self, node: NodeConfig, changes: Sequence[Change]) -> None:
        del node  # only its ServiceCIDRs may have changed, which nothing depends on
        with self._view.lock:
            if not self._finder.served:
                return
            delta, owners = no_delta(), {}
            for change in changes:
                for key in self._needs(change.key):
                    owners[key] = self._desired.owner(key) or change.key
            for change in changes:
                self._desired.set(change.key, compile_service(change.after, self._facts), delta)
            try:
                self._find_new(delta)
                self._settle(delta, owners, everything=False)
            except HcnError as e:
                raise StaleError(f"HNS cannot be read: {e}") from e
            for change in changes:
                if change.after is None:
                    self._complaints.forget(("Service", *change.key))
                    self._missing.pop(change.key, None)
            self._report(change.key for change in changes if change.after is not None)
            refused = self._refused.services(self._desired)
            for change in changes:
                if change.key in refused:
                    raise StaleError(refused[change.key])

    def _retry(self) -> Failures:
        with self._view.lock:
            delta = no_delta()
            delta.keys.update(dict.fromkeys(self._refused.balancers.take_due()))
            for address in self._refused.addresses.take_due():
                delta.addresses.add(address)
                delta.keys.update(dict.fromkeys(self._desired.users.get(address, ())))
            for vip in self._refused.vips.take_due():
                delta.addresses.add(vip)
                for service in self._desired.vips.get(vip, ()):
                    delta.vips[vip] = None
                    delta.keys.update(dict.fromkeys(self._needs(service)))
            try:
                self._settle(delta, {}, everything=False)
            except HcnError as e:
                raise SyncError(f"HNS cannot be read: {e}") from e
            self._report({s for key in delta.keys for s in self._desired.claimants(key)})
            return self._refused.services(self._desired)

    def _needs(self, service: Key) -> Iterable[BalancerKey]:
        needs = self._desired.services.get(service)
        return () if needs is None else needs.balancers

    def _find_new(self, delta: BalancerDelta) -> None:
        """Looks for endpoints that the network plug-in has made since, and for new subnets of the network."""
        unknown = [
            target
            for key in delta.keys
            if (balancer := self._desired.balancer(key)) is not None
            for target in balancer.targets
            if target.address and not self._is_known(target.address, local=target.local)
        ]
        awaited = {address for addresses in self._missing.values() for address in addresses}
        here = {target.address for target in unknown if target.local} - awaited
        if here:
            self._view.look_at_endpoints()
        if any(not self._is_known(address, local=True) for address in here) or (
            self._facts.overlay
            and any(not target.local and not self._facts.provider(target.address) for target in unknown)
        ):
            self._finder.check_network()

    def _is_known(self, address: str, *, local: bool) -> bool:
        return any(not (local and each.remote) for each in self._view.endpoints_at(address))

    def _settle(self, delta: BalancerDelta, owners: dict[BalancerKey, Key], *, everything: bool) -> None:
        settling = Settling(self._view, self._facts, self._desired, self._refused)
        try:
            settling.run(delta, owners, families=self._families(), everything=everything)
        finally:
            for key in delta.keys:
                owner = self._desired.owner(key)
                if owner is not None:
                    self._missing.pop(owner, None)
            self._missing.update(settling.missing)

    def _families(self) -> set[Family]:
        """The IP families whose objects are this driver's: its own, and one that no driver serves."""
        served = self._view.served if self._serving else Counter(FAMILIES)
        return {self._facts.family, *(family for family in FAMILIES if not served[family])}

    def _look(self, node: NodeConfig) -> None:
        """Reads what HNS has."""
        self._finder.look(node)
        if not self._finder.served:
            self._retire()

    def _report(self, services: Iterable[Key]) -> None:
        """Logs what HNS cannot do of what Services ask for."""
        for service in services:
            needs = self._desired.services.get(service)
            doubts = list(needs.doubts) if needs is not None else []
            if needs is not None and self._facts.overlay:
                self._report_source(service, needs)
            doubts += [
                (
                    "endpoints",
                    f"{address} is on this node, and HNS has no endpoint of it; it is left out until there is one. Pods with"
                    " hostNetwork have none",
                )
                for address in self._missing.get(service, ())
            ]
            self._complaints.report(("Service", *service), doubts)

    def _report_source(self, service: Key, needs: ServiceBalancers) -> None:
        """Logs that packets to all endpoints of a load balancer get the node's address as their source."""
        if any(each.source_vip == self._facts.address for each in needs.balancers.values()):
            log.log(
                V2,
                "Service %(service)s: an endpoint on another node is no Pod of the network, so connections to all endpoints"
                " come from %(address)s instead of the source VIP",
                {"service": ObjectRef(*service), "address": self._facts.address},
            )

    # Drift

    def _is_intact(self) -> bool:
        """Whether HNS holds what was programmed. What a network plug-in does is followed here."""
        with self._view.lock:
            if not self._finder.served:
                return True
            if not self._loaded:
                return False
            try:
                self._view.look(oldest=RECENT_SECONDS)
                self._view.read_again()
                news, self._news[:] = list(self._news), []
                # A network that was created again seems to lose its endpoints. HNS may not report it.
                lost = any(each.after is None and isinstance(each.before, HcnEndpoint) for each in news)
                if self._facts.overlay or lost or self._missing:
                    self._finder.check_network()
                if not self._finder.is_known(self._view.network):
                    return False
                return not self._is_drift(news)
            except StaleError:
                return False
            except (HcnError, SyncError) as e:
                self._view.doubt()
                log.warning("Cannot detect whether anything changed, assuming it did: %(err)s", {"err": e})
                return False

    def _is_drift(self, news: Iterable[HnsNews]) -> bool:
        """Whether something must be restored. Endpoints on this node that came or went are no drift."""
        delta = no_delta()
        for each in news:
            for thing in (each.before, each.after):
                if isinstance(thing, HcnEndpoint):
                    if self._facts.is_root(thing):
                        return True
                    users = {k for a in thing.addresses for k in self._desired.users.get(a, ())}
                    needed = users or self._desired.vips.keys() & thing.addresses
                    if needed and thing.remote and thing is each.before:
                        return True
                    if not thing.remote:
                        delta.keys.update(dict.fromkeys(users))
                        delta.addresses.update(thing.addresses)
                elif thing is not None and self._is_own(thing):
                    return True
        self._find_orphans(delta)
        if delta.keys or delta.addresses:
            self._settle(delta, {}, everything=False)
            self._report({s for key in delta.keys for s in self._desired.claimants(key)})
        return any(key in self._refused.balancers for key in delta.keys)

    def _is_own(self, balancer: HcnLoadBalancer) -> bool:
        key = self._view.key(balancer)
        return key is not None and key.family == self._facts.family and self._view.is_ours(balancer)

    def _find_orphans(self, delta: BalancerDelta) -> None:
        """Finds load balancers of a family that is not served any more."""
        families = self._families() - {self._facts.family}
        for each in self._view.balancers() if families else ():
            key = self._view.key(each)
            if key is None or key.family not in families or each.id in self._refused.left:
                continue
            if self._view.is_ours(each):
                delta.keys[key] = None
                named = filter(None, map(self._view.endpoint, each.endpoints))
                delta.addresses.update(address for endpoint in named for address in endpoint.addresses)

    # Reading

    def _read(self) -> HeldHns:
        with self._view.lock:
            try:
                self._look(self._finder.node)
                return held.read(self._view, self._facts)
            except HcnError as e:
                raise SyncError(f"HNS cannot be read: {e}") from e

    def _rehearsed(
        self, state: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> RehearsedHcn:
        """An HNS in memory that held this, after a `load`."""
        there = _as_hns(state)
        hcn = RehearsedHcn(there)
        view = HnsView(hcn, SystemClock())
        view.modifies, view.forms = self._view.modifies, self._view.forms.copy()
        driver = KernelspaceDriver(view, node, lambda _: there.host_mac)
        driver.load_blocking(node, plans)
        return hcn


def _as_hns(state: HeldState) -> HeldHns:
    """What `read` returned; anything else is a mistake of the caller."""
    assert isinstance(state, HeldHns)
    return state
