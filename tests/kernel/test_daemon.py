"""The daemon as an operator starts, stops, kills, starts again and removes it, on a node with real packets."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.api.addresses import FAMILIES, IPV4, IPV6
from kubeproxy.backends.iptables import names
from kubeproxy.backends.programs import Variant
from kubeproxy.netlink import nfacct
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Bare, Station, answers, ask, asked, until
from tests.kernel.spaces import VARIANTS, Real
from tests.kernel.traffic import Traffic
from tests.lab import kernel, netns
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, EP12, NODE_NAME, REMOTE, REMOTE2, ROOT, Lab
from tests.machines import MACHINE

both = pytest.mark.parametrize("variant", VARIANTS)
WEB = "10.96.0.10"


def web(*addresses: str) -> types.EndpointSlice:
    return endpoints("web", *addresses, local=(EP11, EP12), node=NODE_NAME)


@both
def test_rules_follow_the_manifests(lab: Lab, tmp_path: Path, variant: Variant) -> None:
    station = Station(lab, tmp_path, variant)
    station.folder.put(service("web", WEB), web(EP11))
    with station.running():
        assert set(asked(lab, "client", WEB)) == {EP11}
        station.folder.put(web(EP11, EP12, REMOTE))
        until(lambda: set(asked(lab, "client", WEB)) == {EP11, EP12, REMOTE})
        station.folder.put(service("new", "10.96.0.11"), endpoints("new", EP12))
        until(lambda: answers(lab, "client", "10.96.0.11", EP12))
        station.folder.put(web())
        until(lambda: answers(lab, "client", WEB, "ConnectionRefusedError"))
        station.folder.put(web(EP12))
        until(lambda: answers(lab, "client", WEB, EP12))
        station.folder.remove("Service", "web")
        until(lambda: not any(WEB in rule for rule in station.rules()["nat"][names.SERVICES]))
        assert ask(lab, "client", "10.96.0.11", 80) == EP12


@both
def test_a_backend_that_goes_is_asked_no_more(lab: Lab, tmp_path: Path, variant: Variant) -> None:
    station = Station(lab, tmp_path, variant)
    station.folder.put(service("web", WEB), web(EP11, EP12))
    with station.running():
        assert set(asked(lab, "client", WEB)) == {EP11, EP12}
        station.folder.put(web(EP12))
        until(lambda: set(asked(lab, "client", WEB)) == {EP12})
        assert asked(lab, "client", WEB, times=50) == {EP12: 50}


@both
def test_its_end_leaves_the_rules_and_another_start_touches_nothing(
    lab: Lab, tmp_path: Path, variant: Variant
) -> None:
    station = Station(lab, tmp_path, variant)
    port = types.ServicePort(80, node_port=30080)
    station.folder.put(
        service("web", WEB, "fd00:10:96::10", ports=[port], session_affinity="ClientIP"),
        web(EP11, EP12),
        endpoints("web", "fd00:10:244:1::b", name="web-6"),
        service("none", "10.96.0.11", "fd00:10:96::11"),
    )

    def held() -> tuple[str, ...]:
        """Everything, with counters and the kernel's own numbers of rules; legacy tables are replaced as a whole."""
        handles = lab.run("node", "nft", "-a", "list", "ruleset") if variant == "nf_tables" else ""
        programs = [Real(family, variant) for family in FAMILIES]
        with lab.inside("node"):
            counted = [
                line
                for tables in programs
                for line in tables.counted().splitlines()
                if line.startswith("[") and " -A KUBE-S" in line
            ]
        assert handles or variant == "legacy"
        return (re.sub(r"packets \d+ bytes \d+", "", handles), *counted)

    with station.running() as daemon:
        assert set(asked(lab, "client", WEB)) <= {EP11, EP12}
        before = held()
        daemon.stop()
        assert daemon.process.returncode == 0
        assert daemon.notifications() == ["READY=1", "STATUS=iptables mode", "STOPPING=1"]
    assert held() == before
    assert any("KUBE-SEP" in line and not line.startswith("[0:0]") for line in before)
    with station.running():
        assert held() == before
    assert held() == before


