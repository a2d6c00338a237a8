"""The tables of iptables as a value: the lines of `iptables-save`, and inputs of `iptables-restore`."""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import HeldState, KernelComparison, SyncError
from kubeproxy.backends.fake_tables import BUILTIN, FakeTables
from kubeproxy.backends.programs import Tables, Variant, by_table
from kubeproxy.backends.shared.compared import compared, flat

_UNREADABLE = "# Table "


class HeldRules(Struct, frozen=True, gc=False):
    """The tables of one family.

    Attributes:
        family: the family.
        variant: the variant of iptables.
        saved: the lines of `iptables-save`, without packet counters and comments.
        part: it is only what concerns some Services.
        numbers: of a part, the numbers of rules in their chains, counted from 1; each rule as "-t TABLE -A
            CHAIN RULE".
    """

    family: Family
    variant: Variant
    saved: tuple[str, ...]
    part: bool = False
    numbers: tuple[tuple[str, int], ...] = ()

    @property
    def empty(self) -> bool:
        """See `HeldState`: there are no rules, and no chains but the kernel's own."""
        return next(flat(self.saved), None) is None

    def lines(self) -> list[str]:
        """See `HeldState`."""
        return list(self.saved)

    def commands(self) -> list[str]:
        """See `HeldPart`."""
        return list(flat(self.saved))

    def in_memory(self) -> FakeTables:
        """Tables in memory that hold the same.

        Raises:
            SyncError: another program put into a table what the iptables programs cannot read.
        """
        if unreadable := [line for line in self.saved if line.startswith(_UNREADABLE)]:
            raise SyncError(f"what would change is not known: {unreadable[0].removeprefix('# ')}")
        tables = FakeTables(self.variant)
        tables.family = self.family
        for table, (chains, rules) in by_table(self.saved).items():
            held = tables.tables[table]
            held.update((chain, []) for chain in chains)
            for chain, rule in rules:
                held[chain].append(rule)
        tables.remember()
        tables.fingerprint()
        return tables


class RuleSteps(Struct, frozen=True, gc=False):
    """What is to be done to the tables.

    Attributes:
        inputs: the inputs of `iptables-restore --noflush` in their order, each with its table.
    """

    inputs: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.inputs)

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        return [line for table, text in self.inputs for line in input_lines(table, text)]

    def send(self, tables: Tables) -> None:
        """Executes the steps.

        Raises:
            InputRefusedError: an input was refused; those before it are done.
            SyncError: it could not be tried.
        """
        for table, text in self.inputs:
            tables.restore(table, [text])


def read(tables: Tables) -> HeldRules:
    """Reads the tables.

    Raises:
        SyncError: they could not be read.
    """
    return HeldRules(tables.family, tables.variant, tuple(_kept(tables.save())))


def as_rules(held: HeldState) -> HeldRules:
    """What `read` returned; anything else is a mistake of the caller."""
    assert isinstance(held, HeldRules)
    return held


def steps(tables: FakeTables) -> RuleSteps:
    """What was sent to tables in memory; inputs that change nothing are none."""
    return RuleSteps(tuple([(table, text) for table, text in tables.inputs if changes(text)]))


def compare(tables: FakeTables) -> KernelComparison:
    """Compares what tables of `HeldRules.in_memory` held with what is in them now."""
    was, now = tables.changed()
    return compared(lambda: _kept(was), lambda: _kept(now), steps(tables))


def declaration(chain: str) -> str:
    """The line of `iptables-save` for a chain."""
    return f":{chain} {'ACCEPT' if any(chain in chains for chains in BUILTIN.values()) else '-'}"


def changes(text: str) -> list[str]:
    """The lines of an input, without the command that only makes the program read it faster."""
    return [line for line in text.splitlines() if line != "-S"]


def _kept(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith(":"):
            yield line.partition(" [")[0]
        elif line[:1] != "#" or line.startswith(_UNREADABLE):
            yield line


def input_lines(table: str, text: str) -> list[str]:
    """An input of `iptables-restore`."""
    return [f"*{table}", *changes(text), "COMMIT"]
