"""The rules of other modes, and of the other variant of iptables, that a start removes."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from kubeproxy import backends
from kubeproxy.api.addresses import Family
from kubeproxy.backends import programs
from kubeproxy.backends.base import ByPrograms, Comparable, HeldState, UnsupportedError
from kubeproxy.backends.mode import Mode
from kubeproxy.backends.programs import Variant
from kubeproxy.backends.shared import held_rules
from kubeproxy.backends.shared.held_rules import HeldRules
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


def removed(
    machine: Machine, chosen: Mode, nodes: Sequence[NodeConfig], read: Mapping[Family, HeldState]
) -> list[RemovedRules]:
    """Reads what a start in a mode removes.

    Args:
        machine: this host.
        chosen: the mode.
        nodes: the node under each family.
        read: what was already read of the mode itself, under each family.

    Raises:
        OSError, SyncError, UnsupportedError: the kernel cannot be read.
    """
    if not chosen.replaces:
        return []
    others = [backends.mode(name) for name in chosen.replaces]
    assert chosen.reader is not None
    own = asyncio.run(_variants(machine, chosen, nodes))
    known = {(each.family, each.variant): each for each in read.values() if isinstance(each, HeldRules)}
    found = [*_tables(machine, chosen, others, own, known)]
    for mode in others:
        if mode.reader is None or mode.serves is None or not mode.serves(machine):
            continue
        for node in nodes:
            try:
                lines = asyncio.run(_held(mode.reader(machine, node, None)))
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
        driver = chosen.reader(machine, node, None)
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


def _tables(
    machine: Machine,
    chosen: Mode,
    others: Sequence[Mode],
    own: set[str],
    known: Mapping[tuple[Family, Variant], HeldRules],
) -> Iterator[RemovedRules]:
    for _, tables in programs.installed(machine):
        variant = tables.variant
        held = known.get((tables.family, variant)) or held_rules.read(tables)
        for mode in others if not own or variant in own else [chosen, *others]:
            if mode.clean_tables is not None and (lines := _cleaned(held, mode)):
                yield RemovedRules(f"{mode.name} mode ({variant} iptables)", tables.family, lines)


def _cleaned(held: HeldRules, mode: Mode) -> Sequence[str]:
    """What cleaning up removes from tables, found on a copy in memory."""
    copy = held.in_memory()
    assert mode.clean_tables is not None
    mode.clean_tables(copy)
    return held_rules.compare(copy).foreign
