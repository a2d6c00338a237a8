"""What happened, in words; and the explanation of a packet of the past."""

import json
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from kubeproxy.api.rows import (
    BalancingRow,
    Condition,
    EndpointPortRow,
    EndpointRow,
    IgnoredAnnotation,
    NodeRow,
    PortRow,
    ServiceRow,
    SliceRow,
    WeightRow,
)
from kubeproxy.cli import command
from kubeproxy.cli.replay import line
from kubeproxy.insight import past
from kubeproxy.insight.history import Event, events, service_words, slice_words
from kubeproxy.insight.journal import Journal
from kubeproxy.journal import records
from kubeproxy.journal.records import Record
from kubeproxy.journal.writer import Batch
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import NodeConfig
from tests.unit.journal.test_journal import Disk

READY = Condition.READY | Condition.SERVING
SERVICE = ServiceRow("shop", "api", ("10.96.0.10",), (PortRow("http", "TCP", 80, 30080),))
SLICE = SliceRow(
    "shop", "api", "IPv4", (EndpointPortRow("http", "TCP", 8080),), (EndpointRow("10.244.1.11", READY, "n1"),)
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ports": (PortRow("", "UDP", 53),)}, "ports: http 80/TCP (node port 30080) -> 53/UDP"),
        ({"external_ips": ("203.0.113.1",)}, "external IPs: none -> 203.0.113.1"),
        ({"load_balancer_ips": ("203.0.113.1",)}, "load balancer IPs: none -> 203.0.113.1"),
        ({"source_ranges": ("10.0.0.0/8",)}, "source ranges: none -> 10.0.0.0/8"),
        ({"cluster_ips": ()}, "ClusterIPs: 10.96.0.10 -> none"),
        ({"affinity": 10800}, "affinity: 0 s -> 10800 s"),
        ({"internal_local": True}, "internalTrafficPolicy: Cluster -> Local"),
        ({"external_local": True}, "externalTrafficPolicy: Cluster -> Local"),
        ({"health_check_port": 31000}, "healthCheckNodePort: 0 -> 31000"),
        ({"proxy_protocol": True}, "PROXY protocol: False -> True"),
        ({"preserve_destination": True}, "preserve-destination: False -> True"),
        (
            {"balancing": BalancingRow("maglev", by_port=True, table_size=251)},
            "balancing: random -> maglev of the client's address and port, table of 251",
        ),
        (
            {"balancing": BalancingRow(weights=(WeightRow("zone", "a", 3), WeightRow("any", "", 2)))},
            "weights: none -> zone:a=3, *=2",
        ),
        (
            {"balancing": BalancingRow(near="zone", bound=10)},
            "preferred: none -> those of this zone up to 10 connections each",
        ),
        (
            {"ignored": (IgnoredAnnotation("kube-proxy/weights", "it has no rule"),)},
            "annotations that are ignored: none -> kube-proxy/weights (it has no rule)",
        ),
        ({"at_connect": False}, "at connect time: True -> False"),
    ],
)
def test_how_a_service_differs(change, words):
    assert list(service_words(SERVICE, replace(SERVICE, **change))) == [words]


