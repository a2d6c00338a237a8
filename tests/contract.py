"""What every driver promises, in one suite: for each mode, on kernels in memory (`unit`) and on the real one (`kernel`).

- Of a Service of which the kernel refuses a piece, everything stays as it was, and of a new one nothing is there; all others
  are programmed, the failure names the Service, and when the refusal is over, it is programmed, too.
- A process that is killed between any two writes leaves a state from which the next one gets to that of a fresh start.
- A second `load` changes nothing.
"""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.backends.base import Driver, Failures, Readable, StaleError, SyncError
from kubeproxy.backends.ebpf.held import HeldConnect, HeldFronts
from kubeproxy.backends.nftables.held import HeldTable
from kubeproxy.backends.shared.listeners import HeldListeners
from kubeproxy.model.node import ConnectSettings, IPVSSettings, NodeConfig
from tests.fakes.cluster import NODE, Proxy, endpoints, service
from tests.fakes.faults import Faults, KilledError, Piece

LOCAL = ("127.0.0.1", "192.0.2.1", "10.244.1.1")
FRONTS = ("10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "203.0.113.1", "203.0.113.98", "203.0.113.99")
WEB = ("default", "web")
NEW_ENDPOINT, NEW_FRONT, NEW_BALANCER = "10.244.1.99", "203.0.113.99", "203.0.113.98"

FAULTS: dict[str, Callable[[Piece], object]] = {
    "endpoint": lambda piece: piece.names(NEW_ENDPOINT),
    "front": lambda piece: piece.names(NEW_FRONT),
    "virtual server": lambda piece: piece.kind == "virtual server" and piece.names(NEW_FRONT),
    "address": lambda piece: piece.kind == "address" and piece.names(NEW_FRONT),
    "rule": lambda piece: piece.kind == "filter rule" and piece.names(NEW_BALANCER),
    "socket": lambda piece: piece.kind == "socket" and "default/web" in str(piece.content),
}
OF_MODES: dict[str, tuple[str, ...]] = {
    "iptables-legacy": ("endpoint", "front", "rule"),
    "iptables-nf_tables": ("endpoint", "front", "rule"),
    "nftables": ("endpoint", "front"),
    "ipvs": ("endpoint", "front", "virtual server", "address", "rule"),
    "ebpf": ("endpoint", "front"),
    "userspace": ("front", "socket"),
    "userspace-listen": ("front",),
}
"""What can be refused in each mode."""

IPVS_NODE = replace(NODE, localhost_node_ports=False).with_addresses(LOCAL)


def node_of(mode: str) -> NodeConfig:
    """The node in a mode."""
    node = replace(IPVS_NODE, service_cidrs=("10.96.0.0/12",))
    if mode == "ebpf":
        return replace(node, connects=ConnectSettings(everywhere=True))
    return replace(node, ipvs=IPVSSettings()) if mode == "ipvs" else node


class Bench:
    """A mode on a kernel, which a subclass provides.

    Attributes:
        mode: the mode.
        faults: what goes wrong.
        live: the drivers of processes that have not ended.
        stride: of so many writes one is tried as the one at which a process ends.
    """

    stride = 1

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.faults = Faults()
        self.live: list[Driver] = []

    def end(self) -> None:
        """All processes end."""
        with self.inside():
            for driver in self.live:
                asyncio.run(driver.close())
        self.live.clear()

    def driver(self, node: NodeConfig) -> Driver:
        """The driver of a new process over the kernel."""
        raise NotImplementedError

    def inside(self) -> AbstractContextManager[object]:
        """Where the kernel is."""
        return contextlib.nullcontext()


class Subject(Proxy):
    """A proxy at the test's command over a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        node = node_of(bench.mode)
        with bench.inside():
            super().__init__(bench.driver(node), node)
        bench.live.append(self.backend)

    def _run(self, work: Any) -> Failures:
        with self.bench.inside():
            return super()._run(work)

    def intact(self) -> bool:
        with self.bench.inside():
            return super().intact()

    def restarted(self) -> "Subject":
        """A new process that has received the same objects."""
        self.end()
        other = Subject(self.bench)
        other.state = self.state
        return other

    def end(self) -> None:
        """The process ends."""
        self.bench.live.remove(self.backend)
        with self.bench.inside():
            asyncio.run(self.backend.close())

    def held(self) -> list[str]:
        """What the kernel holds, in any order and without the ports that a relay chose."""
        assert isinstance(self.backend, Readable)
        with self.bench.inside():
            held = asyncio.run(self.backend.read())
        match held:
            case HeldTable():
                lines = _reachable(held.lines())
            case HeldConnect(rules=HeldTable() as table, front=HeldFronts() as front):
                lines = _reachable(table.lines()) + front.lines()
            case HeldListeners(rules=HeldTable() as table):
                lines = _reachable(table.lines()) + replace(held, rules=None).lines()
            case _:
                lines = _used(held.lines())
        if self.bench.mode == "userspace":
            lines = [re.sub(r"\b\d{5}\b", _hidden, line) for line in lines]
        return sorted(lines)

    def differs(self) -> bool:
        """Whether a `load` would change anything."""
        assert isinstance(self.backend, Readable)
        with self.bench.inside():
            held = asyncio.run(self.backend.read())
            return bool(self.backend.difference(held, self.node, self.plans()))


def _hidden(number: re.Match[str]) -> str:
    return "*" if int(number[0]) >= 32768 else number[0]


def _used(lines: list[str]) -> list[str]:
    """Without Services' chains of iptables that nothing leads to."""
    while True:
        targets = {line.rpartition(" ")[2] for line in lines}
        unused = {
            line[1:].split()[0] for line in lines if re.match(r":KUBE-(SVC|SVL|EXT|FW|SEP)-", line)
        } - targets
        if not unused:
            return lines
        lines = [line for line in lines if not unused & set(line.removeprefix(":").split()[:2])]


def _reachable(lines: list[str]) -> list[str]:
    """The lines of a table, each with the chain, set or map it is in; without those that nothing leads to."""
    blocks: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        words = line.split()
        if words[:1] in (["chain"], ["set"], ["map"]):
            name = words[1]
        if words[:2] != ["elements", "="] and words != ["}"]:
            blocks.setdefault(name, []).append(line.rstrip(",").strip())
    todo = [name for name, body in blocks.items() if any(" hook " in line for line in body)]
    reached: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += {word.lstrip("@") for line in blocks[name][1:] for word in line.split()} & blocks.keys()
    return [f"{name}: {line}" for name in reached for line in blocks[name]]


def same(held: list[str], expected: list[str]) -> None:
    """Two states are the same; else only the lines that differ are shown."""
    more, less = Counter(held), Counter(expected)
    differences = [*(f"+ {line}" for line in more - less), *(f"- {line}" for line in less - more)]
    assert not differences, "\n".join(sorted(differences))


def begin(subject: Subject) -> None:
    """Three Services."""
    begin_web(subject)
    subject.tell(
        service("other", "10.96.0.2"),
        endpoints("other", "10.244.1.12"),
        service("gone", "10.96.0.3"),
        endpoints("gone", "10.244.1.13"),
    )


def change_web(subject: Subject) -> None:
    """Everything about one of them changes, but for the ClusterIP."""
    subject.tell(
        service(
            "web",
            "10.96.0.1",
            external_ips=(NEW_FRONT,),
            balancer=[NEW_BALANCER],
            type="LoadBalancer",
            ports=[types.ServicePort(80, node_port=30080)],
            load_balancer_source_ranges=("198.51.100.0/24",),
            external_traffic_policy="Local",
            session_affinity="ClientIP",
        ),
        endpoints("web", NEW_ENDPOINT, "10.244.1.98", local=[NEW_ENDPOINT]),
    )


def change_others(subject: Subject) -> None:
    """One changes, one goes, one comes."""
    subject.tell(
        endpoints("other", "10.244.1.14"), service("late", "10.96.0.4"), endpoints("late", "10.244.1.15")
    )
    subject.gone("Service", "gone")
    subject.gone("EndpointSlice", "gone-1")


def begin_web(subject: Subject) -> None:
    """The one that changes is as at the beginning."""
    subject.tell(
        service("web", "10.96.0.1", external_ips=("203.0.113.1",)),
        endpoints("web", "10.244.1.11", local=["10.244.1.11"]),
    )


def without_front(subject: Subject) -> None:
    """It is as at the beginning, without its external IP."""
    subject.tell(service("web", "10.96.0.1"))


def add_to_web(subject: Subject) -> None:
    """It keeps all it had and gets more."""
    change_web(subject)
    subject.tell(
        service(
            "web",
            "10.96.0.1",
            external_ips=("203.0.113.1", NEW_FRONT),
            balancer=[NEW_BALANCER],
            type="LoadBalancer",
            load_balancer_source_ranges=("198.51.100.0/24",),
        ),
        endpoints("web", "10.244.1.11", NEW_ENDPOINT, local=["10.244.1.11"]),
    )


def take_front(subject: Subject) -> None:
    """The external IP belongs to another Service now."""
    subject.tell(service("other", "10.96.0.2", external_ips=("203.0.113.1",)))


def remove_web(subject: Subject) -> None:
    """It is deleted."""
    subject.gone("Service", "web")
    subject.gone("EndpointSlice", "web-1")


def cases(modes: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Each mode with each of its faults."""
    return [(mode, fault) for mode, faults in modes.items() for fault in faults]


class Contract:
    """The suite. A subclass has a fixture `make` that makes a bench of a mode, each with a kernel of its own."""

    MARKS: ClassVar[dict[str, Any]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each mode, and each of its faults where the test asks for one."""

        def marked(mode: str, *more: str) -> Any:
            return pytest.param(mode, *more, marks=self.MARKS.get(mode, ()))

        if "fault" in metafunc.fixturenames:
            metafunc.parametrize(("mode", "fault"), [marked(*case) for case in cases(OF_MODES)])
        elif "mode" in metafunc.fixturenames:
            metafunc.parametrize("mode", [marked(mode) for mode in OF_MODES])

    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Threads run at once, in the namespace of the test."""

        async def at_once(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
            return work(*args, **more)

        monkeypatch.setattr(asyncio, "to_thread", at_once)

    def _expected(
        self, make: Callable[[str], Bench], mode: str, *changes: Callable[[Subject], None]
    ) -> list[str]:
        """What a fresh start on some objects leaves."""
        fresh = Subject(make(mode))
        for change in changes:
            change(fresh)
        assert not fresh.full()
        return fresh.held()

    def test_a_refused_service_keeps_what_it_had(
        self, make: Callable[[str], Bench], mode: str, fault: str
    ) -> None:
        bench = make(mode)
        subject = Subject(bench)
        begin(subject)
        assert not subject.full()
        before = subject.held()
        change_web(subject)
        change_others(subject)
        bench.faults.refuse = FAULTS[fault]
        with pytest.raises(StaleError):
            subject.partial()
        same(subject.held(), before)  # a change is programmed as a whole, or not at all
        for _ in range(2):
            failures = subject.full()
            assert list(failures) == [WEB]
            assert failures[WEB]
            assert subject.intact(), "it is no drift"
            assert subject.differs()
            same(subject.held(), self._expected(make, mode, begin, change_others))
        bench.faults.refuse = lambda _: False
        assert not subject.full()
        assert not subject.differs()
        assert subject.intact()
        same(subject.held(), self._expected(make, mode, begin, change_web, change_others))

    def test_of_a_new_service_that_is_refused_nothing_is_there(
        self, make: Callable[[str], Bench], mode: str, fault: str
    ) -> None:
        bench = make(mode)
        subject = Subject(bench)
        bench.faults.refuse = FAULTS[fault]
        begin(subject)
        change_web(subject)
        expected = self._expected(make, mode, begin, remove_web)
        assert list(subject.full()) == [WEB]
        same(subject.held(), expected)
        assert subject.intact()
        remove_web(subject)
        assert not subject.full()
        same(subject.held(), expected)
        change_web(subject)
        with pytest.raises(StaleError):
            subject.partial()
        same(subject.held(), expected)
        assert list(subject.full()) == [WEB]
        same(subject.held(), expected)
        bench.faults.refuse = lambda _: False
        assert not subject.full()
        same(subject.held(), self._expected(make, mode, begin, change_web))

    def test_a_new_process_keeps_what_a_refused_service_has(
        self, make: Callable[[str], Bench], mode: str, fault: str
    ) -> None:
        """As far as it is at the fronts that the Service still names. The sockets of a relay have ended with their process."""
        bench = make(mode)
        subject = Subject(bench)
        begin(subject)
        assert not subject.full()
        add_to_web(subject)
        change_others(subject)
        bench.faults.refuse = FAULTS[fault]
        again = subject.restarted()
        kept = remove_web if mode.startswith("userspace") else begin_web
        expected = self._expected(make, mode, begin, change_others, kept)
        if mode == "ebpf":  # the programs leave it to the table, which keeps it
            expected = [line for line in expected if not re.match(r"front (10.96.0.1|203.0.113.1):80 ", line)]
        for _ in range(2):
            assert list(again.full()) == [WEB]
            assert again.intact()
            same(again.held(), expected)
        bench.faults.refuse = lambda _: False
        assert not again.full()
        same(again.held(), self._expected(make, mode, begin, change_others, add_to_web))

    def test_a_refused_service_that_is_deleted_leaves_nothing(
        self, make: Callable[[str], Bench], mode: str, fault: str
    ) -> None:
        bench = make(mode)
        subject = Subject(bench)
        begin(subject)
        assert not subject.full()
        change_web(subject)
        bench.faults.refuse = FAULTS[fault]
        assert list(subject.sync()) == [WEB]
        remove_web(subject)
        assert not subject.full()
        same(subject.held(), self._expected(make, mode, begin, remove_web))

    def test_a_refused_service_gives_way_to_the_owner_of_a_front(
        self, make: Callable[[str], Bench], mode: str, fault: str
    ) -> None:
        """What it had stays, but for the front that belongs to another Service now."""
        bench = make(mode)
        subject = Subject(bench)
        begin(subject)
        assert not subject.full()
        change_web(subject)
        take_front(subject)
        bench.faults.refuse = FAULTS[fault]
        assert list(subject.sync()) == [WEB]
        assert subject.intact()
        same(subject.held(), self._expected(make, mode, begin, without_front, take_front))
        bench.faults.refuse = lambda _: False
        assert not subject.full()
        same(subject.held(), self._expected(make, mode, begin, change_web, take_front))

    def test_a_second_load_changes_nothing(self, make: Callable[[str], Bench], mode: str) -> None:
        bench = make(mode)
        subject = Subject(bench)
        begin(subject)
        change_web(subject)
        assert not subject.full()
        held = subject.held()
        for _ in range(2):
            bench.faults.writes = 0
            assert not subject.full()
            assert bench.faults.writes == 0
            assert not subject.differs()
            same(subject.held(), held)
            if not mode.startswith("userspace"):  # whose sockets end with the process
                subject = subject.restarted()

    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize("kill", [True, False])
    def test_an_end_between_two_writes_does_not_show_afterwards(
        self, make: Callable[[str], Bench], mode: str, *, partial: bool, kill: bool
    ) -> None:
        """The process is killed, and another one starts; or the kernel fails once, and the process continues."""
        bench = make(mode)
        bench.faults.kill = kill
        expected = self._expected(make, mode, begin, change_web, change_others)
        at, ended = 0, False
        while not ended:
            subject = Subject(bench)
            begin(subject)
            assert not subject.full()
            change_web(subject)
            change_others(subject)
            bench.faults.left = at
            try:
                if partial:
                    subject.partial()
                else:
                    subject.full()
                ended = True
            except (KilledError, SyncError):
                pass
            bench.faults.left = None
            process = subject.restarted() if kill else subject
            assert not process.full()
            same(process.held(), expected)
            assert not process.differs()
            at += bench.stride
            process.end()
