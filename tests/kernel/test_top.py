"""`kube-proxy top` on a node with real traffic: its counts are the connections that were made."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api import types
from kubeproxy.backends.programs import Variant
from kubeproxy.config.load import load
from kubeproxy.insight.origin import Origin
from kubeproxy.insight.snapshot import take
from kubeproxy.insight.top.values import TopPort
from kubeproxy.insight.top.watch import TopWatch
from kubeproxy.linux.bpf.host import BpfPlaces
from kubeproxy.machine.linux import LinuxMachine
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, ask, asked, until
from tests.kernel.test_serve import fetch
from tests.lab import kernel, netns
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, DEAD = "10.96.0.10", "10.96.0.11"
WEB6, SIX = "fd00:10:96::10", "fd00:10:244:1::b"
GONE = "10.244.1.250"  # an address of no Pod
MODES: dict[str, tuple[Variant, dict[str, Any], str]] = {
    "nftables": ("nf_tables", {"mode": "nftables"}, "events"),
    "nftables-counters": ("nf_tables", {"mode": "nftables", "nftables": {"counters": True}}, "counters"),
    "iptables-nf_tables": ("nf_tables", {"mode": "iptables"}, "counters"),
    "iptables-legacy": ("legacy", {"mode": "iptables"}, "counters"),
}
"""The variant of iptables, the configuration, and where the figures are from."""


def fill(station: Station) -> None:
    station.folder.put(
        service("web", WEB, WEB6, ports=[types.ServicePort(80, node_port=30080)], type="NodePort"),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", SIX, name="web-6"),
        service("dead", DEAD),
        endpoints("dead", EP11, GONE, local=(EP11, GONE), node=NODE_NAME),
    )


@pytest.fixture(params=MODES)
def station(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Station:
    """A station whose daemon has run; its rules are there."""
    return programmed(lab, tmp_path, request.param)


def programmed(lab: Lab, folder: Path, name: str) -> Station:
    """A station whose daemon has run; its rules are there."""
    variant, settings, _ = MODES[name]
    folder.mkdir(exist_ok=True)
    made = Station(lab, folder, variant, **settings)
    fill(made)
    with made.running():
        pass
    return made


@pytest.fixture
def source(request: pytest.FixtureRequest, station: Station) -> str:
    """Where the figures of the station are from."""
    del station
    return MODES[request.node.callspec.params["station"]][2]


@contextlib.contextmanager
def watching(station: Station, *more: str, places: BpfPlaces | None = None) -> Iterator[TopWatch]:
    """The sources of `kube-proxy top` on the node, with more flags of the daemon."""
    flags = {
        **{flag.removeprefix("--"): True for flag in more},
        "config": str(station.config),
        "manifests": (str(station.folder.path),),
        "hostname-override": NODE_NAME,
    }
    with pytest.MonkeyPatch.context() as patch, station.lab.inside("node"):
        patch.setenv(
            "PATH", f"{station.config.parent / 'programs'}:{os.environ['PATH']}"
        )  # those the daemon had
        machine = LinuxMachine(bpf=places or BpfPlaces())
        taken = asyncio.run(take(Origin(load(flags, "linux")), machine))
        with contextlib.closing(TopWatch(taken, machine)) as watch:
            watch.look(everything=True)
            yield watch


def port(watch: TopWatch, name: str, family: str = "IPv4") -> TopPort:
    """The one port of a Service, after everything was read again."""
    watch.look(everything=True)
    (found,) = watch.top([("default", name)]).services
    return next(each for each in found.ports if each.family == family)


def test_connections_are_counted_by_endpoint(station: Station, source: str) -> None:
    with watching(station) as watch:
        assert watch.top().sources.connections == source
        for role, address, number in (("client", WEB, 80), ("out", "192.0.2.1", 30080), ("node", WEB, 80)):
            before = {each.address: each.connections or 0 for each in port(watch, "web").endpoints}
            answered = asked(station.lab, role, address, number, times=30)
            found = port(watch, "web")
            counted = {
                each.address: (each.connections or 0) - before[each.address] for each in found.endpoints
            }
            assert counted == {EP11: answered[EP11], EP12: answered[EP12]}, (role, watch.top())
        assert found.connections == 90
        watch.look([("default", "web")])
        (again,) = watch.top([("default", "web")]).services
        assert sum(each.connections or 0 for each in again.ports) == 90
        assert sum(each.share or 0 for each in found.endpoints) == pytest.approx(1, abs=1e-3)
        assert found.connections_per_second
        assert (found.unanswered, found.waiting, found.uneven) == (0, 0, False)
        assert ask(station.lab, "client", WEB6) == SIX
        assert port(watch, "web", "IPv6").connections == 1
        assert port(watch, "web").connections == 90
        assert watch.top().sources.losses == 0


def test_an_endpoint_that_does_not_answer_is_shown(station: Station) -> None:
    with watching(station) as watch:
        clients = []
        try:
            with netns.inside(station.lab.name("client")):
                for _ in range(24):
                    client = socket.socket()
                    client.setblocking(False)
                    client.connect_ex((DEAD, 80))
                    clients.append(client)
            until(lambda: (port(watch, "dead").connections or 0) >= 24)
            found = {each.address: each for each in port(watch, "dead").endpoints}
            dead = found[GONE]
            assert dead.waiting
            assert dead.waiting == dead.connections
            assert found[EP11].waiting == 0
            until(
                lambda: all(
                    each.open == each.connections
                    for each in port(watch, "dead").endpoints
                    if each.address == EP11
                )
            )
        finally:
            for client in clients:
                client.close()
        kernel.flush_conntrack(station.lab.name("node"))
        until(lambda: (port(watch, "dead").unanswered or 0) > 0)
        found = {each.address: each for each in port(watch, "dead").endpoints}
        assert (found[GONE].unanswered, found[EP11].unanswered) == (dead.connections, 0)
        assert found[GONE].waiting == 0


def test_a_client_that_has_not_confirmed_the_answer_waits(lab: Lab, tmp_path: Path) -> None:
    """The endpoint answers, and the answer does not reach the client: state SYN_RECV."""
    made = programmed(lab, tmp_path, "nftables")
    lab.run("client", "nft", "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }")
    lab.run("client", "nft", "add rule ip deaf in ip saddr", WEB, "tcp sport 80 drop")
    try:
        with watching(made) as watch, socket_in(lab, "client") as client:
            client.connect_ex((WEB, 80))
            until(lambda: port(watch, "web").waiting == 1)
            assert port(watch, "web").open == 0
    finally:
        lab.run("client", "nft", "delete table ip deaf")


@contextlib.contextmanager
def socket_in(lab: Lab, role: str) -> Iterator[socket.socket]:
    """A socket of a client that does not wait."""
    with netns.inside(lab.name(role)):
        client = socket.socket()
    with client:
        client.setblocking(False)
        yield client


def run(station: Station, *arguments: str, prefix: Sequence[str] = ()) -> tuple[int, str, str]:
    """Exit status, output, and what is said beside it."""
    environment = {**os.environ, "PATH": f"{station.config.parent / 'programs'}:{os.environ['PATH']}"}
    flags = ("--config", str(station.config), "--manifests", str(station.folder.path))
    command = [*prefix, sys.executable, "-m", "kubeproxy", "top", *arguments, *flags]
    done = subprocess.run(
        ["ip", "netns", "exec", station.lab.name("node"), *command, "--hostname-override", NODE_NAME],
        check=False, capture_output=True, text=True, env=environment, timeout=240,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_command_answers_once(station: Station) -> None:
    code, out, said = run(station, "--once", "--interval", "0.2", "--json")
    found = json.loads(out)
    assert code == 0, said
    assert {service["name"] for service in found["services"]} == {"web", "dead"}
    (web,) = (service for service in found["services"] if service["name"] == "web")
    assert [(each["family"], each["port"], len(each["endpoints"])) for each in web["ports"]] == [
        ("IPv4", 80, 2),
        ("IPv6", 80, 1),
    ]
    assert found["sources"]["losses"] == 0
    code, out, said = run(station, "--once", "--interval", "0.2", "default/web")
    assert code == 0, said
    assert f"{EP11}:8080" in out
    assert f"[{SIX}]:8080" in out
    assert GONE not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("default/wep",), "there is no Service default/wep"),
        (("web", "--interval", "0"), "--interval 0: seconds, at least 0.2"),
        (("--node", "n2"), "n2"),
        (("shop/web",), "did you mean default/web?"),
    ],
)
def test_a_wrong_question_is_refused(
    lab: Lab, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    made = Station(lab, tmp_path, mode="nftables")
    fill(made)
    code, out, said = run(made, "--once", *arguments)
    assert (code, out) == (1, "")
    assert message in said
    assert len(said.splitlines()) == 1


def test_without_the_right_it_says_what_is_missing(station: Station) -> None:
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    code, out, _ = run(station, "--once", "--interval", "0.2", "--json", prefix=bare)
    found = json.loads(out)
    assert code == 0
    assert len(found["services"]) == 2
    assert sum("CAP_NET_ADMIN" in trouble for trouble in found["troubles"]) >= 2
    web = found["services"][1]["ports"][0]
    assert (web["connections"], web["open"], web["unanswered"]) == (None, None, None)


def test_bytes_are_counted_while_it_is_asked_for(station: Station) -> None:
    name = "net.netfilter.nf_conntrack_acct"
    before = station.lab.run("node", "sysctl", "-n", name)
    code, out, said = run(station, "--once", "--interval", "0.2", "--json", "--accounting")
    assert code == 0, said
    assert json.loads(out)["sources"]["bytes"]
    assert station.lab.run("node", "sysctl", "-n", name) == before
    station.lab.run("node", "sysctl", "-w", f"{name}=1")
    try:
        with watching(station) as watch:
            for _ in range(3):
                ask(station.lab, "client", WEB)
            kernel.flush_conntrack(station.lab.name("node"))
            found = port(watch, "web")
            assert found.sent_per_second
            assert found.received_per_second
    finally:
        station.lab.run("node", "sysctl", "-w", f"{name}={before.strip()}")


def test_services_that_are_looked_at_are_read_alone(lab: Lab, tmp_path: Path) -> None:
    """And affinity: its rules count."""
    made = Station(lab, tmp_path, mode="nftables", nftables={"counters": True})
    fill(made)
    made.folder.put(
        service("sticky", "10.96.0.13", session_affinity="ClientIP"),
        endpoints("sticky", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
    )
    with made.running():
        pass
    with watching(made) as watch:
        first = asked(lab, "client", "10.96.0.13", times=5) + asked(lab, "node", "10.96.0.13", times=7)
        web = asked(lab, "client", WEB, times=9)
        watch.look([("default", "sticky"), ("default", "web")])
        found = {each.name: each.ports[0] for each in watch.top().services}
        counted = {each.address: each.connections for each in found["sticky"].endpoints}
        assert counted == {EP11: first[EP11], EP12: first[EP12]}
        assert not found["sticky"].uneven
        assert {each.address: each.connections for each in found["web"].endpoints} == web


def test_a_table_gets_counters_and_loses_them_while_packets_pass(lab: Lab, tmp_path: Path) -> None:
    before = programmed(lab, tmp_path / "a", "nftables")
    plain = listed(lab)
    assert "counter" not in plain
    with answered_all_the_time(lab):
        after = programmed(lab, tmp_path / "b", "nftables-counters")
        counted = listed(lab)
        assert "counter" in counted
        assert without_counters(counted) == without_counters(plain)
        with watching(after) as watch:
            answers = asked(lab, "client", WEB, times=8)
            assert (port(watch, "web").connections or 0) >= sum(answers.values())
        with before.running():
            pass
        assert listed(lab) == plain


def test_counters_are_no_drift(lab: Lab, tmp_path: Path) -> None:
    made = Station(lab, tmp_path, mode="nftables", nftables={"counters": True, "syncPeriod": "1s"})
    fill(made)
    with made.running() as daemon:
        asked(lab, "client", WEB, times=12)
        with watching(made) as watch:
            total = port(watch, "web").connections or 0
            asked(lab, "client", WEB, times=3)
            until(lambda: (port(watch, "web").connections or 0) == total + 3)
            made.folder.put(
                service("more", "10.96.0.14"), endpoints("more", EP11, local=(EP11,), node=NODE_NAME)
            )
            until(lambda: "10.96.0.14" in lab.run("node", "nft", "list", "table", "ip", "kube-proxy"))
            assert port(watch, "web").connections == total + 3
            lab.run("node", "nft", "flush", "map", "ip", "kube-proxy", "endpoints-2")
            until(lambda: ask(lab, "client", WEB) in {EP11, EP12})
            assert (port(watch, "web").connections or 0) > total + 3, (
                "new elements count from 0, the sum goes on"
            )
        assert daemon.log().count("changed table") == 1


def listed(lab: Lab) -> str:
    """The IPv4 table in the node, with what nft says of counters, but without their values."""
    found = lab.run("node", "nft", "list", "table", "ip", "kube-proxy")
    return re.sub(r"counter packets \d+ bytes \d+", "counter", found)


def without_counters(listing: str) -> list[str]:
    """The words of a listing, but that of counters; elements in one order."""
    return sorted(re.split(r",|\n", " ".join(listing.replace(" counter", "").split(" "))))


@contextlib.contextmanager
def answered_all_the_time(lab: Lab) -> Iterator[None]:
    """A client connects all the time, until the block ends; each connection must be answered."""
    found: list[str] = []
    ended = threading.Event()

    def connect() -> None:
        while not ended.is_set():
            found.append(ask(lab, "client", WEB))

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert found
    assert set(found) <= {EP11, EP12}, Counter(found)


class Window:
    """`kube-proxy top` in a window of a terminal."""

    def __init__(self, station: Station, *arguments: str) -> None:
        self.terminal, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 140, 0, 0))
        self.before = termios.tcgetattr(inner)
        flags = ("--config", str(station.config), "--manifests", str(station.folder.path))
        # Ctrl-C must work also where these tests run in the background of a shell, which ignores it.
        command = [
            "env",
            "--default-signal=INT",
            sys.executable,
            "-m",
            "kubeproxy",
            "top",
            "--interval",
            "0.5",
            *arguments,
            *flags,
        ]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", station.lab.name("node"), *command, "--hostname-override", NODE_NAME],
            stdin=inner, stdout=inner, stderr=inner, env={**{k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}, "TERM": "xterm"},
        )  # fmt: skip
        self.inner = inner
        self.seen = ""

    def shows(self, text: str) -> None:
        """Waits until something is shown after what was waited for before."""

        def found() -> bool:
            if select.select([self.terminal], [], [], 0.1)[0]:
                self.seen += os.read(self.terminal, 1 << 16).decode(errors="replace")
            return text in self.seen

        until(found, f"{text!r} is not shown: {self.seen[-3000:]!r}")
        self.seen = self.seen.partition(text)[2]

    def press(self, keys: str) -> None:
        """Sends keys."""
        os.write(self.terminal, keys.encode())

    def ended(self) -> int:
        """The exit status, when it has put the terminal back as it was."""
        with ThreadPoolExecutor() as pool:
            drained = pool.submit(self._drain)
            try:
                code = self.process.wait(PATIENCE)
            finally:
                self.process.kill()
            after = termios.tcgetattr(self.inner)
            os.close(self.inner)
            drained.result()
        os.close(self.terminal)
        assert after == self.before
        return code

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self.terminal, 1 << 16):
                pass


def test_the_view_follows_the_cluster_and_obeys_keys(lab: Lab, tmp_path: Path) -> None:
    made = Station(lab, tmp_path, mode="nftables")
    fill(made)
    with made.running():
        window = Window(made)
        window.shows("default/web:80")
        made.folder.put(endpoints("web", EP11, local=(EP11,), node=NODE_NAME))
        window.shows(f"-{EP12}:8080 by EndpointSlice default/web-1")
        window.press("/web\r\r")
        window.shows(f"{EP11}:8080")
        window.press("\x1b")
        window.press("q")
        assert window.ended() == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_view_that_is_ended_leaves_the_terminal_as_it_was(
    lab: Lab, tmp_path: Path, end: signal.Signals
) -> None:
    made = Station(lab, tmp_path, mode="nftables")
    fill(made)
    window = Window(made, "default/web")
    window.shows(f"{EP11}:8080")
    window.process.send_signal(end)
    assert window.ended() == (0 if end == signal.SIGTERM else 130)


def test_in_userspace_mode_the_relay_counts(lab: Lab, tmp_path: Path) -> None:
    made = Station(lab, tmp_path, mode="userspace")
    fill(made)
    with made.running():
        assert ask(lab, "client", WEB) in {EP11, EP12}, "one that is not counted: it was before"
        with watching(made) as watch:
            for role, address, number in (
                ("client", WEB, 80),
                ("out", "192.0.2.1", 30080),
                ("node", WEB, 80),
            ):
                before = {each.address: each.connections or 0 for each in port(watch, "web").endpoints}
                answered = asked(lab, role, address, number, times=7)
                counted = {
                    each.address: (each.connections or 0) - before[each.address]
                    for each in port(watch, "web").endpoints
                }
                assert counted == {EP11: answered[EP11], EP12: answered[EP12]}, (role, watch.top())
            found = port(watch, "web")
            assert (found.connections, found.unanswered, found.waiting, found.uneven) == (21, 0, 0, False)
            assert watch.top().sources.connections == "relay"
            assert not watch.top().troubles
            assert ask(lab, "client", WEB6) == SIX
            assert port(watch, "web", "IPv6").connections == 1
            with netns.inside(lab.name("client")):
                client = socket.create_connection((WEB, 80), PATIENCE)
            with client:
                assert client.recv(256)
                (opened,) = [each for each in port(watch, "web").endpoints if each.open]
                assert opened.open == 1
                assert opened.received_per_second
            until(lambda: port(watch, "web").open == 0)


def test_in_userspace_mode_an_endpoint_that_does_not_answer_is_shown(lab: Lab, tmp_path: Path) -> None:
    """Clients do not notice it: they are connected to the other endpoint."""
    made = Station(lab, tmp_path, mode="userspace")
    fill(made)
    with made.running(), watching(made) as watch:
        assert asked(lab, "client", DEAD, times=6) == {EP11: 6}
        found = {each.address: each for each in port(watch, "dead").endpoints}
        assert (found[EP11].connections, found[EP11].unanswered) == (6, 0)
        assert (found[GONE].connections, found[GONE].open) == (0, 0)
        assert (found[GONE].unanswered or 0) + (found[GONE].waiting or 0) == 3
        assert port(watch, "web").unanswered == 0
        code, out, said = run(made, "--once", "--interval", "0.2", "default/dead")
        assert (code, said) == (0, "")
        assert "connections as the relay counts them" in out
        assert f"{GONE}:8080" in out


def test_in_userspace_mode_without_the_daemon_nothing_is_known(lab: Lab, tmp_path: Path) -> None:
    made = Station(lab, tmp_path, mode="userspace")
    fill(made)
    with watching(made) as watch:
        found = port(watch, "web")
        assert (found.connections, found.open, found.resets) == (None, None, None)
        assert watch.top().sources.connections == ""
        (trouble,) = watch.top().troubles
        assert "does not answer" in trouble
        with made.running():
            answers = asked(lab, "client", WEB, times=4)
            until(lambda: port(watch, "web").connections is not None)
            asked(lab, "client", WEB, times=4)
            assert port(watch, "web").connections == 4, "counted from the first answer"
            assert sum(answers.values()) == 4
            assert not watch.top().troubles


def test_where_the_relay_listens_itself_it_counts_too(lab: Lab, tmp_path: Path) -> None:
    made = Station(lab, tmp_path, mode="userspace")
    fill(made)
    flag = "--userspace-listen"
    with made.running(flag), watching(made, flag) as watch:
        answered = asked(lab, "out", "192.0.2.1", 30080, times=6)
        found = port(watch, "web")
        assert {each.address: each.connections for each in found.endpoints} == dict(answered)


@pytest.mark.parametrize("name", ["nftables-counters", "iptables-nf_tables", "userspace"])
def test_the_counts_are_metrics_if_they_are_wanted(lab: Lab, tmp_path: Path, name: str) -> None:
    variant, settings, _ = MODES.get(name, ("nf_tables", {"mode": name}, ""))
    made = Station(lab, tmp_path, variant, **settings, connectionMetrics=10)
    fill(made)
    with made.running():
        answers = asked(lab, "client", WEB, times=12)

        def counted() -> dict[str, int]:
            page = fetch(lab, "node", "127.0.0.1", 10249, "/metrics")[2].decode()
            named = r'kubeproxy_endpoint_connections_total{endpoint="([\d.]+):8080",.*service="web"} (\d+)\.0'
            return {address: int(count) for address, count in re.findall(named, page)}

        until(lambda: counted() == {EP11: answers[EP11], EP12: answers[EP12]})
