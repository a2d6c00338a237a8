"""A full sync: reads what the kernel holds and corrects it, in stages.

What is missing is added first: elements of sets, virtual servers with their real servers, addresses, rules. A
Service of which the kernel refuses a piece is restored to what it had before, and the stages begin again,
until no further Service is refused. Only then is deleted what no Service has: so of a refused Service
everything stays, and nothing new is added.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from kubeproxy.api.addresses import contains, unpack
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.compile import (
    NOTHING,
    ServerContext,
    ServiceServers,
    Target,
    compile_service,
    made_of,
)
from kubeproxy.backends.ipvs.desired import Desired
from kubeproxy.backends.ipvs.drain import Draining
from kubeproxy.backends.ipvs.frame import frame
from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange
from kubeproxy.backends.ipvs.order import arranged, is_ordered
from kubeproxy.backends.ipvs.pieces import Piece, Refusals, change_servers, refused_of
from kubeproxy.backends.ipvs.rules import Rules
from kubeproxy.backends.ipvs.sets import SetKeeper
from kubeproxy.backends.shared.isolation import HOPELESS
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Load, Real, Settings, Virtual

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a driver works with."""

    kernel: IPVSKernel
    sets: SetKeeper
    rules: Rules
    draining: Draining


class Found(NamedTuple):
    """What the kernel held before the first full sync of a process: the source of a Service's state."""

    settings: dict[Virtual, Settings]
    servers: dict[Virtual, dict[Real, Load]]
    elements: dict[str, set[Element]]
    drops: Collection[str]

    def of(self, wanted: ServiceServers) -> ServiceServers:
        """What there was of a Service; nothing if it had no virtual server."""
        virtuals: dict[Virtual, Target] = {}
        for virtual in wanted.virtuals:
            if virtual in self.settings:
                there = self.servers.get(virtual, {})
                weights = {real: there[real].weight for real in sorted(there) if there[real].weight}
                virtuals[virtual] = made_of(self.settings[virtual], weights)
        if not virtuals:
            return NOTHING
        entries = {(name, e): None for name, e in wanted.entries if e in self.elements.get(name, ())}
        return ServiceServers(virtuals, entries, {rule: None for rule in wanted.drops if rule in self.drops})