def test_each_field_of_a_service_is_worded():
    """A field that is added must be worded, too."""
    worded = {
        "namespace",
        "name",
        "ports",
        "cluster_ips",
        "external_ips",
        "load_balancer_ips",
        "source_ranges",
        "affinity",
    }
    worded |= {"internal_local", "external_local", "health_check_port", "proxy_protocol"}
    worded |= {"balancing", "ignored", "ends_connections", "skips_silent", "preserve_destination"}
    worded |= {"allowed_sources", "denied_sources"}
    worded |= {"at_connect"}
    assert set(ServiceRow.__struct_fields__) == worded
    assert set(EndpointRow.__struct_fields__) == {
        "address",
        "conditions",
        "node",
        "zone_hints",
        "node_hints",
        "zone",
        "pods",
    }


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ({"conditions": Condition.SERVING}, "is not ready, was ready"),
        (
            {"conditions": Condition.SERVING | Condition.TERMINATING},
            "is terminating, still serving, was ready",
        ),
        ({"conditions": Condition.TERMINATING}, "is terminating, was ready"),
        ({"node": ""}, "node n1 -> not known"),
        ({"zone": "z1"}, "zone not known -> z1"),
        ({"pods": "api-7d9f"}, "Pods not known -> api-7d9f"),
        ({"zone_hints": ("z1", "z2")}, "hints for zones none -> z1, z2"),
        ({"node_hints": ("n1",)}, "hints for nodes none -> n1"),
    ],
)
def test_how_an_endpoint_differs(endpoint, words):
    after = replace(SLICE, endpoints=(replace(SLICE.endpoints[0], **endpoint),))
    assert list(slice_words([SLICE], [after])) == [f"endpoint 10.244.1.11 {words}"]


def test_endpoints_that_come_and_go_and_their_ports():
    after = replace(
        SLICE,
        endpoints=(EndpointRow("10.244.1.12", 0),),
        ports=(EndpointPortRow("http", "TCP", 9090),),
        service="web",
    )
    assert list(slice_words([SLICE], [after])) == [
        "belongs to Service shop/web, before to shop/api",
        "ports of endpoints: http 8080/TCP -> http 9090/TCP",
        "endpoint 10.244.1.12 added (not ready)",
        "endpoint 10.244.1.11 removed",
    ]
    assert list(slice_words([SLICE], [])) == ["endpoint 10.244.1.11 removed"]


@pytest.fixture
def start() -> float:
    return time.time() - 3600


@pytest.fixture
def folder(tmp_path: Path, start: float) -> Path:
    """A journal of the last hour."""
    planned = records.Planned(
        start, "iptables", True, NodeConfig(name="n1", address="192.0.2.1"), ("192.0.2.1",)
    )
    gone = replace(SLICE, endpoints=(EndpointRow("10.244.1.12", READY),))
    key = ("shop", "api")
    opening: list[Record] = [
        records.Opened(start, "start", "1.0", "n1"),
        planned,
        records.NodeStored(start, NodeRow("n1", zone="z1")),
        records.ServiceStored(start, "shop", "api", True, SERVICE),
        records.SlicesStored(start, "EndpointSlice", "shop", "api-1", (SLICE,)),
        records.Whole(start),
    ]
    changes: list[Record] = [
        records.SyncDone(start + 1, "IPv4", True, 0.5, 0.0, -1, 1, (key,)),
        records.SlicesStored(start + 600, "EndpointSlice", "shop", "api-1", (gone,)),
        records.SyncDone(start + 600.25, "IPv4", False, 0.2, 0.05, 3.5, 1, (key,)),
        records.NodeStored(start + 700, NodeRow("n1", zone="z2", leaving=True)),
        records.RangesStored(start + 710, ("10.96.0.0/12",)),
        records.Planned(start + 720, "nftables", True, planned.node, ("192.0.2.1", "192.0.2.2")),
        records.Refusal(start + 800, "IPv4", "shop", "api", "no space left"),
        records.TroubleSeen(start + 900, "IPv4", "drift", "nft changed table ip kube-proxy"),
        records.SyncDone(start + 901, "IPv4", True, 0.5, 0.5, -1, 0, ()),
        records.ServiceStored(start + 1000, "shop", "api", False, None),
        records.Ended(start + 1100),
    ]
    disk = Disk(tmp_path)
    disk.write(Batch((), opening, changes))
    disk.close()
    return tmp_path