@both
def test_a_crash_leaves_the_rules_and_another_start_mends_them(
    lab: Lab, tmp_path: Path, variant: Variant
) -> None:
    station = Station(lab, tmp_path, variant)
    station.folder.put(service("web", WEB), web(EP11), service("old", "10.96.0.11"))
    with station.running() as daemon:
        daemon.kill()
        assert asked(lab, "client", WEB) == {EP11: 24}
    station.folder.put(web(EP12))
    station.folder.remove("Service", "old")
    with station.running():
        assert asked(lab, "client", WEB) == {EP12: 24}
        assert not any("10.96.0.11" in rule for rule in station.rules()["filter"][names.SERVICES])
        chains = [chain for chain in station.rules()["nat"] if names.is_owned(chain)]
        assert len(chains) == 2


def test_ctrl_c_ends_it_too(lab: Lab, tmp_path: Path) -> None:
    with Station(lab, tmp_path).running() as daemon:
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(PATIENCE) == 130
        daemon.kill()


@both
def test_what_somebody_deletes_comes_back(lab: Lab, tmp_path: Path, variant: Variant) -> None:
    """While other Services change, too."""
    station = Station(lab, tmp_path, variant, iptables={"syncPeriod": "1s"})
    station.folder.put(service("web", WEB), web(EP11))
    with station.running() as daemon:
        base = station.tables.base
        lab.run("node", base, "-t", "nat", "-F", names.SERVICES)
        for i in range(200):
            station.folder.put(service("busy", f"10.96.1.{i}"))
            if answers(lab, "client", WEB, EP11):
                break
        else:
            pytest.fail(daemon.log())
        for chain in ("PREROUTING", "OUTPUT", "POSTROUTING"):
            lab.run("node", base, "-t", "nat", "-F", chain)
        until(lambda: answers(lab, "client", WEB, EP11))
        daemon.says("are compared and restored")


@both
def test_a_service_the_kernel_refuses_is_named_and_holds_up_nobody(
    lab: Lab, tmp_path: Path, variant: Variant
) -> None:
    """Its rule counts into a counter that somebody deleted."""
    station = Station(lab, tmp_path, variant)
    station.folder.put(service("web", WEB), web(EP11))
    bad = service("bad", "10.96.0.66", ports=[types.ServicePort(80, node_port=30066)])
    with station.running() as daemon:
        kernel.flush_nfacct(lab.name("node"))
        station.folder.put(bad, endpoints("bad", EP12))
        daemon.says("Service default/bad: IPv4 rules refused")
        assert ask(lab, "client", WEB, 80) == EP11
        station.folder.put(web(EP12), service("new", "10.96.0.11"), endpoints("new", EP11))
        until(lambda: answers(lab, "client", "10.96.0.11", EP11))
        until(lambda: answers(lab, "client", WEB, EP12))
        assert not any(":bad" in rule or "/bad" in rule for rule in station.rules()["nat"][names.SERVICES])
        with lab.inside("node"):
            nfacct.ensure(MACHINE, names.LOCALHOST_COUNTER)
        station.folder.put(endpoints("bad", EP11))
        until(lambda: answers(lab, "client", "10.96.0.66", EP11))
        daemon.says("Service default/bad: IPv4 rules are in place now")


