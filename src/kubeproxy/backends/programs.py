"""The iptables programs: which to use, what they can do, and the two calls we make of them.

There are two kinds of programs for two mechanisms of the kernel, `legacy` (ip_tables) and `nf_tables`. Rules
must go where the kubelet and the network plugin have theirs; when both kinds are installed, the chains that
every kubelet makes (KEP-3178) show which that is. `fake_tables.FakeTables` stands in for them in tests and
dry runs.
"""

import itertools
import logging
import re
import socket
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, Protocol

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.backends.shared import saved
from kubeproxy.linux import run, xtables
from kubeproxy.log import V6
from kubeproxy.machine.base import Machine
from kubeproxy.netlink.nft import objects
from kubeproxy.netlink.nft.kernel import NftKernel, generation
from kubeproxy.netlink.nft.lookout import Lookout
from kubeproxy.netlink.nft.messages import IP, IP6, TableName

log = logging.getLogger(__name__)

MANGLE: Final = "mangle"
NAT: Final = "nat"
FILTER: Final = "filter"
TABLES: Final = (MANGLE, NAT, FILTER)

Variant = Literal["legacy", "nf_tables"]
VARIANTS: Final[tuple[Variant, ...]] = ("legacy", "nf_tables")

OLDEST: Final = (1, 6, 2)
"""The first release with `iptables-restore --wait` and `--random-fully`."""

_LOCK_SECONDS = 5
_REMEMBERED = 64
_RESOURCE_PROBLEM = 4
_BLOCK = 1 << 16
_KEPT_BLOCKS = 64
"""This much of an input is kept while it is written, so that an error message can quote the refused line."""

_QUOTED_CHARACTERS = 300
_VERSION = re.compile(r"v(\d+)\.(\d+)\.?(\d+)?(?:.*\((legacy|nf_tables)\))?")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_TARGET = re.compile(r"(?:^| )-[jg] (\S+)")
_LINE = re.compile(r"\bline:? (\d+)\b")
_KUBELET_CHAINS = frozenset({"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"})


class InputRefusedError(Exception):
    """The program or the kernel refused an input; nothing of it reached the kernel.

    Attributes:
        line: which line of the input was refused, from 1; 0 if that is not known.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def target(rule: str) -> str:
    """What a rule jumps or goes to, as `iptables-save` prints it; "" for nothing."""
    found = _TARGET.search(_QUOTED.sub("", rule) if '"' in rule else rule)
    return found[1] if found else ""


class Tables(Protocol):
    """The tables of one family."""

    machine: Machine
    family: Family
    variant: Variant

    def wrote(self, process: int) -> bool:
        """Whether a process is one that we ran recently to change tables."""

    def fingerprint(self) -> object:
        """A value that changes with the tables, as far as changes can be detected without reading them.

        Our own changes may change it as well. None if the kernel does not provide it.
        """

    def entries(self) -> Mapping[str, int]:
        """The number of rules of each table, where a chain counts as two.

        Empty if the kernel does not report it.
        """

    def save(self) -> Iterator[str]:
        """The lines `iptables-save` prints: all tables (to read one, the nf_tables variant reads them all).

        Raises:
            SyncError: the tables could not be read.
        """

    def chain(self, table: str, chain: str) -> list[str] | None:
        """The rules of one chain without their "-A CHAIN"; None if there is no such chain. Creates nothing.

        Raises:
            SyncError: it could not be read.
        """

    def has(self, table: str, chain: str, rule: str) -> bool:
        """Whether a rule is there, found without reading the table.

        Raises:
            SyncError: it could not be tried.
        """

    def restore(self, table: str, lines: Iterable[str]) -> None:
        """Changes a table as `iptables-restore --noflush` does, wholly or not at all.

        Args:
            table: the table.
            lines: what stands between "*TABLE" and "COMMIT"; each item is one or more whole lines.

        Raises:
            InputRefusedError: the input, or what it asks for, was refused.
            SyncError: it could not be tried.
        """


class Writer:
    """This process as a writer of the tables of one machine, of both families.

    Attributes:
        lock: the kernel takes one writer at a time: the legacy programs wait for each other, the others fail.
        transactions: how many times we changed the rules of nf_tables.
        processes: the numbers of the last programs we ran to do so.
        lookouts: sockets that must not receive notifications of what these programs do, because a table that
            is written at once is more than their buffers can hold.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.transactions = 0
        self.processes: deque[int] = deque(maxlen=_REMEMBERED)
        self.lookouts: tuple[weakref.ref[Lookout], ...] = ()

    def started(self, process: int) -> None:
        """A program was started that has done nothing yet."""
        self.processes.append(process)
        for reference in self.lookouts:
            if lookout := reference():
                lookout.ignore(process)