def test_events_of_all_kinds(folder):
    found = list(events(Journal(folder)))
    assert [(event.kind, event.service, event.changes) for event in found] == [
        ("start", "", ("kube-proxy 1.0 started as node n1",)),
        ("sync", "", ("full sync of 1 changed Service took 500 ms",)),
        ("endpoints", "shop/api", ("endpoint 10.244.1.12 added (ready)", "endpoint 10.244.1.11 removed")),
        (
            "sync",
            "",
            (
                "partial sync of 1 changed Service took 200 ms",
                "in the kernel 250 ms after the change was received",
                "3.5 s after the change in the cluster",
            ),
        ),
        ("node", "", ("zone: z1 -> z2", "is leaving the cluster")),
        ("serviceCIDRs", "", ("10.96.0.0/12",)),
        (
            "configuration",
            "",
            ("mode: iptables -> nftables", "addresses of this host: 192.0.2.1 -> 192.0.2.1, 192.0.2.2"),
        ),
        ("refused", "shop/api", ("the kernel refuses it: no space left",)),
        ("drift", "", ("nft changed table ip kube-proxy",)),
        (
            "sync",
            "",
            (
                "full sync of 0 changed Services took 500 ms",
                "what drift changed is restored, 1 s after it was detected",
            ),
        ),
        ("service", "shop/api", ("deleted",)),
        ("end", "", ("kube-proxy ended; its rules stay",)),
    ]
    assert found[3].services == ("shop/api",)
    assert [event.kind for event in found if event.concerns("shop/web")].count("sync") == 2


def test_a_line_is_short():
    event = Event(
        "", 0.0, "endpoints", "shop/api", changes=tuple(f"endpoint 10.0.0.{i} removed" for i in range(9))
    )
    assert line(event).endswith("endpoint 10.0.0.5 removed; and 3 more")


def explain(capsys, folder, at, *more) -> tuple[int, str, str]:
    given = ["--journal", str(folder), "--from", "198.51.100.7", "--to", "10.96.0.10:80", "--at", at, *more]
    status = command.main("explain", given)
    done = capsys.readouterr()
    return status, done.out, done.err


def test_explain_before_and_after_a_change(folder, start, capsys):
    ago = lambda seconds: f"-{start + 3600 - start - seconds:.0f}s"  # noqa: E731
    status, out, _ = explain(capsys, folder, ago(300))
    assert status == 0
    assert "10.244.1.11:8080" in out
    assert "iptables mode, at " in out
    assert "changed last  not between " in out
    assert "endpoint 10.244.1.12 added (ready); endpoint 10.244.1.11 removed" in out
    status, out, _ = explain(capsys, folder, ago(650))
    assert "10.244.1.12:8080" in out
    assert "250 ms after it was received" in out
    status, out, _ = explain(capsys, folder, ago(850))
    assert "nftables mode" in out
    assert "no: the kernel refused it, and kept what it had" in out
    status, out, err = explain(capsys, folder, ago(2000))
    assert (status, "no Service" in out) == (0, True)
    assert "kube-proxy did not run at that moment: it ended at " in err


def test_plan_says_what_changed_since_a_moment(folder, capsys):
    assert command.main("plan", ["--journal", str(folder), "--at", "-55m", "--json"]) == 2
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert (change["service"], change["change"]) == ("shop/api", "gone")
    assert command.main("plan", ["--journal", str(folder), "--at", "-1m"]) == 0
    assert "nothing changes" in capsys.readouterr().out
    assert command.main("plan", ["--journal", str(folder), "--at", "-1m", "--mode", "ipvs"]) == 1


def test_the_cluster_then_and_now(folder):
    then, now = past.since({"journal": str(folder)}, FakeMachine(()), "-55m")
    assert (then.mode.name, now.mode.name) == ("iptables", "nftables")
    assert set(then.plans("IPv4")) == {("shop", "api")}
    assert now.plans("IPv4") == {}
    assert not then.own
    assert then.past < now.past


@pytest.mark.parametrize(
    ("at", "more", "message"),
    [
        ("-2h", (), "says nothing of"),
        ("-1m", ("--node", "n2"), "--node n2: the journal is of node n1, and says nothing of others"),
        ("2099-01-01", (), "is in the future"),
    ],
)
def test_what_a_journal_does_not_say(folder, capsys, at, more, message):
    status, out, err = explain(capsys, folder, at, *more)
    assert (status, out) == (1, "")
    assert message in err
