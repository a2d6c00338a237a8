"""A changed configuration is taken while clients make new connections and a load balancer watches the health port.

The load balancer takes the node out at the first answer that is not 200, or none; no connection to a Service may fail. What is
in the kernel after an exchange is what a fresh start in the new mode puts there.
"""

import contextlib
import re
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, ask, until
from tests.kernel.test_serve import NODE, fetch, metrics, status
from tests.kernel.traffic import Front, Talk, Traffic, talkers
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, WEB6, TALK = "10.96.0.10", "fd00:10:96::10", "10.96.0.20"
NODE_PORT, CHECK = 30080, 30900
FRONTS: list[Front] = [("client", WEB, 80), ("node", WEB, 80), ("out", NODE, NODE_PORT)]
HEAD: dict[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "clusterCIDR": "10.244.0.0/16,fd00:10:244::/48",
}
PROGRAMS = [f"{program}-{variant}" for program in ("iptables", "ip6tables") for variant in ("nft", "legacy")]


class ConfigMap:
    """A configuration file as the kubelet brings it: an update swaps one link for all files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        folder.mkdir()
        self.file = folder / "config.yaml"

    def write(self, text: str = "", **config: Any) -> None:
        """The file has other content."""
        self._count += 1
        version = self._folder / f"..{self._count}"
        version.mkdir()
        (version / "config.yaml").write_text(text or yaml.safe_dump({**HEAD, **config}))
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self._folder / "..data")
        if not self.file.is_symlink():
            self.file.symlink_to("..data/config.yaml")


class Balancer:
    """A load balancer that asks for the health of the node, for a `with` block; it never sees anything but 200."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: list[int | str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            assert set(self.answers) == {200}

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self.answers.append(status(self._lab, "out", NODE, 10256, "/healthz"))


@pytest.fixture
def file(tmp_path: Path) -> ConfigMap:
    return ConfigMap(tmp_path / "config")


@pytest.fixture
def station(lab: Lab, tmp_path: Path, file: ConfigMap) -> Station:
    made = Station(lab, tmp_path)
    made.config = file.file
    ports = [types.ServicePort(80, node_port=NODE_PORT)]
    made.folder.put(
        service("web", WEB, WEB6, ports=ports),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", "fd00:10:244:1::b", name="web-6"),
        service("talk", TALK, ports=[types.ServicePort(7777)]),
        endpoints("talk", EP11, EP12, port=7777, local=(EP11, EP12), node=NODE_NAME),
        service("none", "10.96.0.30"),
    )
    return made


def kernel(lab: Lab) -> dict[str, list[str]]:
    """What is in the kernel of kube-proxies, in all places where they have something; ports of relays are masked."""
    found = {}
    for program in PROGRAMS:
        lines = lab.run("node", f"{program}-save").splitlines()
        found[program] = sorted(re.sub(r"\[\d+:\d+\]", "", line) for line in lines if "KUBE-" in line)
    for table in ("table ip kube-proxy", "table ip6 kube-proxy"):
        text = ""
        with contextlib.suppress(RuntimeError):  # there is none
            text = lab.run("node", "nft", "-s", "list", *table.split())
        found[table] = sorted(part.strip() for part in re.split(r"[,\n]", masked(text)))
    return found


def masked(text: str) -> str:
    """Without the ports that a relay got from the system."""
    return re.sub(r"\b\d{5}\b", lambda found: "PORT" if int(found[0]) >= 32768 else found[0], text)


def becomes(lab: Lab, wanted: dict[str, list[str]], what: str) -> None:
    """Waits until the kernel has what a fresh start puts there, and nothing else."""
    deadline = time.monotonic() + PATIENCE
    while (found := kernel(lab)) != wanted:
        assert time.monotonic() < deadline, f"{what}: {found} is not as fresh: {wanted}"
        time.sleep(0.1)


def in_force(daemon: Daemon, count: int, mode: str) -> None:
    """Waits until so many configurations were taken, the last of them in a mode."""
    words = "The configuration is in force, in "
    until(lambda: daemon.log().count(words) >= count or daemon.process.poll() is not None)
    modes = re.findall(rf"{words}(\w+) mode", daemon.log())
    assert (len(modes), modes[-1]) == (count, mode), daemon.log()


