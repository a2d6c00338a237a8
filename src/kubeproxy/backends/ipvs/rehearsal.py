"""What ipvs mode holds in the kernel as a value, what a `load` would do to it, and what a Service needs there.

The difference to some plans is found by a `load` over a kernel and tables in memory that hold what was read: so there is one way
to compare, the daemon's own.
"""

from collections.abc import Collection, Sequence
from typing import Any

from msgspec import Struct

from kubeproxy.api.addresses import Family, unpack
from kubeproxy.backends.base import HeldState
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.ipvs import names, words
from kubeproxy.backends.ipvs.compile import ServerContext, compile_service
from kubeproxy.backends.ipvs.fake import FakeIPVSKernel
from kubeproxy.backends.ipvs.frame import OUT
from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange
from kubeproxy.backends.programs import FILTER, Tables
from kubeproxy.backends.shared import held_rules
from kubeproxy.backends.shared.held_rules import HeldRules, input_lines
from kubeproxy.model.plan import ServicePlan
from kubeproxy.netlink.ipset import Element, Header
from kubeproxy.netlink.ipvs import Load, Real, Settings, Virtual

_SERVER_VERBS = {"add": "-A", "edit": "-E", "delete": "-D"}
_REAL_VERBS = {"add": "-a", "edit": "-e", "delete": "-d"}


class HeldServers(Struct, frozen=True, gc=False):
    """What one family has in the kernel.

    Attributes:
        servers: the virtual servers with their settings and their real servers, each with weight and connections; sorted.
        sets: the sets of ours with their headers and elements; sorted.
        addresses: the addresses of kube-ipvs0; sorted.
        rules: the tables of iptables.
    """

    servers: tuple[tuple[Virtual, Settings, tuple[tuple[Real, Load], ...]], ...]
    sets: tuple[tuple[str, Header, tuple[Element, ...]], ...]
    addresses: tuple[bytes, ...]
    rules: HeldRules

    def lines(self) -> list[str]:
        """See `HeldState`: of `ipvsadm -Sn`, `ipset save`, `ip` and `iptables-save`. Connections are left out."""
        found: list[str] = []
        for virtual, settings, reals in self.servers:
            found += words.server(virtual, settings, {real: load.weight for real, load in reals})
        for name, header, elements in self.sets:
            found.append(f"create {name} {header.type}")
            found += [f"add {name} {words.element(element)}" for element in elements]
        found += [_address("add", address) for address in self.addresses]
        return found + self.rules.lines()


class ServerStep(Struct, frozen=True, gc=False):
    """A call that changes the kernel or, named `restore`, the tables.

    Attributes:
        method: its name, of `IPVSKernel` or `Tables`.
        arguments: what it is called with.
    """

    method: str
    arguments: tuple[Any, ...]

    def lines(self) -> list[str]:
        """It in the syntax of the system's own tools."""
        match self.method, self.arguments:
            case "change_servers", (changes,):
                return [_change(change) for change in changes]
            case "create_set", (name, kind, _):
                return [f"create {name} {kind}"]
            case "destroy_set", (name,):
                return [f"destroy {name}"]
            case "swap_sets", (one, other):
                return [f"swap {one} {other}"]
            case ("add_elements" | "delete_elements") as method, (name, elements):
                verb = "add" if method == "add_elements" else "del"
                return [f"{verb} {name} {words.element(element)}" for element in elements]
            case ("bind" | "unbind") as method, (addresses,):
                return [_address("add" if method == "bind" else "del", address) for address in addresses]
            case _, (table, text):
                return input_lines(table, text)
        raise AssertionError(self.method)


class ServerSteps(Struct, frozen=True, gc=False):
    """What is to be done, in this order."""

    steps: tuple[ServerStep, ...]

    def __bool__(self) -> bool:
        return bool(self.steps)

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        return [line for step in self.steps for line in step.lines()]

    def send(self, kernel: IPVSKernel, tables: Tables) -> None:
        """Does it; what the kernel refuses of a step is left out.

        Raises:
            OSError: the kernel refused a step as a whole.
            RefusedError: rules were refused.
        """
        for step in self.steps:
            getattr(tables if step.method == "restore" else kernel, step.method)(*step.arguments)