class Programs:
    """The tables through the programs in PATH."""

    def __init__(self, machine: Machine, family: Family, save: str, restore: str, variant: Variant) -> None:
        self.machine = machine
        self._we = machine.shared(Writer)
        self.variant: Variant = variant
        self.family: Family = family
        self._save = save
        self._restore = [restore, "-w", str(_LOCK_SECONDS), "--noflush"]

    def fingerprint(self) -> object:
        """See `Tables`."""
        if self.variant == "legacy":
            return self._sizes()
        try:
            # All families and tables have one generation. Our own transactions are subtracted, since they are
            # no drift.
            with self._we.lock:
                return generation(self.machine) - self._we.transactions
        except OSError as e:
            log.debug("Cannot detect whether the tables changed: %(err)s", {"err": e})
            return None

    def entries(self) -> Mapping[str, int]:
        """See `Tables`."""
        sizes = self._sizes() if self.variant == "legacy" else None
        return {table: entries for table, (entries, _) in sizes.items()} if sizes else {}

    def _sizes(self) -> dict[str, tuple[int, int]] | None:
        """Entries and bytes of each table; None if the kernel does not report them."""
        domain = socket.AF_INET if self.family == IPV4 else socket.AF_INET6
        try:
            return {table: xtables.table_size(self.machine, domain, table) for table in TABLES}
        except OSError as e:
            log.debug("Cannot detect whether the tables changed: %(err)s", {"err": e})
            return None

    def wrote(self, process: int) -> bool:
        """See `Tables`."""
        return process in self._we.processes

    def save(self) -> Iterator[str]:
        """See `Tables`."""
        try:
            yield from self.machine.lines([self._save])
        except (run.ProgramError, OSError) as e:
            raise SyncError(f"cannot read the tables: {e}") from e

    def nat_counters(self) -> Iterator[str]:
        """The lines of table nat with its counters, of the legacy variant those of all tables.

        The legacy program would make a table that it is asked for by name.

        Raises:
            SyncError: the tables could not be read.
        """
        only = ["-t", NAT] if self.variant == "nf_tables" else []
        try:
            yield from self.machine.lines([self._save, "-c", *only])
        except (run.ProgramError, OSError) as e:
            raise SyncError(f"cannot read the tables: {e}") from e

    def chain(self, table: str, chain: str) -> list[str] | None:
        """See `Tables`."""
        if (
            self.variant == "legacy"
        ):  # the kernel gives the whole table in any case, and only `save` makes none
            tables = by_table(self.save())
            chains, rules = tables.get(table, ([], []))
            return [rule for where, rule in rules if where == chain] if chain in chains else None
        argv = [self._save.removesuffix("-save"), "-w", str(_LOCK_SECONDS), "-t", table, "-S", chain]
        begin = f"-A {chain} "
        try:
            # Asked for a chain that is not there, the program makes the table.
            with NftKernel(self.machine) as kernel:
                if not objects.has_chain(kernel, TableName(IP if self.family == IPV4 else IP6, table), chain):
                    return None
            return [line.removeprefix(begin) for line in self.machine.lines(argv) if line.startswith(begin)]
        except (run.ProgramError, OSError) as e:
            raise SyncError(f"cannot read chain {chain} of table {table}: {e}") from e

    def has(self, table: str, chain: str, rule: str) -> bool:
        """See `Tables`."""
        try:
            self.restore(table, [f"-C {chain} {rule}\n"])
        except InputRefusedError:
            return False
        return True

    def restore(self, table: str, lines: Iterable[str]) -> None:
        """See `Tables`."""
        if log.isEnabledFor(V6):
            lines = _logged(f"{self._restore[0]}, table {table}", lines)
        blocks = _blocks(itertools.chain((f"*{table}\n",), lines, ("COMMIT\n",)))
        kept: list[bytes] = []
        try:
            with self._we.lock:
                before = self._generation()
                self.machine.feed(self._restore, _keeping(blocks, kept), started=self._we.started)
                self._we.transactions += self._generation() != before
        except run.ProgramError as e:
            found = _LINE.search(e.error_output)
            # The nf_tables programs call what the kernel refuses a resource problem, too, but they name the
            # line.
            if e.code < 0 or (e.code == _RESOURCE_PROBLEM and not found):
                raise SyncError(str(e)) from e
            number = int(found[1]) if found else 0
            raise InputRefusedError(f"table {table}: {e}{_quoted(kept, number)}", max(number - 1, 0)) from e
        except OSError as e:
            raise SyncError(f"cannot run {self._restore[0]}: {e}") from e

    def _generation(self) -> int:
        return generation(self.machine) if self.variant == "nf_tables" else 0


