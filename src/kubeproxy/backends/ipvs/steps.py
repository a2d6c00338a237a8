"""What a `load` of ipvs mode would do, as a value that can be compared, printed and sent.

It is found by a `load` over a kernel and tables in memory that hold what was read: so there is one way to
compare, the daemon's own.
"""

from collections.abc import Collection, Sequence
from typing import Any

from msgspec import Struct

from kubeproxy.api.addresses import Family
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.ipvs import describe
from kubeproxy.backends.ipvs.fake import FakeIPVSKernel
from kubeproxy.backends.ipvs.held import HeldServers
from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange
from kubeproxy.backends.programs import Tables
from kubeproxy.backends.shared.held_rules import HeldRules, input_lines
from kubeproxy.netlink.ipset import Element

_SERVER_VERBS = {"add": "-A", "edit": "-E", "delete": "-D"}
_REAL_VERBS = {"add": "-a", "edit": "-e", "delete": "-d"}


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
                return [f"{verb} {name} {describe.element(element)}" for element in elements]
            case ("bind" | "unbind") as method, (addresses,):
                return [
                    describe.address("add" if method == "bind" else "del", address) for address in addresses
                ]
            case _, (table, text):
                return input_lines(table, text)
        raise AssertionError(self.method)


class ServerSteps(Struct, frozen=True, gc=False):
    """What is to be done, in this order."""

    steps: tuple[ServerStep, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        return [line for step in self.steps for line in step.lines()]

    def send(self, kernel: IPVSKernel, tables: Tables) -> None:
        """Executes the steps; what the kernel refuses of a step is left out.

        Raises:
            OSError: the kernel refused a step as a whole.
            InputRefusedError: rules were refused.
        """
        for step in self.steps:
            getattr(tables if step.method == "restore" else kernel, step.method)(*step.arguments)


class RecordingTables(FakeTables):
    """Tables in memory that record what is changed."""

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
    """A kernel in memory that records what is changed. What changes nothing is no step."""

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


def _change(change: ServerChange) -> str:
    if change.real is None:
        line = f"{_SERVER_VERBS[change.verb]} {describe.virtual(change.virtual)}"
        return line if change.settings is None else f"{line} {describe.settings(change.settings)}"
    line = f"{_REAL_VERBS[change.verb]} {describe.virtual(change.virtual)} {describe.real(change.real)}"
    return line if change.verb == "delete" else f"{line} -m -w {change.weight}"