def read(kernel: IPVSKernel, tables: Tables) -> HeldServers:
    """Reads it.

    Raises:
        OSError: the kernel refused.
        SyncError: the tables could not be read.
    """
    settings, reals, headers = kernel.settings(), kernel.servers(), kernel.headers()
    ours = sorted(headers.keys() & {names.set_name(short, tables.family) for short in names.SETS})
    return HeldServers(
        tuple((v, settings[v], tuple(sorted(reals.get(v, {}).items()))) for v in sorted(settings)),
        tuple((name, headers[name], tuple(sorted(kernel.elements(name)))) for name in ours),
        tuple(sorted(kernel.addresses())),
        held_rules.read(tables),
    )


def as_servers(held: HeldState) -> HeldServers:
    """What `read` returned; anything else is a mistake of the caller."""
    assert isinstance(held, HeldServers)
    return held


class RecordingTables(FakeTables):
    """Tables in memory that note what is changed."""

    def __init__(self, held: HeldRules, steps: list[ServerStep]) -> None:
        source = held.in_memory()
        super().__init__(source.variant)
        self.family: Family = source.family
        self.tables = source.tables
        self.fingerprint()
        self._steps = steps

    def restore(self, table: str, lines: Any) -> None:
        """See `Tables`."""
        text = "".join(lines)
        super().restore(table, [text])
        self._steps.append(ServerStep("restore", (table, text)))


class RecordingKernel(FakeIPVSKernel):
    """A kernel in memory that notes what is changed. What changes nothing is no step."""

    def __init__(self, held: HeldServers, steps: list[ServerStep]) -> None:
        super().__init__()
        self.virtuals = {v: (settings, dict(reals)) for v, settings, reals in held.servers}
        self.sets = {name: (header, set(elements)) for name, header, elements in held.sets}
        self.bound = set(held.addresses)
        self._steps = steps

    def _note(self, method: str, *arguments: Any) -> None:
        if all(arguments):
            self._steps.append(ServerStep(method, arguments))

    def change_servers(self, changes: Sequence[ServerChange]) -> dict[int, OSError]:
        """See `IPVSKernel`."""
        self._note("change_servers", tuple(changes))
        return super().change_servers(changes)

    def create_set(self, name: str, kind: str, limit: int) -> None:
        """See `IPVSKernel`."""
        self._note("create_set", name, kind, limit)
        super().create_set(name, kind, limit)

    def destroy_set(self, name: str) -> None:
        """See `IPVSKernel`."""
        self._note("destroy_set", name)
        super().destroy_set(name)

    def swap_sets(self, one: str, other: str) -> None:
        """See `IPVSKernel`."""
        self._note("swap_sets", one, other)
        super().swap_sets(one, other)

    def add_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        """See `IPVSKernel`."""
        self._note("add_elements", name, tuple(elements))
        return super().add_elements(name, elements)

    def delete_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        """See `IPVSKernel`."""
        self._note("delete_elements", name, tuple(elements))
        return super().delete_elements(name, elements)

    def bind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        """See `IPVSKernel`."""
        self._note("bind", tuple(sorted(addresses)))
        return super().bind(addresses)

    def unbind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        """See `IPVSKernel`."""
        self._note("unbind", tuple(addresses))
        return super().unbind(addresses)


def describe(plan: ServicePlan, dialect: ServerContext, family: Family) -> list[str]:
    """What a Service needs, as `ipvsadm -Sn`, `ipset save`, `ip` and `iptables-save` say it."""
    compiled = compile_service(plan, dialect)
    found: list[str] = []
    for virtual, target in compiled.virtuals.items():
        found += words.server(virtual, target.settings, dict.fromkeys(target.reals, 1))
    for name, element in compiled.entries:
        found.append(f"add {names.set_name(name, family)} {words.element(element)}")
    found += [
        _address("add", element.address) for name, element in compiled.entries if name == names.ADDRESSES
    ]
    drops = [f"-A {OUT[1]} {rule}" for rule in compiled.drops]
    return found + ([f"*{FILTER}", *drops] if drops else [])


def _address(verb: str, address: bytes) -> str:
    return f"ip address {verb} {unpack(address)}/{8 * len(address)} dev {names.INTERFACE}"


def _change(change: ServerChange) -> str:
    if change.real is None:
        line = f"{_SERVER_VERBS[change.verb]} {words.virtual(change.virtual)}"
        return line if change.settings is None else f"{line} {words.settings(change.settings)}"
    line = f"{_REAL_VERBS[change.verb]} {words.virtual(change.virtual)} {words.real(change.real)}"
    return line if change.verb == "delete" else f"{line} -m -w {change.weight}"