@both
def test_a_repair_restores_the_rules_that_a_refused_service_had(
    lab: Lab, tmp_path: Path, variant: Variant
) -> None:
    """It gets a node port, whose rule counts into a counter that was deleted."""
    station = Station(lab, tmp_path, variant, iptables={"syncPeriod": "1s"})
    address = "10.96.0.66"
    station.folder.put(service("web", WEB), web(EP11), service("bad", address), endpoints("bad", EP12))
    with station.running() as daemon:
        assert ask(lab, "client", address, 80) == EP12
        kernel.flush_nfacct(lab.name("node"))
        ports = [types.ServicePort(80, node_port=30066)]
        station.folder.put(service("bad", address, ports=ports))
        daemon.says("Service default/bad: IPv4 rules refused")
        assert ask(lab, "client", address, 80) == EP12
        lab.run("node", station.tables.base, "-t", "nat", "-F")
        daemon.says("are compared and restored")
        until(lambda: answers(lab, "client", WEB, EP11))
        until(lambda: answers(lab, "client", address, EP12))


def test_a_table_that_cannot_be_read(lab: Lab, tmp_path: Path) -> None:
    """Somebody put a native rule of nf_tables into it."""
    native = "tcp dport { 9, 10 } dnat to 192.0.2.9"
    lab.run("node", "nft", f"add table ip nat; add chain ip nat theirs; add rule ip nat theirs {native}")
    station = Station(lab, tmp_path, "nf_tables", nodePortAddresses=["primary"])
    none = service("none", "10.96.0.77")
    station.folder.put(service("web", WEB), web(EP11), none)
    with station.running():
        assert ask(lab, "client", WEB, 80) == EP11
    with Traffic(lab, [("client", WEB, 80), ("node", WEB, 80)]) as traffic:
        for backend in (EP12, EP11, EP12):
            station.folder.put(web(backend))
            with station.running() as daemon:
                daemon.says(
                    "IPv4: another program put something into table nat that the iptables programs cannot read"
                )
                assert ask(lab, "client", WEB, 80) == backend
                traffic.wait()
    hooks = lab.run("node", "nft", "list", "chain", "ip", "nat", "PREROUTING")
    assert hooks.count("jump KUBE-SERVICES") == 1
    assert lab.run("node", "nft", "list", "chain", "ip", "filter", "KUBE-SERVICES").count("reject") == 1
    assert native in lab.run("node", "nft", "list", "chain", "ip", "nat", "theirs")


def test_node_ports_follow_the_node_s_addresses(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, nodePortAddresses=["192.0.2.0/24"])
    station.folder.put(service("web", WEB, ports=[types.ServicePort(80, node_port=30080)]), web(EP11))
    try:
        with station.running():
            assert ask(lab, "out", "192.0.2.1", 30080) == EP11
            lab.run("node", "ip", "address", "add", "192.0.2.77/32", "dev", "lo")
            until(lambda: any("192.0.2.77/32" in rule for rule in station.rules()["nat"][names.SERVICES]))
            lab.run("node", "ip", "address", "del", "192.0.2.77/32", "dev", "lo")
            until(lambda: not any("192.0.2.77/32" in rule for rule in station.rules()["nat"][names.SERVICES]))
            assert ask(lab, "out", "192.0.2.1", 30080) == EP11
    finally:
        lab.run("node", "ip", "address", "del", "192.0.2.77/32", "dev", "lo", check=False)


def test_tables_of_nftables_mode_go_when_the_rules_are_in_place(lab: Lab, tmp_path: Path) -> None:
    for family in ("ip", "ip6", "inet"):
        lab.run("node", "nft", "add", "table", family, "kube-proxy")
    lab.run("node", "nft", "add", "table", "ip", "other")
    station = Station(lab, tmp_path)
    station.folder.put(service("web", WEB), web(EP11))

    def tables() -> set[str]:
        return set(lab.run("node", "nft", "list", "tables").splitlines())

    with station.running():
        until(lambda: "table ip kube-proxy" not in tables() and "table ip6 kube-proxy" not in tables())
        assert {"table ip other", "table inet kube-proxy"} <= tables()
        assert ask(lab, "client", WEB, 80) == EP11