def fresh(lab: Lab, station: Station, file: ConfigMap, **config: Any) -> dict[str, list[str]]:
    """What a fresh start puts into the kernel, which is empty afterwards."""
    file.write(**config)
    with station.running() as daemon:
        daemon.says("Synced: ")
        found = kernel(lab)
    command = station.command("--cleanup")
    lab.run("node", "env", "PYTHONPATH=" + str(Path("src").absolute()), *command)
    assert not any("KUBE-" in line for lines in kernel(lab).values() for line in lines)
    return found


def test_every_mode_to_every_mode(lab: Lab, station: Station, file: ConfigMap) -> None:
    order = ["iptables", "nftables", "userspace", "iptables", "userspace", "nftables", "iptables"]
    wanted = {mode: fresh(lab, station, file, mode=mode) for mode in sorted(set(order))}
    file.write(mode=order[0])
    with station.running() as daemon, Balancer(lab), Traffic(lab, FRONTS) as traffic:
        for count, mode in enumerate(order[1:], 1):
            file.write(mode=mode)
            in_force(daemon, count, mode)
            assert fetch(lab, "node", "127.0.0.1", 10249, "/proxyMode")[2].decode() == mode
            becomes(lab, wanted[mode], mode)
            traffic.wait()
        assert ask(lab, "client", WEB6) == "fd00:10:244:1::b"
        assert metrics(lab)["kubeproxy_config_changes_total taken"] == len(order) - 1
        assert metrics(lab)["kubeproxy_sync_full_proxy_rules_duration_seconds_count IPv4"] >= len(order)


def test_settings_within_a_mode(lab: Lab, station: Station, file: ConfigMap) -> None:
    """What is in the kernel at the end is what a start with the last of them makes."""
    settings: list[dict[str, Any]] = [
        {"mode": "iptables", "iptables": {"masqueradeAll": True}},
        {"mode": "iptables", "iptables": {"masqueradeBit": 15}},
        {
            "mode": "iptables",
            "nodePortAddresses": ["192.0.2.0/24", "127.0.0.0/8"],
            "clusterCIDR": "10.0.0.0/8",
        },
        {"mode": "nftables", "nftables": {"masqueradeBit": 15}, "nodePortAddresses": ["192.0.2.0/24"]},
        {"mode": "nftables", "nftables": {"masqueradeAll": True}, "nodePortAddresses": ["0.0.0.0/0"]},
        {"mode": "userspace", "iptables": {"masqueradeBit": 15}},
        {
            "mode": "userspace",
            "portRange": "40000-41000",
            "nodePortAddresses": ["192.0.2.0/24", "127.0.0.0/8"],
        },
        {"mode": "userspace", "portRange": "42000-43000"},
    ]
    wanted = [fresh(lab, station, file, **config) for config in settings]
    file.write(mode="iptables")
    with station.running() as daemon, Balancer(lab), Traffic(lab, FRONTS) as traffic:
        for count, (config, rules) in enumerate(zip(settings, wanted, strict=True), 1):
            file.write(**config)
            in_force(daemon, count, config["mode"])
            becomes(lab, rules, str(config))
            traffic.wait()


def test_node_ports_on_localhost_pass_from_one_relay_to_another(
    lab: Lab, station: Station, file: ConfigMap
) -> None:
    everywhere = ["192.0.2.0/24", "127.0.0.0/8"]
    fronts: list[Front] = [*FRONTS, ("node", "127.0.0.1", NODE_PORT)]
    file.write(mode="nftables", nodePortAddresses=everywhere)
    with station.running() as daemon, Traffic(lab, fronts) as traffic:
        for count, mode in enumerate(("userspace", "nftables", "userspace"), 1):
            file.write(mode=mode, nodePortAddresses=everywhere)
            in_force(daemon, count, mode)
            traffic.wait(50)


def test_open_connections_stay_open(lab: Lab, station: Station, file: ConfigMap) -> None:
    file.write(mode="userspace")
    fronts: list[Front] = [("client", TALK, 7777), ("node", TALK, 7777)]
    with talkers(lab, "ep11", "ep12"), station.running() as daemon:
        relayed = Talk(lab, fronts * 2)
        for count, mode in enumerate(("nftables", "iptables", "userspace", "iptables"), 1):
            file.write(mode=mode)
            in_force(daemon, count, mode)
            talk = Talk(lab, fronts)
            relayed.say()
            talk.say()
            daemon.says("relay was replaced: 4 connections stay until they end")
            relayed.say()
            talk.close()
        relayed.close()


