"""Keeps the kernel's virtual servers, sets, addresses and rules equal to the plans of one IP family.

A change of a Service is compiled as it was and as it is to be, and only the difference is sent. A full sync
reads what the kernel holds and corrects it: what is right stays, with its connections.

IPVS has no transactions, so the order matters. Added are sets and rules, then virtual servers, then their
addresses; deletion is in the reverse order. A packet meets a Service that is complete, or none. In a full
sync rules are written after addresses, so that those of another mode serve until then.

A change of which the kernel refuses a piece is reverted as a whole, and a full sync identifies the Service
that causes it (`load`): what it had stays, all others are programmed.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from kubeproxy.backends.base import Change, Failures, HeldState, KernelComparison, StaleError, SyncError
from kubeproxy.backends.ipvs import describe, names, part
from kubeproxy.backends.ipvs.afterwards import Afterwards
from kubeproxy.backends.ipvs.changes import coming, edits, going
from kubeproxy.backends.ipvs.compile import ServerContext, ServiceServers, Target, compile_service
from kubeproxy.backends.ipvs.desired import Delta, Desired
from kubeproxy.backends.ipvs.drain import Draining, RemovedEndpoints
from kubeproxy.backends.ipvs.frame import frame
from kubeproxy.backends.ipvs.held import HeldServers, as_servers, read
from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange
from kubeproxy.backends.ipvs.load import FullSync, Parts, is_excluded, unbind
from kubeproxy.backends.ipvs.order import is_ordered, is_sorted
from kubeproxy.backends.ipvs.pieces import Behind, Piece, Refusals, change_servers, described
from kubeproxy.backends.ipvs.rules import Rules
from kubeproxy.backends.ipvs.sets import SetKeeper
from kubeproxy.backends.ipvs.spill import STEER_SECONDS, SpillOver
from kubeproxy.backends.ipvs.steps import RecordingKernel, RecordingTables, ServerStep, ServerSteps
from kubeproxy.backends.ipvs.watch import Watch
from kubeproxy.backends.programs import InputRefusedError, Tables, Variant
from kubeproxy.backends.shared.threads import in_thread
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.model.plan import Key, ServicePlan, with_same_firewall
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Virtual

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0
"""How often the number of connections is read of real servers that are to be deleted."""


class IPVSDriver:
    """The ipvs driver of one IP family. See `backends.base.Driver`."""

    def __init__(
        self,
        kernel: IPVSKernel,
        tables: Tables,
        node: NodeConfig,
        *,
        removed: RemovedEndpoints | None = None,
    ) -> None:
        """Makes a driver; the kernel is prepared already, see `mode`."""
        self._kernel = kernel
        self._tables = tables
        self._sets = SetKeeper(kernel, node.family)
        self._rules = Rules(tables)
        self._desired = Desired()
        self._used: frozenset[str] = frozenset()
        self._draining = Draining()
        self._removed = RemovedEndpoints() if removed is None else removed
        self._spill = SpillOver()
        self._excluded = (node.ipvs or IPVSSettings()).exclude_cidrs
        self._loaded = False
        self._dialect = ServerContext(node)
        self._plans: dict[Key, ServicePlan] = {}
        self._kept: dict[Key, ServiceServers] = {}
        self._refused: Refusals = {}
        self._fingerprint: object = None
        self._seen: int | None = None
        self._lock = asyncio.Lock()
        self._afterwards = (
            Afterwards(self._lock, lambda: bool(self._draining), lambda: DRAIN_SECONDS, self.delete_drained),
            Afterwards(self._lock, lambda: bool(self._spill), lambda: STEER_SECONDS, self.steer),
            Afterwards(self._lock, lambda: bool(self._removed), lambda: self._removed.wait, self.end_removed),
        )
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
                return await in_thread(self.load_blocking, node, plans)
            except (OSError, InputRefusedError) as e:
                raise SyncError(str(e)) from e

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        async with self._locked():
            try:
                await in_thread(self._apply, node, changes)
            except (OSError, InputRefusedError) as e:
                raise StaleError(str(e)) from e
        return {}

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Excludes other changes of the kernel; afterwards waits for connections that are to end."""
        async with self._lock:
            try:
                yield
            finally:
                for work in self._afterwards:
                    work.start()

    async def read(self) -> HeldServers:
        """See `Readable`."""
        async with self._lock:
            try:
                return await in_thread(read, self._kernel, self._tables)
            except OSError as e:
                raise SyncError(str(e)) from e

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> ServerSteps:
        """See `Readable`."""
        return self._rehearsed(as_servers(held), node, plans)[2]

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        return describe.service(plan, ServerContext(node), node.family)

    async def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldServers:
        """See `Comparable`."""
        async with self._lock:
            try:
                return await in_thread(part.read, self._kernel, self._tables, node, plans.values())
            except OSError as e:
                raise SyncError(str(e)) from e

    def compare(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> KernelComparison:
        """See `Comparable`."""
        there = as_servers(held)
        return part.compare(there, *self._rehearsed(there, node, plans))

    def _rehearsed(
        self, held: HeldServers, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> tuple[RecordingKernel, RecordingTables, ServerSteps]:
        """A kernel and tables in memory that held this, after a `load`, and what that did."""
        steps: list[ServerStep] = []
        kernel, tables = RecordingKernel(held, steps), RecordingTables(held.rules, steps)
        IPVSDriver(kernel, tables, node).load_blocking(node, plans)
        return kernel, tables, ServerSteps(tuple(steps))

    async def intact(self) -> bool:
        """See `Driver`."""
        async with self._lock:
            return await in_thread(self._is_intact)

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`. The kernel reports no changes of virtual servers and sets: `intact` detects them."""
        self._watch = Watch(self._tables, self._wants, self._missing, disturbed)
        self._watch.join()
        return self._tables.fingerprint() != self._fingerprint

    async def close(self) -> None:
        """See `Driver`."""
        for work in self._afterwards:
            work.close()
        if self._watch is not None:
            self._watch.close()
        self._kernel.close()

    def _wants(self, address: bytes) -> bool:
        return Element(address) in self._desired.entries[names.ADDRESSES]

    def _missing(self) -> set[bytes]:
        """The addresses another program deleted; none while we change them, when `intact` detects it."""
        if self._lock.locked():
            self._doubtful = True
            return set()
        wanted = {element.address for element in self._desired.entries[names.ADDRESSES]}
        try:
            return wanted - self._refused.keys() - self._kernel.addresses()
        except OSError as e:
            log.warning(
                "Cannot read the addresses of %(interface)s, drift of them is detected later: %(err)s",
                {"interface": names.INTERFACE, "err": e},
            )
            return set()

    def delete_drained(self) -> None:
        """Deletes the real servers whose connections have ended. Raises OSError if they cannot be read."""
        done = list(self._draining.done(self._kernel))
        for change in done:
            log.debug(
                "Connections of %(virtualServer)s have ended", {"virtualServer": described(_piece(change))}
            )
        self._kernel.change_servers(done)

    def end_removed(self) -> None:
        """Deletes real servers whose endpoints were removed a while ago, and whose connections are to end."""
        change_servers(self._kernel, list(self._removed.due(self._desired.target, self._draining)))

    def steer(self) -> None:
        """Adapts limits to the connections that have ended. Raises OSError if they cannot be read."""
        if changes := self._spill.steered(self._kernel):
            change_servers(self._kernel, changes)

    def _apply(self, node: NodeConfig, changes: Sequence[Change]) -> None:
        """Programs changes, or none of them."""
        if known := [c.key for c in changes if c.key in self._kept]:
            raise StaleError(f"Service {'/'.join(known[0])} was refused before")
        self._seen = None
        dialect = ServerContext(node)
        compiled: list[tuple[Key, ServiceServers, ServiceServers]] = []
        for c in changes:
            same = with_same_firewall(c.before, c.after)
            before, after = (compile_service(plan, dialect, same) for plan in (c.before, c.after))
            compiled.append((c.key, before, after))
            self._desired.replace(c.key, before, after)
        delta = self._desired.settle()
        refused: dict[Piece, Exception] = {}
        try:
            self._come(node, delta, refused)
        except Exception:
            for key, before, after in reversed(compiled):
                self._desired.replace(key, after, before)
            self._desired.settle()
            self._take_back(node, delta, refused)
            raise
        self._go(delta)
        for virtual, (was, now) in delta.virtuals.items():
            self._removed.follow(virtual, was, now)
            self._spill.follow(virtual, now)
        self._dialect = dialect
        for c in changes:
            if c.after is None:
                self._plans.pop(c.key, None)
            else:
                self._plans[c.key] = c.after

    def _come(self, node: NodeConfig, delta: Delta, refused: dict[Piece, Exception]) -> None:
        """Adds what is new, until something is refused, which it puts into `refused`.

        Raises:
            StaleError: something was refused.
        """
        for name, elements in delta.came.items():
            refused.update(self._sets.add(name, elements, self._desired.entries[name]).items())
        if not refused:
            self._change_rules(node, delta.drops)
            refused.update(change_servers(self._kernel, list(coming(delta, self._kernel, self._draining))))
        if not refused:
            refused.update(self._kernel.bind(_addresses(delta.came)).items())
        for piece, error in refused.items():
            # Another program changed what we rely on, or a Service is the cause: only a full sync can
            # distinguish.
            raise StaleError(f"{described(piece)}: {error}")

    def _go(self, delta: Delta) -> None:
        """Deletes what no Service has any more."""
        unbind(self._kernel, _addresses(delta.went))
        change_servers(self._kernel, list(going(delta, self._kernel, self._draining)))
        for name, elements in delta.went.items():
            self._sets.delete(name, elements)

    def _take_back(self, node: NodeConfig, delta: Delta, refused: Refusals) -> None:
        """Deletes what refused changes added. What fails is left to the full sync that follows."""
        try:
            unbind(self._kernel, [a for a in _addresses(delta.came) if a not in refused])
            back: dict[Virtual, tuple[Target | None, Target | None]] = {
                virtual: (after, before) for virtual, (before, after) in delta.virtuals.items() if after
            }
            restored = [
                edit
                for virtual, (after, before) in back.items()
                if before is not None and after is not None
                for edit in edits(virtual, after, before)
            ]
            gone = going(delta._replace(virtuals=back), self._kernel, self._draining)
            change_servers(self._kernel, [*restored, *(c for c in gone if _piece(c) not in refused)])
            self._change_rules(node, (delta.drops[1], delta.drops[0]))
            for name, elements in delta.went.items():  # a set that was made larger does not have them
                self._sets.add(name, elements, self._desired.entries[name])
            for name, elements in delta.came.items():
                self._sets.delete(name, [e for e in elements if (name, e) not in refused])
        except (OSError, SyncError, InputRefusedError) as e:
            log.warning(
                "What was added for a change that was refused stays until the next full sync: %(err)s",
                {"err": e},
            )

    def _change_rules(self, node: NodeConfig, drops: tuple[list[str], list[str]]) -> None:
        """Rules change when a set gets its first element or loses its last, and with those of Services."""
        used = self._desired.used()
        if used == self._used and not any(drops):
            return
        intact = self._tables.fingerprint() == self._fingerprint
        self._rules.change(frame(node, used, list(self._desired.drops)))
        self._used = used
        if intact:  # otherwise a change by another program must still be detected
            self._fingerprint = self._tables.fingerprint()

    def load_blocking(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver.load`; done in this thread. Also raises the errors of the kernel."""
        self._excluded = (node.ipvs or IPVSSettings()).exclude_cidrs
        self._seen = None
        # Before anything is read: what another program changes from now on is detected, not ignored as known.
        if self._watch is not None:
            self._watch.join()
        found = self._tables.fingerprint()
        parts = Parts(self._kernel, self._sets, self._rules, self._draining)
        sync = FullSync(parts, node, plans, self._state_before if self._loaded else None)
        before = dict(self._desired.virtuals())
        self._desired, self._refused = sync.desired, sync.refused
        sync.come()
        self._used = sync.desired.used()
        # In the legacy variant it is of what was written, too.
        self._fingerprint = self._tables.fingerprint() if self.variant == "legacy" else found
        sync.go()
        for virtual, target in sync.desired.virtuals():
            self._removed.follow(virtual, before.get(virtual), target)
        self._spill.load(sync.desired.virtuals())
        self._loaded, self._dialect, self._kept = True, ServerContext(node), sync.kept
        self._plans = {key: plan for key, plan in plans.items() if key not in sync.failures}
        return sync.failures

    def _state_before(self, key: Key) -> ServiceServers:
        """What a Service has since the last sync."""
        kept = self._kept.get(key)
        return compile_service(self._plans.get(key), self._dialect) if kept is None else kept

    def _is_intact(self) -> bool:
        """Whether rules, sets, addresses and servers are right; the cheapest check comes first."""
        try:
            if self._tables.fingerprint() != self._fingerprint or not self._sets.intact(
                self._desired.entries, self._refused
            ):
                return False
            return self._are_addresses_intact() and self._are_servers_intact()
        except OSError as e:
            log.warning("Cannot detect whether anything changed, assuming it did: %(err)s", {"err": e})
            return False

    def _are_addresses_intact(self) -> bool:
        if self._watch is not None and not self._doubtful:
            return True  # a notification would have come
        self._doubtful = False
        wanted = {e.address for e in self._desired.entries[names.ADDRESSES]} - self._refused.keys()
        return {
            a for a in self._kernel.addresses() if a in wanted or not is_excluded(self._excluded, a)
        } == wanted

    def _are_servers_intact(self) -> bool:
        """Whether virtual servers are right: unchanged since they last were, or else compared one by one."""
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
            wanted = target.weighted()
            whole = not any((virtual, real) in self._refused for real in wanted)
            if whole and is_ordered(target.settings) and not is_sorted(reals, target):
                return False
            if weights != {r: weight for r, weight in wanted.items() if (virtual, r) not in self._refused}:
                return False
        return all(is_excluded(self._excluded, virtual.address) for virtual in servers)


def _addresses(entries: dict[str, list[Element]]) -> list[bytes]:
    return [element.address for element in entries.get(names.ADDRESSES, ())]


def _piece(change: ServerChange) -> Piece:
    return change.virtual if change.real is None else Behind(change.virtual, change.real)
