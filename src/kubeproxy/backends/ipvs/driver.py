"""Keeps the kernel's virtual servers, sets, addresses and rules equal to the plans of one IP family.

A change of a Service is compiled as it was and as it is to be, and only the difference is sent. A full sync reads
what the kernel holds and mends it: what is right stays, with its connections.

There are no transactions here, so the order matters. What comes: sets and rules, then virtual servers, then their
addresses; what goes, the other way round. A packet meets a Service that is whole, or one that is not there. In a full sync
rules come after addresses, so that those of another mode serve until then.

What the kernel refuses of a Service is reported; the rest of that Service is in place.
"""

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

from kubeproxy import protocols
from kubeproxy.api.addresses import contains, join, unpack
from kubeproxy.backends.base import Change, Failures, HeldState, StaleError, SyncError
from kubeproxy.backends.ipvs import names, rehearsal
from kubeproxy.backends.ipvs.compile import NOTHING, Dialect, Target, compile_service
from kubeproxy.backends.ipvs.desired import Delta, Desired
from kubeproxy.backends.ipvs.drain import Draining
from kubeproxy.backends.ipvs.frame import frame
from kubeproxy.backends.ipvs.kernel import Kernel, ServerChange, Verb
from kubeproxy.backends.ipvs.rehearsal import (
    HeldServers,
    RecordingKernel,
    RecordingTables,
    ServerStep,
    ServerSteps,
)
from kubeproxy.backends.ipvs.rules import Rules
from kubeproxy.backends.ipvs.sets import SetKeeper
from kubeproxy.backends.ipvs.watch import Watch
from kubeproxy.backends.programs import RefusedError, Tables, Variant
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.model.plan import Key, ServicePlan, with_same_firewall
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Load, Virtual

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0
"""How often somebody looks whether the connections of real servers that are to go have ended."""

Item = Virtual | tuple[str, Element] | bytes
"""What can be refused: a virtual server, an element of a set by its short name, an address of kube-ipvs0."""


