"""ipvs mode on a node with traffic: connections that drain, harm that is mended, take-over, clean-up, other modes."""

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.api.addresses import pack
from kubeproxy.backends.ipvs.hold import TABLE, hold
from kubeproxy.netlink.ipvs import TCP, Virtual, remembers, table
from kubeproxy.relay.connection import will_reset
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask, until
from tests.kernel.test_daemon import run
from tests.kernel.test_top import port, watching
from tests.kernel.traffic import LIMIT, TALK_PORT, Talk, Traffic, talkers
from tests.lab import cases, ipvs, rules
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import EP11, EP11_6, EP12, NODE_NAME, Lab
from tests.machines import MACHINE

pytestmark = pytest.mark.vm

WEB, COUNTED = "10.96.0.10", "10.96.0.77"


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Station:
    return Station(lab, tmp_path, mode="ipvs", ipvs={"syncPeriod": "1s"})


def fill(station: Station, *backends: str, port: int = 8080) -> None:
    station.folder.put(
        service("web", WEB, type="NodePort", ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", *backends, port=port, local=(EP11, EP12), node=NODE_NAME),
    )


def reals(lab: Lab) -> dict[str, int]:
    """The real servers behind the ClusterIP, with their weights."""
    listed = lab.run("node", "ipvsadm", "-Sn")
    return {a: int(w) for a, w in re.findall(rf"-a -t {WEB}:80 -r ([\d.]+):\d+ -m -w (\d+)", listed)}


def test_open_connections_of_an_endpoint_that_goes_drain(lab: Lab, station: Station) -> None:
    fill(station, EP11, port=TALK_PORT)
    with talkers(lab, "ep11", "ep12"):
        with station.running():
            talk = Talk(lab, [("client", WEB, 80), ("out", "192.0.2.1", 30080)])
            talk.say()
            fill(station, EP12, port=TALK_PORT)
            until(lambda: reals(lab) == {EP11: 0, EP12: 1})
            talk.say()
            others = Talk(lab, [("client", WEB, 80)] * 3)  # go to the one that is left
            others.say()
            assert re.search(rf"-> {EP11}:{TALK_PORT} +Masq +0 +1 ", lab.run("node", "ipvsadm", "-Ln"))
        # It stays through a restart, too.
        with station.running():
            talk.say()
            talk.reset()
            # The kernel forgets a connection some seconds after its reset.
            until(lambda: reals(lab) == {EP12: 1})
            others.say()
        others.close()


def test_an_endpoint_without_connections_goes_at_once(lab: Lab, station: Station) -> None:
    fill(station, EP11, EP12)
    with station.running():
        assert reals(lab) == {EP11: 1, EP12: 1}
        fill(station, EP12)
        until(lambda: reals(lab) == {EP12: 1})
        assert ask(lab, "client", WEB) == EP12


def test_harm_is_mended_under_traffic(lab: Lab, station: Station) -> None:
    fill(station, EP11, EP12)
    with station.running() as daemon:
        whole = ipvs.state(lab)
        for harm in (
            "ipvsadm -C",
            "ip link delete kube-ipvs0",
            "ipset flush KUBE-CLUSTER-IP",
            "iptables -t nat -F KUBE-SERVICES",
            f"ipvsadm -e -t {WEB}:80 -r {EP11}:8080 -m -w 0",
            f"ip address delete {WEB}/32 dev kube-ipvs0",
        ):
            lab.run("node", *harm.split())
            until(lambda: ipvs.state(lab) == whole, harm)
        daemon.says("another program changed the rules")
        assert ask(lab, "client", WEB) in {EP11, EP12}


def test_what_the_kernel_tells_of_is_mended_at_once(lab: Lab, tmp_path: Path) -> None:
    """Long before somebody looks."""
    station = Station(lab, tmp_path, mode="ipvs", ipvs={"syncPeriod": "1h"})
    fill(station, EP11, EP12)
    with station.running() as daemon:
        whole = ipvs.state(lab)
        for harm, words in (
            (f"ip address delete {WEB}/32 dev kube-ipvs0", f"another program deleted {WEB} from kube-ipvs0"),
            ("iptables -t nat -F KUBE-SERVICES", "changed our rules in table nat"),
            ("iptables -D INPUT 1", "changed our rules in table filter"),
            ("ip link delete kube-ipvs0", "another program deleted"),
        ):
            lab.run("node", *harm.split())
            until(lambda: ipvs.state(lab) == whole, harm)
            daemon.says(words)
        before = daemon.log().count("full sync")
        fill(station, EP12)  # our own changes disturb nobody
        until(lambda: reals(lab) == {EP12: 1})
        station.folder.remove("Service", "web")
        until(lambda: not reals(lab))
        assert daemon.log().count("full sync") == before


def test_what_the_reference_left_is_taken_over_without_losing_a_connection(lab: Lab, tmp_path: Path) -> None:
    name = "nodeport-cluster"
    config, manifests = cases.write(name, "ipvs", tmp_path)
    recorded = ipvs.without_mangle(cases.rules("ipvs", name))
    ipvs.load(lab, cases.rules("ipvs", name))
    for key in ("conntrack", "expire_nodest_conn"):
        lab.run("node", "sh", "-c", f"echo 1 > /proc/sys/net/ipv4/vs/{key}")
    assert ipvs.state(lab) == recorded
    (address, port) = re.findall(r"^-A -t (10\.96[\d.]+):(\d+)", recorded, re.MULTILINE)[0]
    before = lab.run("node", "ipset", "save")
    with Traffic(lab, [("client", address, int(port))]) as traffic:
        with Daemon(lab, kube_proxy(config, manifests), timeout=120):
            traffic.wait(20)
            assert ipvs.state(lab) == recorded
        traffic.wait(3)
    assert lab.run("node", "ipset", "save") == before  # with the very sets that were there


def test_clean_up_leaves_what_is_others_and_finds_nothing_the_second_time(lab: Lab, station: Station) -> None:
    fill(station, EP11)
    foreign = [
        "ipvsadm -A -t 192.0.2.1:9999 -s wlc",
        "ipset create OTHERS hash:ip",
        "iptables -A FORWARD -m set --match-set OTHERS dst -j DROP",
    ]
    with station.running():
        for command in foreign[1:]:
            lab.run("node", *command.split())
    lab.run("node", *foreign[0].split())
    for _ in range(2):
        done = run(station, flags=("--cleanup",))
        assert done.returncode == 0, done.stderr
        left = ipvs.state(lab)
        assert "KUBE-" not in left
        assert "-A -t 192.0.2.1:9999 -s wlc" in left
        assert left.count("\n-A -t") == 1
        assert "--match-set OTHERS dst -j DROP" in left
        assert "kube-ipvs0" not in lab.run("node", "ip", "-o", "link")


def test_nobody_begins_a_connection_while_virtual_servers_go(lab: Lab, station: Station) -> None:
    """What is tracked of a client's port goes with what IPVS remembers of it."""
    fill(station, EP11)
    with station.running(), lab.inside("client"):
        before = socket.create_connection((WEB, 80), LIMIT)
        client = socket.socket()
    another_mode = f"-d {WEB} -p tcp --dport 80 -j DNAT --to-destination {EP12}:8080"
    lab.run("node", *f"iptables -t nat -I PREROUTING {another_mode}".split())
    with before:
        assert before.recv(256).startswith(EP11.encode())
        port = before.getsockname()[1]
        will_reset(before)  # which frees the port at once
    with client, lab.inside("node"):
        servers = set(table(MACHINE))
        assert remembers(MACHINE, servers)
        with hold(MACHINE, servers | {Virtual(TCP, pack(EP11_6), 8080)}):
            client.bind(("", port))
            client.setblocking(False)
            client.connect_ex((WEB, 80))
            assert ask(lab, "client", EP11, 8080, LIMIT) == EP11
            assert ask(lab, "client", EP11_6, 8080, 0.3) == "TimeoutError"
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\2"  # TCP_SYN_SENT
            lab.run("node", "ipvsadm", "-C")
        assert ask(lab, "client", EP11_6, 8080, LIMIT) == EP11_6
        until(lambda: not remembers(MACHINE, servers))
        client.settimeout(LIMIT)
        assert client.recv(256).startswith(EP12.encode())
    assert TABLE not in lab.run("node", "nft", "list", "tables")


def test_connections_are_counted_by_endpoint(lab: Lab, station: Station) -> None:
    # A Service of its own: the virtual servers of another test may have counts that the kernel has not added up yet.
    station.folder.put(
        service("counted", COUNTED, type="NodePort", ports=[types.ServicePort(80, node_port=30099)]),
        endpoints("counted", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
    )
    with station.running(), watching(station) as watch:
        assert watch.top().sources.connections == "counters"
        answered: Counter[str] = Counter()

        def counted() -> dict[str, int]:
            return {each.address: each.connections or 0 for each in port(watch, "counted").endpoints}

        for role, address, number in (
            ("client", COUNTED, 80), ("out", "192.0.2.1", 30099), ("node", COUNTED, 80),
        ):  # fmt: skip
            answered.update(ask(lab, role, address, number) for _ in range(12))
            until(lambda: counted() == answered, f"{counted()} is not {answered}")  # every two seconds


def test_an_unknown_scheduler_is_told(lab: Lab, tmp_path: Path) -> None:
    done = run(Station(lab, tmp_path, mode="ipvs", ipvs={"scheduler": "nosuch"}))
    assert done.returncode == 1
    assert "the kernel has no scheduler 'nosuch' (module ip_vs_nosuch)" in done.stderr


def _modes(lab: Lab) -> Iterator[str]:
    """The modes that have left something."""
    saved = lab.run("node", "iptables-save")
    if ":KUBE-SERVICES " in saved:
        yield "ipvs" if "-j KUBE-NODE-PORT\n" in saved else "iptables"
    if "table ip kube-proxy" in lab.run("node", "nft", "list", "tables"):
        yield "nftables"
    if "-A -t" in lab.run("node", "ipvsadm", "-Sn") or "KUBE-" in lab.run("node", "ipset", "list", "-n"):
        yield "servers or sets"


def test_from_other_modes_and_back_under_traffic(lab: Lab, tmp_path: Path) -> None:
    fronts = [("client", WEB, 80), ("out", "192.0.2.1", 30080)]
    stations = {}
    for mode in ("iptables", "ipvs", "nftables"):
        (tmp_path / mode).mkdir()
        stations[mode] = Station(lab, tmp_path / mode, mode=mode, nodePortAddresses=["192.0.2.0/24"])
        fill(stations[mode], EP11, EP12)
    with stations["ipvs"].running():
        alone = ipvs.state(lab)
    assert run(stations["ipvs"], flags=("--cleanup",)).returncode == 0
    with stations["iptables"].running():
        first = rules.read_iptables(lab)
    with Traffic(lab, fronts):
        with stations["ipvs"].running():
            until(lambda: list(_modes(lab)) == ["ipvs", "servers or sets"])
            until(lambda: _without_kubelet(ipvs.state(lab)) == _without_kubelet(alone))
        with stations["iptables"].running():
            until(lambda: list(_modes(lab)) == ["iptables"])
            # Which jump of the kernel's chains comes first may be another than on an empty node.
            assert sorted(rules.read_iptables(lab).splitlines()) == sorted(first.splitlines())
        with stations["ipvs"].running():
            until(lambda: list(_modes(lab)) == ["ipvs", "servers or sets"])
        with stations["nftables"].running():
            until(lambda: list(_modes(lab)) == ["nftables"])
            time.sleep(0.5)


def _without_kubelet(state: str) -> list[str]:
    """KUBE-FIREWALL, which iptables mode guards, is the kubelet's and stays."""
    return sorted(line for line in state.splitlines() if "KUBE-FIREWALL" not in line)
