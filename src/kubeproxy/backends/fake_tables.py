"""Tables in memory: `iptables-restore` and `iptables-save` without a kernel.

Tested against the real programs: the same input must give the same output. It understands what we send (-A,
-I, -D, -X, chain declarations) in the syntax `iptables-save` prints, checks that jumps find their chain and
that no referenced chain is deleted, and applies an input completely or not at all. It knows nothing of what a
rule means.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from kubeproxy.api.addresses import IPV4, Family
from kubeproxy.backends.programs import FILTER, MANGLE, NAT, InputRefusedError, Variant, target
from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine

BUILTIN = {
    MANGLE: ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    NAT: ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    FILTER: ("INPUT", "FORWARD", "OUTPUT"),
}
_TARGETS = {"ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "MASQUERADE", "DNAT"}


class FakeTables:
    """The tables of one family.

    Attributes:
        tables: chain -> rules without their "-A CHAIN", for each table.
        inputs: table and text of every input that was restored.
        before: the tables before the first input, as `remember` found them.
        refuse: called with each line; a string it returns is the error message of a refusal.
        others: how many times another program changed the tables, which the nf_tables variant reports.
    """

    def __init__(self, variant: Variant = "legacy") -> None:
        self.machine: Machine = FakeMachine()
        self.family: Family = IPV4
        self.variant: Variant = variant
        self.tables: dict[str, dict[str, list[str]]] = {
            t: {c: [] for c in chains} for t, chains in BUILTIN.items()
        }
        self.before: dict[str, dict[str, list[str]]] = {}
        self.others = 0
        self._last = self._sizes()
        self.inputs: list[tuple[str, str]] = []
        self.refuse: Callable[[str], str | None] = lambda _: None

    def wrote(self, process: int) -> bool:  # noqa: ARG002 see `Tables`
        """See `Tables`. No process is needed."""
        return False

    def fingerprint(self) -> object:
        """See `Tables`."""
        sizes = self._sizes()
        if self.variant == "legacy":
            return sizes
        if sizes != self._last:
            self._last = sizes
            self.others += 1
        return self.others

    def _sizes(self) -> list[int]:
        return [len(rules) for chains in self.tables.values() for rules in chains.values()]

    def entries(self) -> Mapping[str, int]:
        """See `Tables`."""
        if self.variant == "nf_tables":
            return {}
        return {
            table: 2 * len(chains) + sum(map(len, chains.values())) for table, chains in self.tables.items()
        }

    def save(self) -> Iterator[str]:
        """See `Tables`."""
        for table, chains in self.tables.items():
            yield f"*{table}"
            for chain in chains:
                yield f":{chain} {'ACCEPT' if chain in BUILTIN[table] else '-'} [0:0]"
            for chain, rules in chains.items():
                for rule in rules:
                    yield f"-A {chain} {rule}".rstrip()
            yield "COMMIT"

    def chain(self, table: str, chain: str) -> list[str] | None:
        """See `Tables`."""
        rules = self.tables[table].get(chain)
        return None if rules is None else list(rules)

    def has(self, table: str, chain: str, rule: str) -> bool:
        """See `Tables`."""
        return rule in self.tables[table].get(chain, ())

    def restore(self, table: str, lines: Iterable[str]) -> None:
        """See `Tables`."""
        text = "".join(lines)
        self.inputs.append((table, text))
        self.fingerprint()
        work = _Work(self.tables[table])
        for number, line in enumerate(text.splitlines(), 1):
            if (refused := self.refuse(line)) is not None:
                raise InputRefusedError(f"iptables-restore: line {number} failed: {refused}", number)
            try:
                work.apply(line)
            except (KeyError, ValueError, IndexError) as e:
                raise InputRefusedError(f"iptables-restore: line {number} failed: {e}: {line}", number) from e
        self.tables[table] = work.chains
        self._last = self._sizes()

    def remember(self) -> None:
        """Remembers what is there as `before`. A chain that no input changes stays the same list."""
        self.before = {table: dict(chains) for table, chains in self.tables.items()}

    def changed(self) -> tuple[list[str], list[str]]:
        """The lines that `save` prints of the chains that inputs changed: as they were, and as they are."""
        was: list[str] = []
        now: list[str] = []
        for table, before in self.before.items():
            after = self.tables[table]
            for lines, chains, others in ((was, before, after), (now, after, before)):
                lines.append(f"*{table}")
                for chain, rules in chains.items():
                    if others.get(chain) is not rules:
                        lines.append(f":{chain} {'ACCEPT' if chain in BUILTIN[table] else '-'} [0:0]")
                        lines += [f"-A {chain} {rule}".rstrip() for rule in rules]
                lines.append("COMMIT")
        return was, now


class _Work:
    """A table while an input is applied: a chain is copied when it changes first."""

    def __init__(self, chains: Mapping[str, list[str]]) -> None:
        self.chains = dict(chains)
        self._copied: set[str] = set()
        self._uses: Counter[str] | None = None  # what rules lead to; counted when a chain is deleted first

    def apply(self, line: str) -> None:
        """Applies one line of an input.

        Raises:
            KeyError, ValueError, IndexError: the program would refuse it.
        """
        if line.startswith(":"):
            self._declare(line[1:].split(" ", maxsplit=1)[0])
            return
        if line == "-S":
            return
        verb, chain, *rest = line.split(" ", 2)
        if verb == "-X":
            self._delete(chain)
            return
        (rule,) = rest
        rules = self._rules(chain)
        to = target(rule)
        if verb == "-D":
            rules.remove(rule)
            self._count(to, -1)
            return
        if to and to not in self.chains and to not in _TARGETS:
            raise KeyError(f"no chain or target {to}")
        rules.insert(len(rules) if verb == "-A" else {"-I": 0}[verb], rule)
        self._count(to, 1)

    def _rules(self, chain: str) -> list[str]:
        """The rules of a chain, to be changed."""
        if chain not in self._copied:
            self.chains[chain] = list(self.chains[chain])
            self._copied.add(chain)
        return self.chains[chain]

    def _declare(self, chain: str) -> None:
        for rule in self.chains.get(chain, ()) if self._uses is not None else ():
            self._count(target(rule), -1)
        self.chains[chain] = []
        self._copied.add(chain)

    def _delete(self, chain: str) -> None:
        if self.chains[chain]:
            raise ValueError(f"chain {chain} is not empty")
        if self._uses is None:
            self._uses = Counter(target(rule) for rules in self.chains.values() for rule in rules)
        if self._uses[chain]:
            raise ValueError(f"chain {chain} is in use")
        del self.chains[chain]

    def _count(self, to: str, change: int) -> None:
        if self._uses is not None:
            self._uses[to] += change