def test_without_ipv6_it_serves_ipv4(space: str, tmp_path: Path) -> None:
    netns.write_sysctls(
        space, {"net/ipv6/conf/all/disable_ipv6": "1", "net/ipv6/conf/default/disable_ipv6": "1"}
    )
    station = Station(Bare(space), tmp_path)
    station.folder.put(service("web", WEB, "fd00:10:96::10"), web(EP11), service("six", "fd00:10:96::11"))
    with station.running() as daemon:
        assert any(WEB in rule for rule in station.rules()["nat"][names.SERVICES])
        with netns.inside(space):
            assert not any("KUBE" in line for line in Real(IPV6, "nf_tables").save())
        station.folder.put(web(EP12))
        until(lambda: any(f"{EP12}:8080" in line for line in station.counted().splitlines()))
        assert "Traceback" not in daemon.log()


def run(
    station: Station, *prefix: str, path: str = "", flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs the daemon to its end."""
    environment = {"PATH": path or os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
    with station.lab.inside("node"):
        return subprocess.run(
            [*prefix, *station.command(*flags)],
            check=False, capture_output=True, text=True, env=environment, timeout=PATIENCE,
        )  # fmt: skip


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of log that are not mere information."""
    return [line for line in done.stderr.splitlines() if not re.match(r"I\d{4} ", line)]


@pytest.mark.parametrize("variant", ["", "-legacy", "-nft"])
def test_without_the_right_to_it_one_line_says_so(space: str, tmp_path: Path, variant: str) -> None:
    """Root's name, none of its rights."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for family in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            (programs / f"{family}{verb}").symlink_to(f"/usr/sbin/{family}{variant}{verb}")
    station = Station(Bare(space), tmp_path)
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable]
    done = run(station, *prefix[:-1], path=f"{programs}:/usr/bin:/bin")
    assert done.returncode == 1
    errors = [line for line in complaints(done) if line.startswith("E")]
    assert len(errors) == 1, done.stderr
    assert "iptables cannot run for IPv4" in errors[0]
    assert "Traceback" not in done.stderr


def test_without_iptables_one_line_says_so(space: str, tmp_path: Path) -> None:
    done = run(Station(Bare(space), tmp_path), path="/nonexistent")
    assert done.returncode == 1
    (error,) = [line for line in complaints(done) if line.startswith("E")]
    assert "program iptables is not in PATH; install iptables" in error
    assert "Traceback" not in done.stderr


def test_without_ip6tables_it_serves_ipv4(space: str, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for verb in ("", "-save", "-restore"):
        (programs / f"iptables{verb}").symlink_to(f"/usr/sbin/iptables{verb}")
    station = Station(Bare(space), tmp_path)
    station.folder.put(service("web", WEB), web(EP11))
    with station.running(path=programs) as daemon:
        assert any(WEB in rule for rule in station.rules()["nat"][names.SERVICES])
        daemon.says("Only IPv4 is served: program ip6tables is not in PATH")


def test_its_end_waits_for_no_program(space: str, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("iptables", "iptables-save", "cat", "sleep", "printf"):
        found = shutil.which(name, path="/usr/sbin:/usr/bin:/bin")
        assert found
        (programs / name).symlink_to(found)
    slow = programs / "iptables-restore"
    slow.write_text(
        "#!/bin/sh\ninput=$(cat)\n"
        'case "$input" in *KUBE-SVC-*) exec sleep 1000;; esac\n'
        'printf "%s\\n" "$input" | exec /usr/sbin/iptables-restore "$@"\n'
    )
    slow.chmod(0o755)
    station = Station(Bare(space), tmp_path)
    station.folder.put(service("web", WEB))
    with station.running(path=programs) as daemon:
        station.folder.put(web(EP11))
        until(lambda: "sleep\n" in children(daemon))


def children(daemon: Daemon) -> set[str]:
    """The names of the programs a daemon runs."""
    mine = Path(f"/proc/{daemon.process.pid}/task").glob("*/children")
    numbers = {number for task in mine for number in task.read_text().split()}
    return {
        Path(f"/proc/{number}/comm").read_text() for number in numbers if Path(f"/proc/{number}").exists()
    }


FOREIGN = """
*nat
:CNI-MASQ - [0:0]
-A POSTROUTING -s 10.244.0.0/16 -j CNI-MASQ
-A CNI-MASQ -j KUBE-MARK-MASQ
COMMIT
*filter
-A FORWARD -i cni0 -j ACCEPT
COMMIT
"""


def test_cleanup_removes_all_of_ours_and_nothing_else(lab: Lab, tmp_path: Path) -> None:
    for variant in VARIANTS:
        station = Station(lab, tmp_path, variant)
        station.folder.put(
            service("web", WEB, "fd00:10:96::10", ports=[types.ServicePort(80, node_port=30080)]),
            web(EP11, EP12),
            endpoints("web", "fd00:10:244:1::b", name="web-6"),
        )
        with station.running():
            assert set(asked(lab, "client", WEB)) == {EP11, EP12}
        lab.run("node", f"{station.tables.base}-restore", "--noflush", given=FOREIGN)
    lab.run("node", "nft", "add", "table", "ip", "kube-proxy")
    for _ in range(2):
        done = run(station, flags=("--cleanup",))
        assert done.returncode == 0
        assert all("route_localnet is 1" in line for line in complaints(done))
        for variant in VARIANTS:
            for family in FAMILIES:
                with lab.inside("node"):
                    left = Real(family, variant).lines()
                kube = {
                    line.split(" ")[1] if line[0] == "-" else line.split(" ")[0]
                    for line in left
                    if "KUBE-" in line
                }
                assert kube <= {
                    "CNI-MASQ",
                    "KUBE-MARK-MASQ",
                    ":KUBE-MARK-MASQ",
                }
                if family == IPV4:
                    assert {"-A CNI-MASQ -j KUBE-MARK-MASQ", "-A FORWARD -i cni0 -j ACCEPT"} <= left
        assert "kube-proxy" not in lab.run("node", "nft", "list", "tables")


def test_cleanup_without_anything_to_clean(space: str, tmp_path: Path) -> None:
    done = run(Station(Bare(space), tmp_path), flags=("--cleanup",))
    assert (done.returncode, complaints(done)) == (0, [])


def test_cleanup_without_the_right_to_it(space: str, tmp_path: Path) -> None:
    done = run(
        Station(Bare(space), tmp_path),
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        flags=("--cleanup",),
    )
    assert done.returncode == 1
    assert len(complaints(done)) == 1
    assert "Traceback" not in done.stderr


def destinations(station: Station) -> set[str]:
    """Where packets are sent."""
    return set(re.findall(r"--to-destination ([\d.]+):8080", station.counted()))


@both
def test_a_client_keeps_its_backend_when_others_come_and_over_a_restart(
    lab: Lab, tmp_path: Path, variant: Variant
) -> None:
    station = Station(lab, tmp_path, variant)
    station.folder.put(service("web", WEB, session_affinity="ClientIP"), web(EP11, EP12))
    with station.running():
        (first,) = asked(lab, "client", WEB)
        for addresses in ((EP11, EP12, REMOTE), (EP11, EP12, REMOTE, REMOTE2), (EP11, EP12)):
            station.folder.put(web(*addresses))
            until(lambda wanted=set(addresses): destinations(station) == wanted)  # type: ignore[misc]
            assert set(asked(lab, "client", WEB)) == {first}
    with station.running():
        assert set(asked(lab, "client", WEB)) == {first}


def test_two_families_are_served(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path)
    station.folder.put(
        service("web", WEB, "fd00:10:96::10"), web(EP11), endpoints("web", "fd00:10:244:1::b", name="web-6")
    )
    with station.running():
        assert ask(lab, "client", WEB, 80) == EP11
        assert ask(lab, "client", "fd00:10:96::10", 80) == "fd00:10:244:1::b"
