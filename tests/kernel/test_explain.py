"""`explain` on a node: it finds the running daemon's configuration, and compares the kernel with what a packet needs."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api import types
from kubeproxy.backends.programs import Variant
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, EMPTY = "10.96.0.10", "10.96.0.11"
WEB6 = "fd00:10:96::10"
SIX = "fd00:10:244:1::b"
MODES: dict[str, tuple[str, Variant]] = {
    "nftables": ("nftables", "nf_tables"),
    "iptables-nf_tables": ("iptables", "nf_tables"),
    "iptables-legacy": ("iptables", "legacy"),
}


def fill(station: Station) -> None:
    ports = [types.ServicePort(80, node_port=30080)]
    station.folder.put(
        service("web", WEB, WEB6, ports=ports, type="NodePort", external_ips=("203.0.113.9",)),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", SIX, name="web-6"),
        service("empty", EMPTY),
    )


@pytest.fixture(params=MODES)
def station(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Station:
    """A station whose daemon has run; its rules are there, and it repairs nothing."""
    mode, variant = MODES[request.param]
    made = Station(lab, tmp_path, variant, mode=mode)
    fill(made)
    with made.running():
        pass
    return made


def explain(station: Station, *arguments: str, prefix: Sequence[str] = ()) -> tuple[int, dict[str, Any], str]:
    """Exit status, answer, and what is said beside it."""
    programs = station.config.parent / "programs"  # those the daemon had
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    command = [*prefix, sys.executable, "-m", "kubeproxy", "explain", "--json", *arguments]
    done = subprocess.run(
        ["ip", "netns", "exec", station.lab.name("node"), *command],
        check=False, capture_output=True, text=True, env=environment, timeout=240,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def sources(station: Station) -> list[str]:
    return [
        "--config",
        str(station.config),
        "--manifests",
        str(station.folder.path),
        "--hostname-override",
        NODE_NAME,
    ]


@pytest.mark.parametrize(
    ("destination", "status", "front"),
    [
        (f"{WEB}:80", 0, "ClusterIP"),
        ("203.0.113.9:80", 0, "external IP"),
        (":30080", 0, "node port"),
        (f"[{WEB6}]:80", 0, "ClusterIP"),
        (f"{EMPTY}:80", 4, "ClusterIP"),
    ],
)
def test_a_kernel_that_holds_the_plan_agrees(
    station: Station, destination: str, status: int, front: str
) -> None:
    source = "2001:db8:198::7" if ":10:96" in destination else "198.51.100.7"
    code, found, said = explain(station, "--from", source, "--to", destination, *sources(station))
    assert (found["kernel"], found["differences"], code) == ("agrees", [], status), said
    assert found["front"] == front
    rules = [each["text"] for each in found["rules"]]
    assert rules
    assert {endpoint["address"] for endpoint in found["endpoints"]} <= {EP11, EP12, SIX}
    for endpoint in found["endpoints"]:
        assert any(endpoint["address"] in rule for rule in rules)
    others = {WEB, "203.0.113.9", "30080", WEB6, EMPTY} - {
        destination.strip("[]:").rsplit("]")[0].split(":80")[0]
    }
    if destination != f"[{WEB6}]:80":
        assert not any(f" {other} " in rule or f"{other}/32" in rule for rule in rules for other in others)


def test_a_packet_for_no_service_is_compared_too(station: Station) -> None:
    code, found, _ = explain(station, "--from", EP11, "--to", "10.96.0.99:80", *sources(station))
    assert found["kernel"] == "agrees"
    assert (code, found["verdict"]) == (0, "pass")
    code, found, _ = explain(station, "--from", EP11, "--to", f"{WEB}:81", *sources(station))
    assert found["kernel"] == "agrees", found["differences"]


def test_what_was_changed_in_the_kernel_is_named(station: Station) -> None:
    question = ("--from", EP11, "--to", f"{WEB}:80", *sources(station))
    station.folder.put(endpoints("web", EP11, "10.244.1.13", local=(EP11,), node=NODE_NAME))
    code, found, _ = explain(station, *question)
    assert (code, found["kernel"]) == (5, "differs")
    assert any(
        "10.244.1.13" in line and line.startswith("the kernel lacks: ") for line in found["differences"]
    )
    assert any(EP12 in line and "should not" in line for line in found["differences"])
    station.folder.remove("Service", "web")
    code, found, _ = explain(station, *question)
    assert (code, found["kernel"], found["service"]) == (5, "differs", "")
    assert any(WEB in line and "should not" in line for line in found["differences"])


def test_rules_that_all_services_need_are_part_of_it(station: Station) -> None:
    lab = station.lab
    if station.tables.variant == "nf_tables":
        family = "kube-proxy" if "mode: nftables" in station.config.read_text() else "nat"
        lab.run(
            "node",
            "nft",
            "flush",
            "chain",
            "ip",
            family,
            "services" if family == "kube-proxy" else "KUBE-MARK-MASQ",
        )
    else:
        lab.run("node", "iptables-legacy", "-t", "nat", "-F", "KUBE-MARK-MASQ")
    code, found, _ = explain(station, "--from", EP11, "--to", f"{WEB}:80", *sources(station))
    assert (code, found["kernel"]) == (5, "differs")


def test_without_the_right_the_rest_is_answered(station: Station) -> None:
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    code, found, _ = explain(station, "--from", EP11, "--to", f"{WEB}:80", *sources(station), prefix=bare)
    assert (code, found["verdict"], found["kernel"]) == (0, "forward", "unread")
    assert "CAP_NET_ADMIN" in found["unread"]
    assert len(found["endpoints"]) == 2


def test_the_running_daemon_s_configuration_is_found(lab: Lab, tmp_path: Path) -> None:
    made = Station(lab, tmp_path, mode="nftables")
    fill(made)
    with made.running():
        code, found, _ = explain(made, "--from", EP11, "--to", "web.default")
        assert (code, found["kernel"], found["mode"]) == (0, "agrees", "nftables")