def spare(machine: Machine, lookout: Lookout) -> None:
    """From now on a look-out receives no notifications of what we do by programs."""
    we = machine.shared(Writer)
    we.lookouts = (*(other for other in we.lookouts if other()), weakref.ref(lookout))


def _logged(where: str, lines: Iterable[str]) -> Iterator[str]:
    """The same lines, each logged."""
    for item in lines:
        for line in item.splitlines():
            log.log(V6, "%(command)s: %(line)s", {"command": where, "line": line})
        yield item


def installed(machine: Machine) -> Iterator[tuple[str, Programs]]:
    """Every variant of programs that is installed, for both families, with their name."""
    for family, base in ((IPV4, "iptables"), (IPV6, "ip6tables")):
        names: dict[Variant, str] = {}
        if machine.which(f"{base}-legacy-restore"):
            names["legacy"] = f"{base}-legacy"
        if machine.which(f"{base}-nft-restore"):
            names["nf_tables"] = f"{base}-nft"
        if len(names) < len(VARIANTS) and machine.which(f"{base}-restore"):
            names.setdefault(_variant(machine, base), base)
        for variant, name in names.items():
            yield name, Programs(machine, family, f"{name}-save", f"{name}-restore", variant)


def _variant(machine: Machine, name: str) -> Variant:
    """The variant of programs that have a plain name."""
    try:
        version = _VERSION.search(run.output(machine.lines([name, "--version"])))
    except (run.ProgramError, OSError):
        version = None
    return "nf_tables" if version and version[4] == "nf_tables" else "legacy"


Held = Mapping[str, tuple[list[str], list[tuple[str, str]]]]
"""Of each table the chains, and the rules with the chain they are in."""


def by_table(lines: Iterable[str]) -> Held:
    """What `save` printed: of each table the chains, and the rules with the chain they are in."""
    found: dict[str, tuple[list[str], list[tuple[str, str]]]] = {}
    for table, chain, rule in saved.parse(lines):
        if table in TABLES:
            chains, rules = found.setdefault(table, ([], []))
            if rule is None:
                chains.append(chain)
            else:
                rules.append((chain, rule))
    return found


def are_of_kubelet(tables: Held) -> bool:
    """Whether a kubelet has written to the tables."""
    return any(chain in _KUBELET_CHAINS for chains, _ in tables.values() for chain in chains)


