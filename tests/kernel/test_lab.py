"""The lab itself, without our proxy: under the reference's recorded rules its clients get the recorded answers.

This proves the namespaces, the servers and the prober, so that a difference under our rules is a difference of the rules.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kernel import bpffs
from tests.lab import cases, netns, probe, rules
from tests.lab.daemon import Daemon
from tests.lab.topology import ROOT, Lab

SELECTED = (  # each form of an outcome, for each mode; --all-recorded takes all cases
    "affinity-local",
    "clusterip-no-endpoints",
    "detect-local-bridge",
    "dual-stack",
    "everything",
    "external-ips-local",
    "host-network-endpoint",
    "ipv6-loadbalancer-local",
    "loadbalancer-source-ranges",
    "localhost-nodeports-off",
    "no-cluster-cidr",
    "nodeport-udp",
    "seven-endpoints",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recorded" in metafunc.fixturenames:
        everything = metafunc.config.getoption("--all-recorded", default=False)
        metafunc.parametrize("recorded", cases.NAMES if everything else SELECTED)


def measure(lab: Lab, mode: str, name: str) -> None:
    expected = cases.expected(mode, name, recorded_rules=True)
    measured = probe.outcomes(lab, expected, cases.endpoints(name))
    assert measured == expected, probe.differences(expected, measured)


def load_iptables(lab: Lab, name: str, variant: str = "") -> None:
    rules.load_iptables(lab, cases.rules("iptables", name), variant)
    if cases.localhost_node_ports(name):
        netns.write_sysctls(lab.name("node"), {"net/ipv4/conf/all/route_localnet": "1"})


def test_recorded_iptables_rules_give_the_recorded_outcomes(lab: Lab, recorded: str) -> None:
    load_iptables(lab, recorded)
    assert rules.read_iptables(lab) == cases.rules("iptables", recorded)
    measure(lab, "iptables", recorded)


def test_recorded_nftables_rules_give_the_recorded_outcomes(lab: Lab, recorded: str) -> None:
    rules.load_nftables(lab, cases.rules("nftables", recorded))
    measure(lab, "nftables", recorded)


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_both_variants_of_iptables_are_read_and_reset(lab: Lab, variant: str) -> None:
    load_iptables(lab, "everything", variant)
    assert rules.read_iptables(lab, variant) == cases.rules("iptables", "everything")
    lab.reset()
    assert "KUBE" not in rules.read_iptables(lab, variant)


def test_a_wrong_backend_is_measured(lab: Lab) -> None:
    right = cases.rules("iptables", "clusterip-basic")
    rules.load_iptables(
        lab, right.replace("--to-destination 10.244.2.22:8080", "--to-destination 10.244.2.23:8080")
    )
    expected = cases.expected("iptables", "clusterip-basic")
    measured = probe.outcomes(lab, expected, cases.endpoints("clusterip-basic"))
    assert measured["pod"]["clusterIP 10.96.1.1:80/tcp"] == [
        f"{backend}<-10.244.1.100" for backend in ("10.244.1.11", "10.244.2.21", "10.244.2.23")
    ]
    assert "10.244.2.23<-10.244.1.100" in probe.differences(expected, measured)


def test_a_lost_masquerade_is_measured(lab: Lab) -> None:
    rules.load_iptables(
        lab,
        cases.rules("iptables", "nodeport-cluster").replace(
            "--set-xmark 0x4000/0x4000", "--set-xmark 0x0/0x0"
        ),
    )
    expected = cases.expected("iptables", "nodeport-cluster")
    measured = probe.outcomes(lab, {"outside": expected["outside"]}, cases.endpoints("nodeport-cluster"))
    assert measured["outside"]["nodePort 192.0.2.1:30080/tcp"] == [
        "10.244.1.11<-198.51.100.7",
        "and no answer",
    ]


def test_missing_affinity_is_measured(lab: Lab) -> None:
    text = cases.rules("iptables", "affinity-clientip")
    rules.load_iptables(
        lab, "".join(line for line in text.splitlines(keepends=True) if "--rcheck" not in line)
    )
    expected = {"pod": {"clusterIP 10.96.5.1:80/tcp": ["*<-client"]}}
    measured = probe.outcomes(lab, expected, cases.endpoints("affinity-clientip"))
    assert len(measured["pod"]["clusterIP 10.96.5.1:80/tcp"]) > 1


def test_a_rejection_now_and_then_is_measured(lab: Lab) -> None:
    rules.load_iptables(lab, cases.rules("iptables", "clusterip-basic"))
    reject = "-m statistic --mode nth --every 20 --packet 0 -j REJECT"
    lab.run(
        "node",
        "iptables",
        "-I",
        "FORWARD",
        *["-d", "10.244.2.21", "-m", "conntrack", "--ctstate", "NEW"],
        *reject.split(),
    )
    expected = {"pod": cases.expected("iptables", "clusterip-basic")["pod"]}
    measured = probe.outcomes(lab, expected, cases.endpoints("clusterip-basic"))
    assert "and ECONNREFUSED" in measured["pod"]["clusterIP 10.96.1.1:80/tcp"]


def test_a_lost_packet_is_not_held_against_the_rules(lab: Lab) -> None:
    load_iptables(lab, "nodeport-udp")
    once = "-p udp -m conntrack --ctstate NEW -m limit --limit 1/day --limit-burst 5 -j DROP"
    lab.run("node", "iptables", "-I", "FORWARD", *once.split())
    measure(lab, "iptables", "nodeport-udp")


def test_without_rules_nothing_is_reached(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ROUNDS", 1)
    expected = cases.expected("nftables", "clusterip-one-endpoint")
    measured = probe.outcomes(lab, {"pod": expected["pod"]}, 1)
    assert set(measured["pod"].values()) == {"no answer"}


def test_reset_forgets_rules_and_sysctls(lab: Lab) -> None:
    load_iptables(lab, "clusterip-basic")
    rules.load_nftables(lab, cases.rules("nftables", "clusterip-basic"))
    lab.reset()
    assert lab.run("node", "nft", "list", "ruleset") == ""
    assert netns.read_sysctls(lab.name("node"), ["net/ipv4/conf/all/route_localnet"]) == {
        "net/ipv4/conf/all/route_localnet": "0"
    }


def test_a_case_is_laid_out_for_a_proxy(tmp_path: Path) -> None:
    config, manifests = cases.write("everything", "nftables", tmp_path)
    assert yaml.safe_load(config.read_text())["mode"] == "nftables"
    kinds = [
        each["kind"] for file in sorted(manifests.iterdir()) for each in yaml.safe_load_all(file.read_text())
    ]
    assert kinds == ["Service", "EndpointSlice", "Node", "ServiceCIDR"]


OWNER = """
import signal, time
from tests.lab.topology import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run with SIGINT ignored, children inherit that
with Lab() as lab:
    print(lab.prefix, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """Another process with a lab of its own, which has printed the prefix of its names."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        yield process
        process.kill()


def namespaces(prefix: str) -> list[str]:
    return [entry.name for entry in netns.FOLDER.iterdir() if entry.name.startswith(prefix)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_lab_cleans_up(lab: Lab, owner: subprocess.Popen[str], number: signal.Signals) -> None:
    assert owner.stdout is not None
    prefix = owner.stdout.readline().strip()
    assert namespaces(prefix)
    owner.send_signal(number)
    owner.wait(30)
    assert not namespaces(prefix)


def test_leftovers_are_swept_only_when_their_owner_is_dead(lab: Lab, owner: subprocess.Popen[str]) -> None:
    assert owner.stdout is not None
    prefix = owner.stdout.readline().strip()
    netns.sweep()
    assert len(namespaces(prefix)) == len(namespaces(lab.prefix))
    owner.kill()
    owner.wait()
    netns.sweep()
    assert not namespaces(prefix)
    assert namespaces(lab.prefix)


_HOLDER = """
import time
from tests.kernel import bpffs
with bpffs.places() as places:
    print(places.cgroup, places.pins, flush=True)
    time.sleep(600)
"""


def test_places_of_programs_are_swept_when_their_owner_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        cgroup, pins = map(Path, owner.stdout.readline().split())
        with bpffs.places() as mine:
            assert cgroup.exists()
            assert pins.parent.is_mount()
            owner.kill()
            owner.wait()
            with bpffs.places():
                assert not cgroup.exists()
                assert not pins.parent.exists()
            assert Path(mine.pins).parent.is_mount()


FAKE = """
import os, signal, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[1])))
print("hello", sorted(name for _, name in socket.if_nameindex()), file=sys.stderr, flush=True)
notify.send(b"STATUS=first sync\\nREADY=1")
time.sleep(600)
"""


def fake(code: int) -> list[str]:
    return [sys.executable, "-c", FAKE, str(code)]


def test_a_daemon_runs_on_the_node_and_is_stopped(lab: Lab) -> None:
    with Daemon(lab, fake(0)) as daemon:
        assert daemon.notifications() == ["STATUS=first sync", "READY=1"]
        daemon.says("'cni0'")
        daemon.stop()
        assert daemon.process.returncode == 0


def test_a_daemon_that_ends_badly_is_told_with_its_words(lab: Lab) -> None:
    with pytest.raises(AssertionError, match=r"(?s)exited with 3 on SIGTERM.*hello"), Daemon(lab, fake(3)):
        pass


def test_a_daemon_that_dies_early_is_told_with_its_words(lab: Lab) -> None:
    dying = [sys.executable, "-c", "raise SystemExit('no such flag')"]
    with (
        pytest.raises(AssertionError, match=r"(?s)exited with 1 before it was ready.*no such flag"),
        Daemon(lab, dying),
    ):
        pass


def test_a_daemon_that_never_gets_ready_is_ended(lab: Lab) -> None:
    slow = Daemon(lab, ["sleep", "600"], timeout=0.2)
    with pytest.raises(AssertionError, match="was not ready after"), slow:
        pass
    assert slow.process.returncode == -signal.SIGKILL
