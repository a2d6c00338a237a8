"""What `iptables-save` prints, line by line."""

from collections.abc import Iterable, Iterator


def parse(lines: Iterable[str]) -> Iterator[tuple[str, str, str | None]]:
    """The chains and rules.

    Yields:
        Table, chain, and the rule without its "-A CHAIN"; None for a rule where the chain is declared.
    """
    table = ""
    for line in lines:
        if line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            yield table, chain, rule
        elif line.startswith(":"):
            yield table, line[1 : line.index(" ")], None
        elif line.startswith("*"):
            table = line[1:]
