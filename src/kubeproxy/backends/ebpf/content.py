"""Keeps the maps of a family equal to plans.

Blocks are written before the words that name them, words before the fronts that lead to them; what is not
needed any more is removed in the reverse order. So a program finds the old state or the new one of each
front, and a process that is killed in between leaves nothing that a `load` does not correct.

Nothing is kept in memory but the number of each Service port: what a word was is in the word.
"""

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Final

from kubeproxy.backends.base import Change
from kubeproxy.backends.ebpf import layout
from kubeproxy.backends.ebpf.blocks import Blocks
from kubeproxy.backends.ebpf.compile import BOTH_PASSED, LEFT, FrontCompiler, PortFronts, WordPlan, timeout
from kubeproxy.backends.ebpf.edits import Ends, edit
from kubeproxy.backends.ebpf.layout import BLOCK, COUNT, FLAGS, ONE, PASS, PASSING, STICKY
from kubeproxy.backends.ebpf.numbers import Numbers
from kubeproxy.backends.ebpf.tables import FrontMaps, HashTable
from kubeproxy.linux.bpf.maps import WORD
from kubeproxy.model.plan import PortId, PortPlan

_NO_COUNT: Final = bytes(8)
_PASSES: Final = layout.word(0, 0, PASS)

Words = tuple[WordPlan, WordPlan]


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
        numbers: Mapping[PortId, int] | None = None,
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
        self.numbers = Numbers(maps.capacity.ports, now, numbers or {})
        self._now = now
        self._family = maps.layout.family
        self._editable = maps.layout.slot == WORD
        self._blocks = Blocks(maps.capacity.slots, now)

    def load(self, wanted: Mapping[PortId, PortFronts], changed: float) -> None:
        """Makes the maps what Service ports need, whatever they hold.

        Args:
            wanted: what each port needs.
            changed: when the maps were last changed, by the clock.

        Raises:
            FullError: they cannot hold it.
            OSError: the kernel refused.
        """
        maps = self.maps
        if maps.words[2 * PASSING] != _PASSES:
            maps.words[2 * PASSING] = _PASSES
        held = dict(maps.fronts.items())
        self._number(wanted, held, changed)
        members = {key for key, _ in maps.members.items()}
        kept: set[bytes] = set()
        fronts: dict[bytes, int] = {}
        for name, needed in wanted.items():
            number = self.numbers.of[name]
            if needed.timeout:
                kept |= self._add_members(number, needed.words, members)
            if not self._is_right(number, needed):
                self._write(number, needed.words, needed.timeout)
            for key, side in needed.fronts.items():
                fronts[key] = _index(number, side)
        entries = layout.entries(list(fronts), list(fronts.values()))
        _put(maps.fronts, held, entries)
        maps.fronts.delete([key for key in held if key not in entries])
        maps.members.delete(members - kept)
        self._hosts()

    def apply(self, changes: Sequence[Change]) -> None:
        """Makes the maps what the plans of some Services are now.

        Raises:
            FullError: there is no room; the next call must be `load`, on larger maps.
            OSError: the kernel refused; the next call must be `load`.
        """
        put: dict[bytes, int] = {}
        gone: dict[bytes, int] = {}
        ended: list[PortId] = []
        for change in changes:
            if not self._keeps_fronts(change):
                self._replace(change, put, gone, ended)
        if put:
            self.maps.fronts.put(layout.entries(list(put), list(put.values())).items())
        if gone:
            self._delete({key: number for key, number in gone.items() if key not in put})
        for name in ended:
            self._end(name)

    def _keeps_fronts(self, change: Change) -> bool:
        """Changes the words of a Service, unless fronts change, too; this is what happens most often."""
        before, after = change.before, change.after
        if before is None or after is None or len(before.ports) != len(after.ports):
            return False
        if any(map(_moved, before.ports, after.ports)):
            return False
        for old, new in zip(before.ports, after.ports, strict=True):
            if new.protocol in layout.PROTOCOLS:
                self._change(self.numbers.of[new.name, new.protocol], old, new)
        return True

    def _replace(
        self, change: Change, put: dict[bytes, int], gone: dict[bytes, int], ended: list[PortId]
    ) -> None:
        """Changes the words of a Service; adds the fronts to be set and deleted, and ports without any."""
        compiler = self.compiler
        olds = {(port.name, port.protocol): port for port in compiler.ports(change.before)}
        for port in compiler.ports(change.after):
            name = port.name, port.protocol
            old = olds.pop(name, None)
            number = self.numbers.of.get(name)
            if number is None:
                number = self._take_number(name)
            self._change(number, old, port)
            if old is None or _moved(old, port):
                put.update({key: _index(number, side) for key, side in compiler.fronts(port).items()})
                if old is not None:
                    gone.update(dict.fromkeys(compiler.fronts(old), number))
        for name, old in olds.items():
            gone.update(dict.fromkeys(compiler.fronts(old), self.numbers.of[name]))
            ended.append(name)

    # Numbers

    def _number(
        self, wanted: Mapping[PortId, PortFronts], held: Mapping[bytes, bytes], changed: float
    ) -> None:
        """Gives each port a number, and finds out which slots are in use by the words there are."""
        self.numbers.adopt(wanted, held)
        numbers = self.numbers.of
        self._adopt_blocks(changed)
        if len(numbers) < len(wanted):
            for name in wanted:
                if name not in numbers:
                    self._take_number(name)

    def _take_number(self, name: PortId) -> int:
        number = self.numbers.take(name)
        words = self.maps.words
        words[2 * number] = words[2 * number + 1] = _PASSES
        return number

    def _end(self, name: PortId) -> None:
        """A port has no fronts any more."""
        number = self.numbers.of[name]
        words = self.maps.words
        for index in (2 * number, 2 * number + 1):
            base, count, flags = layout.parts(words[index])
            if flags & STICKY:
                slots = self.maps.endpoints(base, count)
                self.maps.members.delete([self._member(index, each) for each in slots])
        before = words[2 * number], words[2 * number + 1]
        words[2 * number] = words[2 * number + 1] = _PASSES
        self._give_blocks(*before)
        self.numbers.give(name)

    # Words and blocks

    def _adopt_blocks(self, changed: float) -> None:
        """Words that cannot be right are set to pass."""
        words = self.maps.words
        self._blocks = Blocks(self.maps.capacity.slots, self._now)
        used: dict[int, int] = {}
        for number in self.numbers.of.values():
            for index in (2 * number, 2 * number + 1):
                base, count, _ = layout.parts(words[index])
                if count:
                    used[base] = max(count, used.get(base, 0))
        try:
            self._blocks.adopt(used.items(), changed)
        except ValueError:
            # Not written by us. Nothing there is kept.
            self._blocks = Blocks(self.maps.capacity.slots, self._now)
            for number in self.numbers.of.values():
                words[2 * number] = words[2 * number + 1] = _PASSES

    def _give_blocks(self, internal: int, external: int) -> None:
        """The blocks of two words are not used any more; both may have the same one."""
        first, inside, _ = layout.parts(internal)
        second, outside, _ = layout.parts(external)
        if inside and outside and first == second:
            self._blocks.give(first, max(inside, outside))
            return
        if inside:
            self._blocks.give(first, inside)
        if outside:
            self._blocks.give(second, outside)

    def _change(self, number: int, old: PortPlan | None, port: PortPlan) -> None:
        """Makes the words of a port what its plan is; `old` is what they are."""
        words = self.compiler.words(port)
        if port.affinity or (old is not None and old.affinity):
            held = self._members(number, self.compiler.words(old) if old is not None else BOTH_PASSED)
            gone = held - self._add_members(number, words, held)
            self._write(number, words, timeout(port))
            self.maps.members.delete(gone)
        elif old is None or (
            not (self._editable and self._edit(number, old, words)) and self.compiler.words(old) != words
        ):
            self._write(number, words, 0)

    def _edit(self, number: int, old: PortPlan, words: Words) -> bool:
        """Changes the block of a port where it is, if a single store is enough; returns whether it was."""
        internal, external = words
        before, after = old.internal_endpoints, internal.endpoints
        maps, at = self.maps, 2 * number
        there = maps.words
        first, second = there[at], there[at + 1]
        if first >> FLAGS != internal.flags or second >> FLAGS != external.flags:
            return False
        shared = second & COUNT
        # Two blocks are not changed at once. Without weights an endpoint has one slot.
        if (shared and (first ^ second) & BLOCK) or external.endpoints != (after if shared else ()):
            return False
        if old.cluster_distribution is not None or old.local_distribution is not None:
            return False
        found = edit(maps, first, before, after)
        if found is None:
            return False
        slot, value = found
        maps.counts[slot] = 0
        maps.cells[slot] = value
        if more := len(after) - len(before):
            there[at] = first + more * ONE
            if shared:
                there[at + 1] = second + more * ONE
        return True

    def _is_right(self, number: int, needed: PortFronts) -> bool:
        """Whether the words of a port, and their blocks, are what is needed."""
        maps = self.maps
        for index, each in enumerate(needed.words, 2 * number):
            base, count, flags = layout.parts(maps.words[index])
            if count != len(each.endpoints) or flags != each.flags:
                return False
            wanted = layout.block(each.endpoints, self._family)
            if maps.block(base, count) != wanted and sorted(maps.endpoints(base, count)) != sorted(
                maps.split(wanted)
            ):
                return False
        return maps.timeouts[number] == needed.timeout

    def _write(self, number: int, words: Words, timeout: int) -> None:
        """Writes new blocks, then the words; then the old blocks are free."""
        maps, at = self.maps, 2 * number
        there = maps.words
        before = there[at], there[at + 1]
        internal, external = words
        inside = outside = 0
        if internal.endpoints:
            inside = self._write_block(internal.endpoints)
        if external.endpoints:
            shared = external.endpoints == internal.endpoints
            outside = inside if shared else self._write_block(external.endpoints)
        if maps.timeouts[number] != timeout:
            maps.timeouts[number] = timeout
        there[at] = layout.word(inside, len(internal.endpoints), internal.flags)
        there[at + 1] = layout.word(outside, len(external.endpoints), external.flags)
        self._give_blocks(*before)

    def _write_block(self, endpoints: Ends) -> int:
        maps, count = self.maps, len(endpoints)
        base, size = self._blocks.take(count), maps.layout.slot
        maps.slots[base * size : (base + count) * size] = layout.block(endpoints, self._family)
        maps.counts[base : base + count] = _zeros(count)
        return base

    # Members

    def _add_members(self, number: int, words: Words, held: Collection[bytes]) -> set[bytes]:
        """Adds the members of two words that there are not; returns those that there must be."""
        found = self._members(number, words)
        if new := [(key, _NO_COUNT) for key in found if key not in held]:
            self.maps.members.put(new)
        return found

    def _members(self, number: int, words: Words) -> set[bytes]:
        """The members of two words."""
        found = set()
        for index, each in enumerate(words, 2 * number):
            if each.flags & STICKY:
                slots = self.maps.split(layout.block(each.endpoints, self._family))
                found |= {self._member(index, slot) for slot in slots}
        return found

    def _member(self, index: int, slot: bytes) -> bytes:
        return layout.member(index, slot, self._family)

    # Hash maps

    def _delete(self, fronts: Mapping[bytes, int]) -> None:
        """Deletes fronts of ports, unless another Service has them by now."""
        for key, number in fronts.items():
            value = self.maps.fronts.get(key)
            if value is not None and layout.index_of(value) >> 1 in {number, PASSING}:
                self.maps.fronts.delete([key])

    def _hosts(self) -> None:
        wanted = {key: flags.to_bytes(4, "little") for key, flags in self.compiler.hosts().items()}
        held = dict(self.maps.hosts.items())
        _put(self.maps.hosts, held, wanted)
        self.maps.hosts.delete([key for key in held if key not in wanted])


@lru_cache(maxsize=256)
def _zeros(count: int) -> memoryview:
    return memoryview(array("Q", bytes(8 * count)))


def _put(table: HashTable, held: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> None:
    """Sets what is not so already."""
    changed = (
        [(key, value) for key, value in wanted.items() if held.get(key) != value] if held else wanted.items()
    )
    if changed:
        table.put(changed)


def _index(number: int, side: int) -> int:
    """The index of the word that a front of a port leads to."""
    return 2 * PASSING if side == LEFT else 2 * number + side


def _moved(old: PortPlan, port: PortPlan) -> bool:
    """Whether the fronts of a port differ, or it is another one."""
    return (
        old.name != port.name
        or old.protocol != port.protocol
        or old.cluster_ip != port.cluster_ip
        or old.port != port.port
        or old.node_port != port.node_port
        or old.external_ips != port.external_ips
        or old.load_balancer_ips != port.load_balancer_ips
        or (not old.source_ranges) != (not port.source_ranges)
        or (not old.external_ranges) != (not port.external_ranges)
        or old.at_connect != port.at_connect
    )