def test_what_does_not_work_is_refused(lab: Lab, station: Station, file: ConfigMap) -> None:
    file.write(mode="nftables")
    with station.running() as daemon, Balancer(lab), Traffic(lab, FRONTS) as traffic:
        before = kernel(lab)
        for config, words in (
            ({"text": "mode: [nothing"}, "config.yaml"),
            ({"mode": "iptabels"}, "KubeProxyConfiguration.Mode"),
            ({"mode": "ipvs"}, "ipvs mode cannot run"),
            (
                {"mode": "iptables", "healthzBindAddress": "192.0.2.77:10256", "bindAddressHardFail": True},
                "192.0.2.77",
            ),
        ):
            file.write(**config)
            until(lambda words=words: re.search(f"^E.*{words}.*stays in force$", daemon.log(), re.MULTILINE))  # type: ignore[misc]
            assert metrics(lab)["kubeproxy_config_in_force"] == 0
            assert words in fetch(lab, "out", NODE, 10256, "/readyz")[2].decode()
            assert fetch(lab, "node", "127.0.0.1", 10249, "/proxyMode")[2] == b"nftables"
            assert b'"mode":"nftables"' in fetch(lab, "node", "127.0.0.1", 10249, "/configz")[2]
            traffic.wait()
        station.folder.put(service("late", "10.96.0.77"), endpoints("late", EP12))
        until(lambda: ask(lab, "client", "10.96.0.77", patience=0.2) == EP12)
        station.folder.remove("Service", "late")
        station.folder.remove("EndpointSlice", "late-1")
        until(lambda: kernel(lab) == before)
        file.write(mode="iptables")
        in_force(daemon, 1, "iptables")
        assert metrics(lab)["kubeproxy_config_in_force"] == 1
        assert daemon.process.poll() is None


def test_of_rapid_edits_the_last_one_counts(lab: Lab, station: Station, file: ConfigMap) -> None:
    last = fresh(lab, station, file, mode="nftables", nftables={"masqueradeBit": 9})
    file.write(mode="iptables")
    with station.running(), Balancer(lab), Traffic(lab, FRONTS) as traffic:
        for bit in range(20):
            file.write(mode=("iptables", "nftables", "userspace")[bit % 3], nftables={"masqueradeBit": bit})
            traffic.wait(1)
        file.write(mode="nftables", nftables={"masqueradeBit": 9})
        until(lambda: kernel(lab) == last)
        traffic.wait()


def test_the_health_port_moves(lab: Lab, station: Station, file: ConfigMap) -> None:
    file.write(mode="nftables")
    with station.running() as daemon:
        file.write(
            mode="nftables", healthzBindAddress="192.0.2.1:10256", metricsBindAddress="127.0.0.1:10300"
        )
        in_force(daemon, 1, "nftables")
        daemon.says("Serving health on 192.0.2.1:10256")
        daemon.says("Serving metrics on 127.0.0.1:10300")
        assert status(lab, "out", NODE, 10256, "/healthz") == 200
        assert status(lab, "node", "127.0.0.1", 10256, "/healthz") == "ConnectionRefusedError"
        assert status(lab, "node", "127.0.0.1", 10300, "/configz") == 200
        assert status(lab, "node", "127.0.0.1", 10249, "/configz") == "ConnectionRefusedError"
        assert "writing rules" in daemon.log()
        assert daemon.log().count("Synced: ") == 1, "no rule depends on it"


@pytest.mark.vm
def test_to_ipvs_mode_and_back(lab: Lab, station: Station, file: ConfigMap) -> None:
    """What is left in the end is what a fresh start in the last mode makes.

    No process of the node is among the clients: in ipvs mode the ClusterIP is an address of the node, so such a client has
    it as its source, and a connection that is open when the mode is left loses it.
    """
    fronts: list[Front] = [front for front in FRONTS if front[0] != "node"]
    order = ["nftables", "ipvs", "userspace", "ipvs", "iptables"]
    wanted = fresh(lab, station, file, mode="iptables")
    file.write(mode=order[0])
    with station.running() as daemon, Balancer(lab), Traffic(lab, fronts) as traffic:
        for count, mode in enumerate(order[1:], 1):
            file.write(mode=mode)
            in_force(daemon, count, mode)
            until(lambda mode=mode: bool(servers(lab)) == (mode == "ipvs"), mode)  # type: ignore[misc]
            traffic.wait()
        becomes(lab, wanted, "iptables")
    assert not lab.run("node", "ipset", "list", "-n")
    assert "kube-ipvs0" not in lab.run("node", "ip", "link")


def servers(lab: Lab) -> str:
    """The virtual servers."""
    return lab.run("node", "ipvsadm", "-Sn")