class FullSync:
    """One full sync.

    Attributes:
        desired: what all Services need; of refused ones, what they had.
        failures: the Services that were refused.
        kept: what each of them has.
        refused: pieces that are wanted and not there: those of refused Services that could not be put back.
    """

    def __init__(
        self,
        parts: Parts,
        node: NodeConfig,
        plans: Mapping[Key, ServicePlan],
        before: Callable[[Key], ServiceServers] | None,
    ) -> None:
        """Prepares it.

        Args:
            parts: what it works with.
            node: the node.
            plans: the plans of all Services.
            before: what a Service had after the last sync; None: this is the first, and the kernel is asked.
        """
        self._kernel, self._sets, self._rules, self._draining = parts
        self._node = node
        self._plans = plans
        self._dialect = ServerContext(node)
        self._before = before
        self._excluded = (node.ipvs or IPVSSettings()).exclude_cidrs
        self._owners: dict[Virtual, Key] = {}
        self._there: dict[str, set[Element]] | None = None
        self._found: Found | None = None
        self._leftovers: dict[str, set[Element]] = {}
        self._going: list[ServerChange] = []
        self._unwanted: set[bytes] = set()
        self.desired = Desired()
        self.failures: dict[Key, str] = {}
        self.kept: dict[Key, ServiceServers] = {}
        self.refused: dict[Piece, Exception] = {}
        for key, plan in plans.items():
            self.desired.replace(key, NOTHING, compile_service(plan, self._dialect))
        self.desired.settle()

    def come(self) -> None:
        """Programs what is missing.

        Raises:
            OSError, InputRefusedError: the kernel refused what is common to all Services.
            SyncError: it could not be done; or every Service is refused, so no Service is at fault.
        """
        self._rules.read(frame(self._node, (), ()))
        stages: tuple[Callable[[], Refusals], ...] = (
            self._elements,
            self._servers,
            self._addresses,
            self._chains,
        )
        at = 0
        while at < len(stages):
            if at == 0:
                self.refused.clear()
            refused = stages[at]()
            if refused and self._put_back(refused):
                at = 0
            else:
                self.refused.update(refused)
                at += 1

    def go(self) -> None:
        """Deletes what no Service has."""
        unbind(self._kernel, self._unwanted)
        change_servers(self._kernel, self._going)
        for name, elements in self._leftovers.items():
            self._sets.delete(name, elements)

    def _elements(self) -> Refusals:
        there = self._sets.read()
        if self._there is None:
            self._there = there
        refused, self._leftovers = self._sets.adopt(self.desired.entries, there)
        return dict(refused.items())

    def _servers(self) -> Refusals:
        settings, servers = self._kernel.settings(), self._kernel.servers()
        if self._before is None and self._found is None:
            self._found = Found(settings, servers, self._there or {}, self._rules.drops)
        self._draining.clear()
        coming: list[ServerChange] = []
        self._going = []
        going = self._going
        for virtual, target in self.desired.virtuals():
            there = settings.get(virtual)
            if there is None:
                coming += whole(virtual, target)
                continue
            if there != target.settings:
                coming.append(ServerChange("edit", virtual, target.settings))
            reals = dict(servers.get(virtual, {}))
            ordered = is_ordered(target.settings)
            if ordered:
                coming += arranged(virtual, reals, target)
                reals = {real: load for real, load in reals.items() if real not in target.weighted()}
            limits = target.limits()
            for real, weight in () if ordered else target.weighted().items():
                load, limit = reals.pop(real, None), limits.get(real, 0)
                if load is None:
                    coming.append(ServerChange("add", virtual, real=real, weight=weight, limit=limit))
                elif load.weight != weight:
                    coming.append(ServerChange("edit", virtual, real=real, weight=weight, limit=limit))
            for real, load in reals.items():
                afresh = ordered and there != target.settings
                going += self._draining.retire(virtual, real, load, ordered=ordered, afresh=afresh)
        going += [
            ServerChange("delete", virtual)
            for virtual in settings
            if self.desired.target(virtual) is None and not is_excluded(self._excluded, virtual.address)
        ]
        return change_servers(self._kernel, coming)

    def _addresses(self) -> Refusals:
        bound = self._kernel.addresses()
        wanted = {element.address for element in self.desired.entries[names.ADDRESSES]}
        self._unwanted = {a for a in bound - wanted if not is_excluded(self._excluded, a)}
        return dict(self._kernel.bind(wanted - bound).items())

    def _chains(self) -> Refusals:
        """Writes rules, last, because until then those of another mode may serve."""
        refused = self._rules.adopt(frame(self._node, self.desired.used(), list(self.desired.drops)))
        return dict(refused.items())

    def _put_back(self, refused: Refusals) -> bool:
        """Restores what the Services had of which something was refused; returns whether there are any.

        Raises:
            SyncError: every Service is refused.
        """
        if not self.failures:
            self._owners = dict(self.desired.owners())
        found: dict[Key, ServiceServers] = {}
        for key, plan in self._plans.items():
            if key not in self.failures:
                compiled = compile_service(plan, self._dialect)
                if messages := refused_of(compiled, refused):
                    self.failures[key] = "; ".join(messages)
                    found[key] = compiled
        if found and len(self.failures) >= max(HOPELESS, len(self._plans)):
            last = next(reversed(self.failures.values()))
            raise SyncError(f"every Service is refused; the last message: {last}")
        for key, compiled in found.items():
            self.kept[key] = self._state_before(key, compiled)
            self.desired.replace(key, compiled, self.kept[key])
        self.desired.settle()
        return bool(found)

    def _state_before(self, key: Key, wanted: ServiceServers) -> ServiceServers:
        """What a Service had, without the fronts that belong to another one now."""
        had = self._before(key) if self._before is not None else self._first(wanted)
        gone = [virtual for virtual in had.virtuals if self._owners.get(virtual, key) != key]
        return without(had, gone) if gone else had

    def _first(self, wanted: ServiceServers) -> ServiceServers:
        """What the kernel had of a Service before this process did anything."""
        if self._found is None:  # an element was refused; virtual servers were not changed yet
            settings, servers = self._kernel.settings(), self._kernel.servers()
            self._found = Found(settings, servers, self._there or {}, self._rules.drops)
        return self._found.of(wanted)


def whole(virtual: Virtual, target: Target) -> Iterator[ServerChange]:
    """A new virtual server with its real servers."""
    yield ServerChange("add", virtual, target.settings)
    limits = target.limits()
    for real, weight in target.weighted().items():
        yield ServerChange("add", virtual, real=real, weight=weight, limit=limits.get(real, 0))


def without(had: ServiceServers, gone: Collection[Virtual]) -> ServiceServers:
    """A Service without some of its virtual servers, and without the entries and rules of these."""
    virtuals = {virtual: target for virtual, target in had.virtuals.items() if virtual not in gone}
    fronts = {(v.protocol, v.address, v.port) for v in gone}
    addresses = {v.address for v in virtuals}
    ports = {v.port for v in gone} - {v.port for v in virtuals}

    def stays(name: str, element: Element) -> bool:
        if name in {names.LOOP_BACK, names.HEALTH_CHECK}:
            return True
        if name == names.ADDRESSES:
            return element.address in addresses
        if not element.address:
            return element.port not in ports
        return (element.protocol, element.address, element.port) not in fronts

    limits = tuple(f"--vaddr {unpack(v.address)} --vport {v.port} " for v in gone)
    return ServiceServers(
        virtuals,
        {(name, element): None for name, element in had.entries if stays(name, element)},
        {rule: None for rule in had.drops if not any(limit in rule for limit in limits)},
    )


def is_excluded(cidrs: Collection[str], address: bytes) -> bool:
    """Whether an address is in a range that belongs to other programs."""
    return bool(cidrs) and any(contains(cidr, unpack(address)) for cidr in cidrs)


def unbind(kernel: IPVSKernel, addresses: Collection[bytes]) -> None:
    """Deletes addresses from kube-ipvs0; one that the kernel refuses to delete stays."""
    for address, error in kernel.unbind(addresses).items():
        log.warning(
            "%(interface)s keeps %(address)s: %(err)s",
            {"interface": names.INTERFACE, "address": unpack(address), "err": error},
        )
