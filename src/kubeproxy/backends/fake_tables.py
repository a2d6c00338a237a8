"""Tables in memory: `iptables-restore` and `iptables-save` without a kernel.

Tested against the real programs: the same input must give the same output. It understands what we send (-A,
-I, -D, -X, chain declarations) in the syntax `iptables-save` prints, checks that jumps find their chain and
that no referenced chain is deleted, and applies an input completely or not at all. It knows nothing of what a
rule means.
"""

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
        inputs: table and text of every input that was restored, for tests.
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
        work = {chain: list(rules) for chain, rules in self.tables[table].items()}
        for number, line in enumerate(text.splitlines(), 1):
            if (refused := self.refuse(line)) is not None:
                raise InputRefusedError(f"iptables-restore: line {number} failed: {refused}", number)
            try:
                _apply(work, line)
            except (KeyError, ValueError, IndexError) as e:
                raise InputRefusedError(f"iptables-restore: line {number} failed: {e}: {line}", number) from e
        self.tables[table] = work
        self._last = self._sizes()


def _apply(chains: dict[str, list[str]], line: str) -> None:
    if line.startswith(":"):
        chains[line[1:].split(" ", maxsplit=1)[0]] = []
        return
    if line == "-S":
        return
    verb, chain, *rest = line.split(" ", 2)
    if verb == "-X":
        _unused(chains, chain)
        del chains[chain]
        return
    (rule,) = rest
    rules = chains[chain]
    if verb == "-D":
        rules.remove(rule)
        return
    to = target(rule)
    if to and to not in chains and to not in _TARGETS:
        raise KeyError(f"no chain or target {to}")
    rules.insert(len(rules) if verb == "-A" else {"-I": 0}[verb], rule)


def _unused(chains: dict[str, list[str]], chain: str) -> None:
    if chains[chain]:
        raise ValueError(f"chain {chain} is not empty")
    if any(target(rule) == chain for rules in chains.values() for rule in rules):
        raise ValueError(f"chain {chain} is in use")
