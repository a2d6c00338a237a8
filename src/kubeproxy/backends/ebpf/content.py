"""Keeps the maps of a family equal to plans.

Blocks are written before the words that name them, words before the fronts that lead to them; what is not
needed any more is removed in the reverse order. So a program finds the old state or the new one of each
front, and a process that is killed in between leaves nothing that a `load` does not correct.

Nothing is kept in memory but the number of each Service port: what a word was is in the word.
"""

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Change
from kubeproxy.backends.ebpf import layout
from kubeproxy.backends.ebpf.blocks import Blocks, FullError, Quarantine
from kubeproxy.backends.ebpf.compile import LEFT, FrontCompiler, PortFronts, WordPlan
from kubeproxy.backends.ebpf.layout import FIRST, PASS, PASSING, STICKY, Capacity
from kubeproxy.backends.ebpf.tables import FrontMaps, HashTable
from kubeproxy.model.plan import Key, PortId, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint

_NO_COUNT: Final = bytes(8)

_Numbers = Mapping[PortId, int]


class FrontContent:
    """The contents of the maps of one family.

    Attributes:
        maps: the maps.
        compiler: compiles plans for the node.
        numbers: the number of each Service port.
    """

    def __init__(
        self,
        maps: FrontMaps,
        compiler: FrontCompiler,
        now: Callable[[], float],
        numbers: _Numbers | None = None,
    ) -> None:
        """Makes it; `load` must be called first.

        Args:
            maps: the maps.
            compiler: compiles plans.
            now: the time in seconds.
            numbers: the numbers of Service ports in the maps that these ones replace.
        """
        self.maps = maps
        self.compiler = compiler
        self.numbers: dict[PortId, int] = dict(numbers or {})
        self._now = now
        self._ipv4 = maps.layout.family == IPV4
        self._blocks = Blocks(maps.capacity.slots, now)
        self._free: list[int] = []
        self._freed: Quarantine[int] = Quarantine(now)
        self._next = FIRST

    def load(self, plans: Mapping[Key, ServicePlan], changed: float) -> None:
        """Makes the maps equal to the plans, whatever they hold.

        Args:
            plans: the plans.
            changed: when the maps were last changed, by the clock.

        Raises:
            FullError: they cannot hold the plans.
            OSError: the kernel refused.
        """
        self.maps.words[2 * PASSING] = layout.word(0, 0, PASS)
        wanted = {
            (port.name, port.protocol): self.compiler.compile(port)
            for plan in plans.values()
            for port in self.compiler.ports(plan)
        }
        held = dict(self.maps.fronts.items())
        self._number(wanted, held, changed)
        members = {key for key, _ in self.maps.members.items()}
        kept: set[bytes] = set()
        fronts: dict[bytes, bytes] = {}
        for name, needed in wanted.items():
            number = self.numbers[name]
            kept |= self._correct(number, needed, members)
            fronts.update(_entries(number, needed.fronts))
        self._put(self.maps.fronts, held, fronts)
        self.maps.fronts.delete([key for key in held if key not in fronts])
        self.maps.members.delete(members - kept)
        self._hosts()

    def apply(self, changes: Sequence[Change]) -> None:
        """Makes the maps what the plans of some Services are now.

        Raises:
            FullError: there is no room; the next call must be `load`, on larger maps.
            OSError: the kernel refused; the next call must be `load`.
        """
        compiler = self.compiler
        put: dict[bytes, bytes] = {}
        gone: dict[bytes, int] = {}
        ended: list[PortId] = []
        for change in changes:
            olds = {(port.name, port.protocol): port for port in compiler.ports(change.before)}
            for port in compiler.ports(change.after):
                name = port.name, port.protocol
                old = olds.pop(name, None)
                number = self.numbers.get(name)
                if number is None:
                    number = self.numbers[name] = self._take_number()
                self._change(number, old, port)
                if old is None or _moved(old, port):
                    put.update(_entries(number, compiler.fronts(port)))
                    if old is not None:
                        gone.update(dict.fromkeys(compiler.fronts(old), number))
            for name, old in olds.items():
                gone.update(dict.fromkeys(compiler.fronts(old), self.numbers[name]))
                ended.append(name)
        if put:
            self.maps.fronts.put(put.items())
        self._delete({key: number for key, number in gone.items() if key not in put})
        for name in ended:
            self._end(name)

    # Numbers

    def _number(
        self, wanted: Mapping[PortId, PortFronts], held: Mapping[bytes, bytes], changed: float
    ) -> None:
        """Gives each port a number: the one it has, or that its fronts have in the maps."""
        limit = self.maps.capacity.ports
        in_use = {layout.index_of(value) >> 1 for value in held.values()}
        claims: dict[int, set[PortId]] = {}
        for name, needed in wanted.items():
            for key, side in needed.fronts.items():
                if side != LEFT and key in held:
                    claims.setdefault(layout.index_of(held[key]) >> 1, set()).add(name)
        numbers: dict[PortId, int] = {}
        for number, names in claims.items():
            # If several ports have fronts there, it changes for none of them before its fronts do.
            name = next(iter(names))
            if FIRST <= number < limit and len(names) == 1:
                numbers.setdefault(name, number)
        for name in wanted:
            known = self.numbers.get(name, limit)
            if name not in numbers and known < limit and known not in in_use:
                numbers[name] = known
        taken = set(numbers.values())
        in_use |= taken
        self._next = max((n for n in in_use if n < limit), default=FIRST - 1) + 1
        self._free = [n for n in range(FIRST, self._next) if n not in in_use]
        self._freed = Quarantine(self._now)
        for number in in_use - taken - {PASSING}:
            if number < limit:
                self._freed.add(number)
        self.numbers = numbers
        self._adopt_blocks(changed)
        for name in wanted:
            if name not in numbers:
                numbers[name] = self._take_number()

    def _take_number(self) -> int:
        self._free.extend(self._freed.released())
        if self._free:
            number = self._free.pop()
        elif self._next < self.maps.capacity.ports:
            number, self._next = self._next, self._next + 1
        else:
            raise FullError
        self.maps.words[2 * number] = self.maps.words[2 * number + 1] = layout.word(0, 0, PASS)
        return number

    def _end(self, name: PortId) -> None:
        """A port has no fronts any more."""
        number = self.numbers.pop(name)
        for index in (2 * number, 2 * number + 1):
            base, count, flags = layout.parts(self.maps.words[index])
            if flags & STICKY:
                data, step = self._bytes_at(base, count), self.maps.layout.slot
                slots = [data[at : at + step] for at in range(0, len(data), step)]
                self.maps.members.delete([self._member(index, each) for each in slots])
        blocks = self._blocks_of(number)
        self.maps.words[2 * number] = self.maps.words[2 * number + 1] = layout.word(0, 0, PASS)
        for base, count in blocks:
            self._blocks.give(base, count)
        self._freed.add(number)

    # Words and blocks

    def _adopt_blocks(self, changed: float) -> None:
        """Finds out which slots are in use by the words there are; words that cannot be are set to pass."""
        self._blocks = Blocks(self.maps.capacity.slots, self._now)
        used: dict[int, int] = {}
        for number in self.numbers.values():
            for base, count in self._blocks_of(number):
                used[base] = max(count, used.get(base, 0))
        try:
            self._blocks.adopt(used.items(), changed)
        except ValueError:
            # Not written by us. Nothing there is kept.
            self._blocks = Blocks(self.maps.capacity.slots, self._now)
            passing = layout.word(0, 0, PASS)
            for number in self.numbers.values():
                self.maps.words[2 * number] = self.maps.words[2 * number + 1] = passing

    def _blocks_of(self, number: int) -> set[tuple[int, int]]:
        """The blocks of a port: base and number of slots."""
        found = set()
        for index in (2 * number, 2 * number + 1):
            base, count, _ = layout.parts(self.maps.words[index])
            if count:
                found.add((base, count))
        return found

    def _change(self, number: int, old: PortPlan | None, port: PortPlan) -> None:
        """Makes the words of a port what its plan is; `old` is what they are."""
        words = self.compiler.words(port)
        before = self.compiler.words(old) if old is not None else None
        if before == words and old is not None and old.affinity == port.affinity:
            return
        self._write(number, words, 1_000_000_000 * port.affinity, before)

    def _correct(self, number: int, needed: PortFronts, members: Collection[bytes]) -> set[bytes]:
        """Makes the words of a port what is needed; returns the members it needs."""
        found: set[bytes] = set()
        right = self.maps.timeouts[number] == needed.timeout
        for index, each in enumerate(needed.words, 2 * number):
            base, count, flags = layout.parts(self.maps.words[index])
            right = right and (count, flags) == (len(each.endpoints), each.flags)
            if each.flags & STICKY:
                found |= {self._member(index, slot) for slot in self._slot_bytes(each.endpoints)}
            if right and count:
                right = self._bytes_at(base, count) == self._block(each.endpoints).tobytes()
        if not found <= set(members):
            self.maps.members.put([(key, _NO_COUNT) for key in found if key not in members])
        if not right:
            self._write(number, needed.words, needed.timeout, None, members=False)
        return found

    def _write(
        self,
        number: int,
        words: tuple[WordPlan, WordPlan],
        timeout: int,
        before: tuple[WordPlan, WordPlan] | None,
        *,
        members: bool = True,
    ) -> None:
        """Writes new blocks, then the words; then the old blocks are free."""
        maps = self.maps
        internal, external = words
        blocks = self._blocks_of(number)
        bases: dict[tuple[Endpoint, ...], int] = {(): 0}
        for each in words:
            if each.endpoints not in bases:
                bases[each.endpoints] = self._write_block(each.endpoints)
        if maps.timeouts[number] != timeout:
            maps.timeouts[number] = timeout
        sticky = members and (timeout or (before is not None and any(w.flags & STICKY for w in before)))
        gone = self._add_members(number, words, before) if sticky else ()
        maps.words[2 * number] = layout.word(
            bases[internal.endpoints], len(internal.endpoints), internal.flags
        )
        maps.words[2 * number + 1] = layout.word(
            bases[external.endpoints], len(external.endpoints), external.flags
        )
        if gone:
            maps.members.delete(gone)
        for base, count in blocks:
            self._blocks.give(base, count)

    def _add_members(
        self, number: int, words: tuple[WordPlan, WordPlan], before: tuple[WordPlan, WordPlan] | None
    ) -> set[bytes]:
        """Adds members that are new; returns those that are not needed any more."""
        old: set[bytes] = set()
        new: set[bytes] = set()
        for found, pair in ((old, before or ()), (new, words)):
            for index, each in enumerate(pair, 2 * number):
                if each.flags & STICKY:
                    found |= {self._member(index, slot) for slot in self._slot_bytes(each.endpoints)}
        if new - old:
            self.maps.members.put([(key, _NO_COUNT) for key in new - old])
        return old - new

    def _write_block(self, endpoints: tuple[Endpoint, ...]) -> int:
        count = len(endpoints)
        base = self._blocks.take(count)
        size = self.maps.layout.slot_words
        self.maps.slots[base * size : (base + count) * size] = memoryview(self._block(endpoints))
        self.maps.counts[base : base + count] = memoryview(array("Q", bytes(8 * count)))
        return base

    def _block(self, endpoints: tuple[Endpoint, ...]) -> "array[int]":
        """The words of a block."""
        slot = layout.slot
        if self._ipv4:
            return array("Q", [slot(each.address, each.port)[0] for each in endpoints])
        return array("Q", [word for each in endpoints for word in slot(each.address, each.port)])

    def _slot_bytes(self, endpoints: Iterable[Endpoint]) -> list[bytes]:
        return [layout.slot_bytes(layout.slot(each.address, each.port)) for each in endpoints]

    def _bytes_at(self, base: int, count: int) -> bytes:
        """The slots of a block."""
        size = self.maps.layout.slot_words
        return self.maps.slots[base * size : (base + count) * size].tobytes()

    def _member(self, index: int, slot: bytes) -> bytes:
        return layout.member(index, slot, self.maps.layout.family)

    # Hash maps

    def _put(self, table: HashTable, held: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> None:
        changed = [(key, value) for key, value in wanted.items() if held.get(key) != value]
        if changed:
            table.put(changed)

    def _delete(self, fronts: Mapping[bytes, int]) -> None:
        """Deletes fronts of ports, unless another Service has them by now."""
        for key, number in fronts.items():
            value = self.maps.fronts.get(key)
            if value is not None and layout.index_of(value) >> 1 in {number, PASSING}:
                self.maps.fronts.delete([key])

    def _hosts(self) -> None:
        wanted = {key: flags.to_bytes(4, "little") for key, flags in self.compiler.hosts().items()}
        held = dict(self.maps.hosts.items())
        self._put(self.maps.hosts, held, wanted)
        self.maps.hosts.delete([key for key in held if key not in wanted])


def needed(plans: Iterable[ServicePlan], compiler: FrontCompiler) -> Capacity:
    """What the maps must hold for some plans, at least."""
    fronts = ports = slots = members = largest = 0
    for plan in plans:
        for port in compiler.ports(plan):
            addresses = len(port.external_ips) + len(port.load_balancer_ips)
            fronts += addresses + bool(port.node_port) + bool(port.cluster_ip)
            ports += 1
            internal, external = compiler.words(port)
            slots += len(internal.endpoints)
            if external.endpoints != internal.endpoints:
                slots += len(external.endpoints)
            largest = max(largest, len(internal.endpoints) + len(external.endpoints))
            if port.affinity:
                members += len(internal.endpoints) + len(external.endpoints)
    return Capacity(fronts, ports + FIRST, slots + slots // 4 + 2 * largest, members, len(compiler.hosts()))


def _entries(number: int, fronts: Mapping[bytes, int]) -> dict[bytes, bytes]:
    """The elements of fronts."""
    return {
        key: layout.entry(key, 2 * PASSING if side == LEFT else 2 * number + side)
        for key, side in fronts.items()
    }


def _moved(old: PortPlan, port: PortPlan) -> bool:
    """Whether the fronts of a port differ."""
    return (
        old.cluster_ip != port.cluster_ip
        or old.port != port.port
        or old.node_port != port.node_port
        or old.external_ips != port.external_ips
        or old.load_balancer_ips != port.load_balancer_ips
        or bool(old.source_ranges) != bool(port.source_ranges)
        or bool(old.external_ranges) != bool(port.external_ranges)
        or old.at_connect != port.at_connect
    )
