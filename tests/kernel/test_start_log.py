"""What the log of a start says, and that it says more when it is asked to."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from kubeproxy import __version__
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, WEB6 = "10.96.0.10", "fd00:10:96::10"


def messages(log: str) -> list[str]:
    return [line.partition("] ")[2] for line in log.splitlines()]


@pytest.mark.parametrize("mode", ["iptables", "nftables", "userspace"])
def test_it_says_what_runs_and_what_it_did(lab: Lab, tmp_path: Path, mode: str) -> None:
    station = Station(lab, tmp_path, mode=mode)
    station.folder.put(service("web", WEB, WEB6), endpoints("web", EP11), service("other", "10.96.0.11"))
    with station.running() as daemon:
        daemon.says("Synced: ")
        said = messages(daemon.log())
        first, second = said[:2] if said[0].startswith("kube-proxy") else said[1:3]
        assert first == (
            f"kube-proxy v{__version__}, compatible with Kubernetes v1.36, in {mode} mode, configured by {station.config}"
        )
        assert second == f"Services come from manifests: {station.folder.path}"
        assert f"This is node {NODE_NAME}, with addresses 192.0.2.1 (of its Node object)" in said
        if mode == "iptables":
            assert "IPv4: iptables mode through the nf_tables programs" in said
        assert "Synced: 2 Services in place, IPv4 2, IPv6 1, 0 refused" in said
        assert not any(text.startswith("Starting: ") for text in said)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("nftables", r"nf_tables, \d+ of \d+: .*endpoints-"),
        ("iptables", rf"iptables-restore, table nat: -A KUBE-SEP-.*--to-destination {EP12}:8080"),
    ],
)
def test_verbosity_is_raised_and_restored_by_signals(lab: Lab, tmp_path: Path, mode: str, words: str) -> None:
    station = Station(lab, tmp_path, mode=mode)
    station.folder.put(service("web", WEB), endpoints("web", EP11))
    with station.running() as daemon:
        assert ask(lab, "client", WEB) == EP11
        assert "is set" not in daemon.log()
        for verbosity in (2, 4, 6):
            os.kill(daemon.process.pid, signal.SIGUSR1)
            daemon.says(f"Verbosity is {verbosity} now")
        station.folder.put(endpoints("web", EP12))
        daemon.says("EndpointSlice default/web-1 is set")  # 4
        daemon.says(
            "Service default/web: IPv4: it changes: default/web TCP port 80: forward inside to 1"
        )  # 5
        daemon.says("IPv4: partial sync of 1 Services took")  # 3
        said = messages(daemon.log())
        assert any(re.match(words, text) for text in said)
        os.kill(daemon.process.pid, signal.SIGUSR2)
        daemon.says("Verbosity is 0 now")
        before = len(messages(daemon.log()))
        station.folder.put(endpoints("web", EP11))
        daemon.says("web-1.json: 1 object")
        assert not any("is set" in text for text in messages(daemon.log())[before:])


def test_json_lines_have_objects_as_fields(lab: Lab, tmp_path: Path) -> None:
    """The message is a constant text; the Node, the Services and the front are fields."""
    station = Station(lab, tmp_path, mode="nftables", logging={"format": "json", "verbosity": 5})
    station.folder.put(
        service("web", WEB), service("web-2", "10.96.0.11", external_ips=(WEB,)), endpoints("web", EP11)
    )
    with station.running() as daemon:
        daemon.says("Synced: {count} Services in place")
        station.folder.put(endpoints("web", EP12))
        daemon.says("{meaning}")
        lines = [json.loads(line) for line in daemon.log().splitlines()]
    by_message = {line["msg"]: line for line in lines}
    assert by_message["This is node {node}, with addresses {addresses} ({origin})"]["node"] == {
        "name": NODE_NAME
    }
    lost = by_message["Service {service}: {front} {reason}"]
    assert lost["service"] == {"namespace": "default", "name": "web-2"}
    assert lost["front"] == f"external IP {WEB}:80 TCP"
    synced = by_message["Synced: {count} Services in place{families}, {refused} refused"]
    assert (synced["count"], synced["refused"]) == (2, 0)
    change = by_message["Service {service}: {ipFamily}: {meaning}"]
    assert (change["service"], change["ipFamily"], change["v"]) == (
        {"namespace": "default", "name": "web"},
        "IPv4",
        5,
    )
