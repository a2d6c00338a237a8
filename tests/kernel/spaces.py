"""iptables in a bare namespace: the real tables of one variant and family, and the backend over them."""

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from kubeproxy.api.addresses import IPV4, Family
from kubeproxy.backends.fake_tables import BUILTIN, FakeTables
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.programs import TABLES, Programs, Variant
from kubeproxy.netlink import nfacct
from tests.fakes.cluster import NODE, NODE6, Proxy
from tests.lab import netns
from tests.machines import MACHINE

VARIANTS: tuple[Variant, ...] = ("legacy", "nf_tables")


class Real(Programs):
    """The real tables, which remember what was sent.

    Attributes:
        base: the program's name, e.g. "ip6tables-nft".
        inputs: the inputs since somebody cleared them: table and lines.
    """

    def __init__(self, family: Family, variant: Variant) -> None:
        self.base = (
            f"{'iptables' if family == IPV4 else 'ip6tables'}-{'nft' if variant == 'nf_tables' else variant}"
        )
        self.inputs: list[tuple[str, list[str]]] = []
        super().__init__(MACHINE, family, f"{self.base}-save", f"{self.base}-restore", variant)

    def restore(self, table: str, lines: Iterable[str]) -> None:
        """See `Tables`."""

        def seen() -> Iterator[str]:
            for line in lines:
                self.inputs[-1][1].extend(line.splitlines())
                yield line

        self.inputs.append((table, []))
        super().restore(table, seen())

    def run(self, *arguments: str) -> str:
        """Runs the program itself, e.g. with "-t", "nat", "-F"."""
        return subprocess.run(
            [self.base, "-w", "60", *arguments], check=True, capture_output=True, text=True
        ).stdout

    def lines(self) -> set[str]:
        """What is there, without the time of day."""
        return {line for line in self.save() if not line.startswith("#")}

    def counted(self) -> str:
        """What is there, with packet counters."""
        saved = subprocess.run([f"{self.base}-save", "-c"], check=True, capture_output=True, text=True).stdout
        return "".join(line for line in saved.splitlines(keepends=True) if not line.startswith("#"))

    def rules(self) -> dict[str, dict[str, list[str]]]:
        """What is there: table -> chain -> rules, as `FakeTables` has it."""
        found: dict[str, dict[str, list[str]]] = {
            table: {chain: [] for chain in chains} for table, chains in BUILTIN.items()
        }
        table = ""
        for line in self.save():
            if line.startswith("*"):
                table = line[1:]
            elif table in TABLES and line.startswith(":"):
                found[table][line[1:].split(" ")[0]] = []
            elif table in TABLES and line.startswith("-A "):
                chain, _, rule = line[3:].partition(" ")
                found[table][chain].append(rule)
        return found

    def copy(self) -> FakeTables:
        """The same in memory."""
        fake = FakeTables(self.variant)
        fake.tables = self.rules()
        return fake


class Space:
    """A namespace under one family and variant; everything here must be called from inside it, see `inside`."""

    def __init__(self, name: str, family: Family = IPV4, variant: Variant = "legacy") -> None:
        self.name = name
        self.tables = Real(family, variant)
        self.node = NODE if family == IPV4 else NODE6
        with netns.inside(name):
            for counter in (names.INVALID_COUNTER, names.LOCALHOST_COUNTER):
                nfacct.ensure(MACHINE, counter)

    def proxy(self) -> Proxy:
        """A new run over what is there."""
        self.tables.inputs.clear()
        return Proxy(IPTablesDriver(self.tables, counters=True, drop_invalid=True), self.node)


def use_variant(monkeypatch: pytest.MonkeyPatch, folder: Path, variant: Variant) -> None:
    """Only the iptables programs of one variant are in PATH, and under their plain names, as on most nodes."""
    multi = shutil.which(f"xtables-{'nft' if variant == 'nf_tables' else variant}-multi")
    assert multi is not None
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for family in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            (programs / f"{family}{verb}").unlink(missing_ok=True)
            (programs / f"{family}{verb}").symlink_to(multi)
    monkeypatch.setenv("PATH", str(programs))
