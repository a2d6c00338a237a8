"""The rules of other modes, and of the other variant of iptables, that a start removes."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from kubeproxy import backends
from kubeproxy.api.addresses import Family
from kubeproxy.backends import programs
from kubeproxy.backends.base import ByPrograms, Comparable, UnsupportedError
from kubeproxy.backends.mode import Mode
from kubeproxy.backends.programs import Tables
from kubeproxy.backends.shared import held_rules
from kubeproxy.backends.shared.compared import flat
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig


class RemovedRules(Struct, frozen=True, gc=False, rename="camel"):
    """Rules that are removed.

    Attributes:
        what: whose they are, e.g. "nftables mode".
        family: the IP family.
        lines: each piece, in the syntax of the system's own tools.
    """

    what: str
    family: Family
    lines: Sequence[str]


def removed(machine: Machine, chosen: Mode, nodes: Sequence[NodeConfig]) -> list[RemovedRules]:
    """Reads what a start in a mode removes.

    Args:
        machine: this host.
        chosen: the mode.
        nodes: the node under each family.

    Raises:
        OSError, SyncError, UnsupportedError: the kernel cannot be read.
    """
    if not chosen.replaces:
        return []
    others = [backends.mode(name) for name in chosen.replaces]
    assert chosen.reader is not None
    own = asyncio.run(_variants(machine, chosen, nodes))
    found = [*_tables(machine, chosen, others, own)]
    for mode in others:
        if mode.reader is None or mode.serves is None or not mode.serves(machine):
            continue
        for node in nodes:
            try:
                lines = asyncio.run(_held(mode.reader(machine, node)))
            except UnsupportedError:
                continue
            if lines:
                found.append(RemovedRules(f"{mode.name} mode", node.family, lines))
    return found


async def _variants(machine: Machine, chosen: Mode, nodes: Sequence[NodeConfig]) -> set[str]:
    """The variants of iptables that the mode's rules are in."""
    found: set[str] = set()
    for node in nodes:
        assert chosen.reader is not None
        driver = chosen.reader(machine, node)
        if isinstance(driver, ByPrograms):
            found.add(driver.variant)
        await driver.close()
    return found


async def _held(driver: Comparable) -> list[str]:
    """What a mode holds apart from rules of iptables, which are looked at by `_tables`."""
    try:
        held = await driver.read()
        return [line for line in held.commands() if not line.startswith("-t ")]  # type: ignore[attr-defined]
    finally:
        await driver.close()


def _tables(machine: Machine, chosen: Mode, others: Sequence[Mode], own: set[str]) -> Iterator[RemovedRules]:
    for _, tables in programs.installed(machine):
        variant = tables.variant
        modes = others if not own or variant in own else [chosen, *others]
        for mode in modes:
            if mode.clean_tables is not None and (lines := _cleaned(tables, [mode])):
                yield RemovedRules(f"{mode.name} mode ({variant} iptables)", tables.family, lines)


def _cleaned(tables: Tables, modes: Iterable[Mode]) -> list[str]:
    """What cleaning up removes from tables, found on a copy in memory."""
    held = held_rules.read(tables)
    copy = held.in_memory()
    for mode in modes:
        if mode.clean_tables is not None:
            mode.clean_tables(copy)
    after = held_rules.read(copy)
    return list((Counter(flat(held.lines())) - Counter(flat(after.lines()))).elements())