def are_of_ipvs(tables: Held) -> bool:
    """Whether the chains that iptables and ipvs mode both have are ipvs mode's now."""
    _, rules = tables.get(NAT, ([], []))
    return any(chain == "KUBE-SERVICES" and target(rule) == "KUBE-NODE-PORT" for chain, rule in rules)


def find(machine: Machine, family: Family, *, attempt: bool = True) -> Programs:
    """The programs to use for a family.

    Args:
        machine: the host.
        family: the family.
        attempt: try whether they can write; otherwise nothing is done to the kernel.

    Raises:
        UnsupportedError: they are missing, too old, or the kernel does not support them.
        SyncError: they cannot be tried: we lack the right, or another process holds their lock for too long.
    """
    base = "iptables" if family == IPV4 else "ip6tables"
    name = base
    both = [f"{base}-nft", f"{base}-legacy"]
    if all(machine.which(f"{each}-restore") for each in both):
        name = next((name for name in both if _kubelet_uses(machine, name)), base)
    for program in (name, f"{name}-save", f"{name}-restore"):
        if machine.which(program) is None:
            raise UnsupportedError(
                f"program {program} is not in PATH; install iptables (Debian: apt-get install iptables)"
            )
    try:
        text = run.output(machine.lines([name, "--version"]))
    except (run.ProgramError, OSError) as e:
        raise UnsupportedError(f"{name} does not run: {e}") from e
    version = _VERSION.search(text)
    if version is None:
        raise UnsupportedError(f"{name} --version prints {text!r}, which is no version")
    number = tuple(int(part or 0) for part in version.groups()[:3])
    if number < OLDEST:
        raise UnsupportedError(f"{name} is {text}; at least v{'.'.join(map(str, OLDEST))} is needed")
    variant: Variant = "nf_tables" if version[4] == "nf_tables" else "legacy"
    programs = Programs(machine, family, f"{name}-save", f"{name}-restore", variant)
    if attempt:
        _try(programs, family)
    return programs


def _try(programs: Programs, family: Family) -> None:
    """Writes nothing to table nat: fails where the kernel lacks it or we lack the right."""
    try:
        programs.restore(NAT, ())
    except (InputRefusedError, SyncError) as e:
        error = UnsupportedError if isinstance(e, InputRefusedError) else SyncError
        raise error(f"iptables cannot run for {family}: {e}") from e


def _kubelet_uses(machine: Machine, name: str) -> bool:
    """Whether the kubelet's chains are in this variant's mangle table."""
    # Asked for a table by its name the legacy program would make it, and leave a trace of legacy tables on
    # the node.
    argv = [f"{name}-save", *([] if name.endswith("-legacy") else ["-t", "mangle"])]
    try:
        return are_of_kubelet(by_table(machine.lines(argv)))
    except (run.ProgramError, OSError):
        return False


def _keeping(blocks: Iterable[bytes], kept: list[bytes]) -> Iterator[bytes]:
    """Yields the blocks, and keeps the first of them."""
    for block in blocks:
        if len(kept) < _KEPT_BLOCKS:
            kept.append(block)
        yield block


def _quoted(kept: list[bytes], number: int) -> str:
    """The text of a line of an input, from 1, to be added to a message; nothing if it is not known."""
    lines = b"".join(kept).split(b"\n") if number else []
    if not 0 < number <= len(lines):
        return ""
    text = lines[number - 1].decode(errors="replace")
    return f" (line {number} is: {text[:_QUOTED_CHARACTERS]})"


def _blocks(lines: Iterable[str]) -> Iterator[bytes]:
    """Joins lines to blocks, so that writing takes few calls."""
    pending: list[str] = []
    size = 0
    for line in lines:
        pending.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield "".join(pending).encode()
            pending.clear()
            size = 0
    yield "".join(pending).encode()