class IPVS:
    """The ipvs driver of one IP family. See `backends.base.Driver`."""

    def __init__(self, kernel: Kernel, tables: Tables, node: NodeConfig) -> None:
        """Makes a driver; the kernel is prepared already, see `mode`."""
        self._kernel = kernel
        self._tables = tables
        self._sets = SetKeeper(kernel, node.family)
        self._rules = Rules(tables)
        self._desired = Desired()
        self._used: frozenset[str] = frozenset()
        self._draining = Draining()
        self._excluded = (node.ipvs or IPVSSettings()).exclude_cidrs
        self._refused: dict[Item, OSError] = {}
        self._fingerprint: object = None
        self._seen: int | None = None
        self._lock = asyncio.Lock()
        self._drainer: asyncio.Task[None] | None = None
        self._watch: Watch | None = None
        self._doubtful = False

    @property
    def variant(self) -> Variant:
        """See `ByPrograms`."""
        return self._tables.variant

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        async with self._locked():
            try:
                return await asyncio.to_thread(self.load_blocking, node, plans)
            except (OSError, RefusedError) as e:
                raise SyncError(str(e)) from e

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        async with self._locked():
            try:
                await asyncio.to_thread(self._apply, node, changes)
            except (OSError, RefusedError) as e:
                raise StaleError(str(e)) from e
        return {}

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Nothing else changes the kernel meanwhile; afterwards connections that are to end are waited for."""
        async with self._lock:
            try:
                yield
            finally:
                if self._draining and (self._drainer is None or self._drainer.done()):
                    self._drainer = asyncio.create_task(self._drain())

    async def read(self) -> HeldServers:
        """See `Readable`."""
        async with self._lock:
            try:
                return await asyncio.to_thread(rehearsal.read, self._kernel, self._tables)
            except OSError as e:
                raise SyncError(str(e)) from e

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> ServerSteps:
        """See `Readable`."""
        there = rehearsal.as_servers(held)
        steps: list[ServerStep] = []
        kernel, tables = RecordingKernel(there, steps), RecordingTables(there.rules, steps)
        IPVS(kernel, tables, node).load_blocking(node, plans)
        return ServerSteps(tuple(steps))

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        return rehearsal.describe(plan, Dialect(node), node.family)

    async def intact(self) -> bool:
        """See `Driver`."""
        async with self._lock:
            return await asyncio.to_thread(self._is_intact)

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`. Of virtual servers and sets the kernel tells nothing: there `intact` must do."""
        self._watch = Watch(self._tables, self._wants, self._missing, disturbed)
        self._watch.join()
        return self._tables.fingerprint() != self._fingerprint

    async def close(self) -> None:
        """See `Driver`."""
        if self._drainer is not None:
            self._drainer.cancel()
        if self._watch is not None:
            self._watch.close()
        self._kernel.close()

    def _wants(self, address: bytes) -> bool:
        return Element(address) in self._desired.entries[names.ADDRESSES]

    def _missing(self) -> set[bytes]:
        """The addresses that somebody took; while we are changing them ourselves, that is left for `intact` to tell."""
        if self._lock.locked():
            self._doubtful = True
            return set()
        wanted = {element.address for element in self._desired.entries[names.ADDRESSES]}
        try:
            return wanted - self._refused.keys() - self._kernel.addresses()
        except OSError as e:
            log.warning(
                "Cannot tell which addresses %(interface)s has: %(err)s",
                {"interface": names.INTERFACE, "err": e},
            )
            return set()

    async def _drain(self) -> None:
        """Deletes real servers whose connections have ended, until there are none left to wait for."""
        while self._draining:
            await asyncio.sleep(DRAIN_SECONDS)
            async with self._lock:
                try:
                    await asyncio.to_thread(self._delete_drained)
                except OSError as e:
                    log.warning(
                        "Cannot tell which connections have ended, looking again later: %(err)s", {"err": e}
                    )

    def _delete_drained(self) -> None:
        done = list(self._draining.done(self._kernel))
        for change in done:
            log.debug("Connections of %(virtualServer)s have ended", {"virtualServer": _name(change)})
        self._kernel.change_servers(done)

    def _apply(self, node: NodeConfig, changes: Sequence[Change]) -> None:
        self._seen = None
        dialect = Dialect(node)
        for c in changes:
            same = with_same_firewall(c.before, c.after)
            before, after = (compile_service(plan, dialect, same) for plan in (c.before, c.after))
            self._desired.replace(c.key, before, after)
        delta = self._desired.settle()
        refused: dict[Item, OSError] = {}
        for name, elements in delta.came.items():
            refused.update(self._sets.add(name, elements, self._desired.entries[name]).items())
        self._change_rules(node, delta.drops)
        coming, going = self._server_changes(delta)
        refused.update(self._change_servers(coming))
        refused.update(self._kernel.bind(_addresses(delta.came)).items())
        self._tell_bound(self._kernel.unbind(_addresses(delta.went)))
        refused.update(self._change_servers(going))
        for name, elements in delta.went.items():
            self._sets.delete(name, elements)
        for item, error in refused.items():
            # Somebody changed what we rely on, or a Service is at fault: only a full look can tell.
            raise StaleError(f"{_told(item)}: {error}")

    def _change_rules(self, node: NodeConfig, drops: tuple[list[str], list[str]]) -> None:
        """Rules are others when a set gets its first element or loses its last, or with those of Services."""
        used = self._desired.used()
        if used == self._used and not any(drops):
            return
        intact = self._tables.fingerprint() == self._fingerprint
        self._rules.change(frame(node, used, list(self._desired.drops)))
        self._used = used
        if intact:  # what somebody else changed before goes on to be seen
            self._fingerprint = self._tables.fingerprint()

    def _server_changes(self, delta: Delta) -> tuple[list[ServerChange], list[ServerChange]]:
        """What comes and what goes of the virtual servers."""
        coming: list[ServerChange] = []
        going: list[ServerChange] = []
        for virtual, (before, after) in delta.virtuals.items():
            if after is None:
                self._draining.forget(virtual)
                going.append(ServerChange("delete", virtual))
            elif before is None:
                coming += _whole(virtual, after)
            else:
                if after.settings != before.settings:
                    coming.append(ServerChange("edit", virtual, after.settings))
                old, new = set(before.reals), set(after.reals)
                for real in after.reals:
                    if real not in old:
                        verb: Verb = "edit" if self._draining.forget(virtual, real) else "add"
                        coming.append(ServerChange(verb, virtual, real=real))
                gone = [real for real in before.reals if real not in new]
                # Only connections of TCP are waited for.
                loads = self._kernel.reals(virtual) if gone and virtual.protocol == ipvs.TCP else {}
                for real in gone:
                    change = self._draining.retire(virtual, real, loads.get(real, Load(1)))
                    if change is not None:
                        going.append(change)
        return coming, going

    def load_blocking(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver.load`; done in this thread. Raises what the kernel says, too."""
        dialect = Dialect(node)
        self._excluded = (node.ipvs or IPVSSettings()).exclude_cidrs
        self._seen = None
        self._draining = Draining()
        self._desired = desired = Desired()
        for key, plan in plans.items():
            desired.replace(key, NOTHING, compile_service(plan, dialect))
        desired.settle()
        refused, leftovers = self._sets.adopt(desired.entries)
        self._refused = dict(refused.items())
        self._used = desired.used()
        coming, going = self._mending()
        self._refused.update(self._change_servers(coming))
        bound = self._kernel.addresses()
        wanted = {element.address for element in desired.entries[names.ADDRESSES]}
        self._refused.update(self._kernel.bind(wanted - bound).items())
        # Another mode's rules may lead packets until ours replace them: by then there must be somebody to receive them.
        if self._watch is not None:
            self._watch.join()
        self._rules.adopt(frame(node, self._used, list(desired.drops)))
        self._fingerprint = self._tables.fingerprint()
        self._tell_bound(self._kernel.unbind([a for a in bound - wanted if not self._is_excluded(a)]))
        self._change_servers(going)
        for name, elements in leftovers.items():
            self._sets.delete(name, elements)
        return self._blame(plans, dialect) if self._refused else {}

    def _mending(self) -> tuple[list[ServerChange], list[ServerChange]]:
        """The difference between the virtual servers that are there and those there should be."""
        coming: list[ServerChange] = []
        going: list[ServerChange] = []
        settings, servers = self._kernel.settings(), self._kernel.servers()
        for virtual, target in self._desired.virtuals():
            there = settings.pop(virtual, None)
            if there is None:
                coming += _whole(virtual, target)
                continue
            if there != target.settings:
                coming.append(ServerChange("edit", virtual, target.settings))
            reals = servers.get(virtual, {})
            for real in target.reals:
                load = reals.pop(real, None)
                if load is None:
                    coming.append(ServerChange("add", virtual, real=real))
                elif load.weight != 1:
                    coming.append(ServerChange("edit", virtual, real=real))
            for real, load in reals.items():
                change = self._draining.retire(virtual, real, load)
                if change is not None:
                    going.append(change)
        going += [ServerChange("delete", v) for v in settings if not self._is_excluded(v.address)]
        return coming, going

    def _change_servers(self, changes: list[ServerChange]) -> dict[Item, OSError]:
        """Makes changes; returns what was refused, by virtual server. What goes and is gone is no error."""
        refused = self._kernel.change_servers(changes)
        gone = {errno.ESRCH, errno.ENOENT}
        return {
            changes[at].virtual: error
            for at, error in refused.items()
            if not (changes[at].verb == "delete" and error.errno in gone)
        }

    def _tell_bound(self, refused: dict[bytes, OSError]) -> None:
        for address, error in refused.items():
            log.warning(
                "%(interface)s keeps %(address)s: %(err)s",
                {"interface": names.INTERFACE, "address": unpack(address), "err": error},
            )

    def _blame(self, plans: Mapping[Key, ServicePlan], dialect: Dialect) -> Failures:
        """The Services that asked for what was refused.

        Raises:
            SyncError: none was accepted, so they are not to blame.
        """
        failures: dict[Key, str] = {}
        for key, plan in plans.items():
            compiled = compile_service(plan, dialect)
            items = (*compiled.virtuals, *compiled.entries, *(e.address for _, e in compiled.entries))
            found = [f"{_told(item)}: {self._refused[item]}" for item in items if item in self._refused]
            if found:
                failures[key] = "; ".join(dict.fromkeys(found))
        virtuals = [v for v, _ in self._desired.virtuals()]
        if len(virtuals) > 1 and all(v in self._refused for v in virtuals):
            raise SyncError(
                f"every virtual server is refused; the first: {_told(virtuals[0])}: {self._refused[virtuals[0]]}"
            )
        return failures

    def _is_excluded(self, address: bytes) -> bool:
        return bool(self._excluded) and any(contains(cidr, unpack(address)) for cidr in self._excluded)

    def _is_intact(self) -> bool:
        """Rules, sets, addresses and servers, the cheapest look first."""
        try:
            if self._tables.fingerprint() != self._fingerprint or not self._sets.intact(
                self._desired.entries, self._refused
            ):
                return False
            return self._are_addresses_intact() and self._are_servers_intact()
        except OSError as e:
            log.warning("Cannot tell whether anything changed: %(err)s", {"err": e})
            return False

    def _are_addresses_intact(self) -> bool:
        if self._watch is not None and not self._doubtful:
            return True  # it would have been told
        self._doubtful = False
        wanted = {e.address for e in self._desired.entries[names.ADDRESSES]} - self._refused.keys()
        return {a for a in self._kernel.addresses() if a in wanted or not self._is_excluded(a)} == wanted

    def _are_servers_intact(self) -> bool:
        """Whether virtual servers are as they should be: the same as when they last were, or looked at one by one."""
        seen = self._kernel.fingerprint()
        if seen != self._seen and self._is_each_server_intact():
            self._seen = seen
        return seen == self._seen

    def _is_each_server_intact(self) -> bool:
        servers = self._kernel.servers()
        for virtual, target in self._desired.virtuals():
            reals = servers.pop(virtual, None)
            if virtual in self._refused:
                continue
            if reals is None:
                return False
            weights = {real: load.weight for real, load in reals.items()}
            for real in self._draining.of(virtual):
                if weights.get(real) == 0:
                    del weights[real]
            if weights != dict.fromkeys(target.reals, 1):
                return False
        return all(self._is_excluded(virtual.address) for virtual in servers)


def _whole(virtual: Virtual, target: Target) -> Iterator[ServerChange]:
    yield ServerChange("add", virtual, target.settings)
    for real in target.reals:
        yield ServerChange("add", virtual, real=real)


def _addresses(entries: dict[str, list[Element]]) -> list[bytes]:
    return [element.address for element in entries.get(names.ADDRESSES, ())]


def _told(item: Item) -> str:
    """What was refused, for people."""
    if isinstance(item, Virtual):
        return f"virtual server {protocols.NAMES[item.protocol]} {join(unpack(item.address), item.port)}"
    if isinstance(item, bytes):
        return f"address {unpack(item)} of {names.INTERFACE}"
    name, element = item
    parts: Iterable[str] = (
        *([unpack(element.address)] if element.address else []),
        *([str(element.port)] if element.port else []),
        *([unpack(element.other)] if element.other else []),
    )
    return f"element {','.join(parts)} of set {name}"


def _name(change: ServerChange) -> str:
    real = change.real
    at = join(unpack(real.address), real.port) if real else "?"
    return f"{at} behind {_told(change.virtual)}"
