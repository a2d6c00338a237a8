"""`verify` on a node: pieces that another program took, added or changed are named with their Service and their holder."""

import json
import os
import re
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

WEB, DNS, EMPTY = "10.96.0.10", "10.96.0.53", "10.96.0.11"
WEB6, SIX = "fd00:10:96::10", "fd00:10:244:1::b"
MODES: dict[str, tuple[str, Variant]] = {
    "nftables": ("nftables", "nf_tables"),
    "iptables-nf_tables": ("iptables", "nf_tables"),
    "iptables-legacy": ("iptables", "legacy"),
}


def fill(station: Station) -> None:
    """Services of several kinds."""
    web = [types.ServicePort(80, "http", node_port=30080)]
    station.folder.put(
        service("web", WEB, WEB6, ports=web, type="NodePort", external_ips=("203.0.113.9",)),
        endpoints("web", EP11, EP12, port_name="http", local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", SIX, port_name="http", name="web-6"),
        service("dns", DNS, ports=[types.ServicePort(53, "dns", "UDP")]),
        endpoints("dns", EP11, port=5353, port_name="dns", protocol="UDP"),
        service("empty", EMPTY),
    )


def station_of(lab: Lab, path: Path, name: str) -> Station:
    """A station whose daemon has run; its rules are there, and nothing repairs them."""
    mode, variant = MODES[name]
    made = Station(lab, path, variant, mode=mode)
    fill(made)
    with made.running():
        pass
    return made


@pytest.fixture(params=MODES)
def station(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Station:
    return station_of(lab, tmp_path, request.param)


@pytest.fixture
def nft(lab: Lab, tmp_path: Path) -> Station:
    return station_of(lab, tmp_path, "nftables")


@pytest.fixture
def rules(lab: Lab, tmp_path: Path) -> Station:
    return station_of(lab, tmp_path, "iptables-nf_tables")


def run(station: Station, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Runs a command on the node, from the station's configuration and manifests."""
    programs = station.config.parent / "programs"  # those the daemon had
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    sources = ["--config", str(station.config), "--manifests", str(station.folder.path)]
    command = [*prefix, sys.executable, "-m", "kubeproxy", *arguments, *sources]
    with station.lab.inside("node"):  # `ip netns exec` would hide the host's cgroups
        done = subprocess.run(
            [*command, "--hostname-override", NODE_NAME],
            check=False, capture_output=True, text=True, env=environment, timeout=240,
        )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def verify(station: Station, *, prefix: Sequence[str] = ()) -> tuple[int, dict[str, Any]]:
    """Exit status and answer."""
    done = run(station, "verify", "--json", prefix=prefix)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(station: Station) -> list[dict[str, Any]]:
    """The pieces that differ; the exit status says so."""
    status, answer = verify(station)
    pieces = [piece for family in answer["families"] for piece in family["pieces"]]
    assert (status, answer["same"]) == (2, False)
    assert pieces
    return pieces


def kinds(pieces: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(piece["kind"], piece["service"]) for piece in pieces}


def test_a_kernel_that_holds_the_plans(station: Station) -> None:
    status, answer = verify(station)
    assert [family["pieces"] for family in answer["families"]] == [[], []]
    assert (status, answer["same"], answer["flows"], answer["remedy"]) == (0, True, [], [])
    assert [family["services"] for family in answer["families"]] == [3, 1]
    done = run(station, "verify")
    assert done.returncode == 0
    assert "the kernel holds what is planned" in done.stdout


def test_rules_of_an_older_run_with_other_services(station: Station) -> None:
    station.folder.remove("Service", "dns")
    station.folder.remove("EndpointSlice", "dns-1")
    station.folder.put(service("new", "10.96.0.77"), endpoints("new", EP12, port=81))
    pieces = found(station)
    assert any(p["kind"] == "missing" and p["service"] == "default/new" for p in pieces)
    gone = [p for p in pieces if p["kind"] == "foreign"]
    assert any(DNS in p["held"] for p in gone)
    assert not [p for p in pieces if p["service"] in {"default/web", "default/empty"}]


def test_another_endpoint(station: Station) -> None:
    station.folder.put(endpoints("web", EP11, "10.244.1.13", port_name="http", local=(EP11,), node=NODE_NAME))
    pieces = found(station)
    assert {p["service"] for p in pieces} == {"default/web"}
    assert any("10.244.1.13" in p["gained"] for p in pieces)
    assert any(EP12 in p["lost"] for p in pieces)


def test_an_element_is_taken_added_and_changed(nft: Station) -> None:
    lab, table = nft.lab, ("ip", "kube-proxy")
    at = f"{WEB} . tcp . 80 . 0"
    lab.run("node", "nft", "delete", "element", *table, "endpoints-2", f"{{ {at} }}")
    (piece,) = found(nft)
    assert (piece["kind"], piece["service"], piece["holder"]) == (
        "missing", "default/web", "map endpoints-2 of table ip kube-proxy",
    )  # fmt: skip
    assert piece["wanted"].startswith("add element ip kube-proxy endpoints-2 { 10.96.0.10 . tcp . 80 . 0 : ")
    lab.run("node", "nft", "add", "element", *table, "endpoints-2", f"{{ {at} : 10.244.9.9 . 8080 }}")
    (piece,) = found(nft)
    assert (piece["kind"], piece["service"], piece["lost"]) == ("differs", "default/web", "10.244.9.9:8080")
    assert "10.244.9.9" in piece["held"]
    lab.run("node", "nft", "add", "element", *table, "endpoints-1", "{ 10.96.9.9 . tcp . 80 . 0 : 10.244.9.9 . 80 }")  # fmt: skip
    pieces = found(nft)
    assert kinds(pieces) == {("differs", "default/web"), ("foreign", "")}
    assert ["10.96.9.9", "TCP", 80] in [piece.get("front") for piece in pieces]


def test_a_table_that_was_flushed_and_one_that_was_deleted(nft: Station) -> None:
    nft.lab.run("node", "nft", "flush", "table", "ip", "kube-proxy")
    pieces = found(nft)
    assert {piece["kind"] for piece in pieces} == {"missing"}
    assert any(("chain services of table" in p["holder"], p["service"]) == (True, "") for p in pieces)
    nft.lab.run("node", "nft", "delete", "table", "ip", "kube-proxy")
    pieces = found(nft)
    assert {"default/web", "default/dns", "default/empty"} <= {piece["service"] for piece in pieces}
    done = run(nft, "verify")
    assert "the kernel has nothing of this mode" in done.stdout


def test_a_rule_is_taken_added_doubled_and_moved(rules: Station) -> None:
    lab = rules.lab

    def nat(*arguments: str) -> None:
        lab.run("node", "iptables-nft", "-t", "nat", *arguments)

    def listed(chain: str) -> list[str]:
        return lab.run("node", "iptables-nft", "-t", "nat", "-S", chain).splitlines()[1:]

    def words(rule: str) -> list[str]:
        return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', rule)][2:]

    nat("-A", "KUBE-SERVICES", "-d", "10.96.9.9/32", "-j", "RETURN")
    (piece,) = found(rules)
    assert (piece["kind"], piece["holder"]) == ("foreign", "chain KUBE-SERVICES of table nat")
    nat("-D", "KUBE-SERVICES", "-d", "10.96.9.9/32", "-j", "RETURN")

    (rule, *_) = [each for each in listed("KUBE-SERVICES") if f"-d {WEB}/32" in each]
    nat("-A", "KUBE-SERVICES", *words(rule))
    (piece,) = found(rules)
    assert (piece["kind"], piece["service"]) == ("foreign", "default/web")
    nat("-D", "KUBE-SERVICES", *words(rule))
    nat("-D", "KUBE-SERVICES", *words(rule))
    (piece,) = found(rules)
    assert (piece["kind"], piece["service"]) == ("missing", "default/web")
    nat("-I", "KUBE-SERVICES", *words(rule))

    (chain,) = {each.split()[-1] for each in listed("KUBE-SERVICES") if f"-d {DNS}/32" in each}
    (endpoint,) = {each.split()[-1] for each in listed(chain) if "-j KUBE-SEP" in each}
    was = listed(endpoint)[1]
    nat("-R", endpoint, "2", "-p", "udp", "-j", "DNAT", "--to-destination", "10.244.9.9:53")
    (piece,) = found(rules)
    assert (piece["kind"], piece["service"]) == ("differs", "default/dns")
    assert (piece["gained"], piece["lost"]) == (f"{EP11}:5353", "10.244.9.9:53")
    nat("-R", endpoint, "2", *words(was))

    (chain,) = {each.split()[-1] for each in listed("KUBE-SERVICES") if f"-d {WEB}/32" in each}
    first, _ = (rule for rule in listed(chain) if "-j KUBE-SEP" in rule)
    nat("-D", chain, *words(first))
    nat("-A", chain, *words(first))
    pieces = found(rules)
    assert kinds(pieces) == {("order", "default/web")}
    assert all(chain in piece["wanted"] for piece in pieces)


def test_without_the_right(station: Station) -> None:
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    status, answer = verify(station, prefix=bare)
    assert (status, answer["same"]) == (1, False)
    assert "CAP_NET_ADMIN" in answer["cannot"]


def test_another_node(station: Station) -> None:
    done = run(station, "verify", "--node", "elsewhere")
    assert done.returncode == 1
    assert "elsewhere" in done.stderr
