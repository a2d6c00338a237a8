"""`plan`, `verify`, `explain` and `top` in ebpf mode: they know the maps, and the table behind them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.ebpf import layout
from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces
from kubeproxy.linux.bpf.maps import HashMap, WordArray
from tests.fakes.cluster import endpoints, service
from tests.kernel import bpffs
from tests.kernel.daemons import Station, asked, until
from tests.kernel.test_ebpf import EMPTY, WEB, station
from tests.kernel.test_plan import changes, plan
from tests.kernel.test_top import port, watching
from tests.kernel.test_verify import run, verify
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab
from tests.machines import MACHINE

FRONT = f"front {WEB}:80 TCP -> {EP11}:8080, {EP12}:8080"


@pytest.fixture
def places() -> Iterator[BpfPlaces]:
    with bpffs.places() as found:
        yield found


@pytest.fixture
def node(lab: Lab, tmp_path: Path, places: BpfPlaces) -> Station:
    return station(lab, tmp_path / "a", places)


def pieces(answer: dict[str, Any], service: str) -> list[str]:
    """The lines that change for a Service."""
    found = [each for each in answer["changes"] if each["service"] == service]
    return [line for each in found for piece in each["pieces"] for line in (piece["held"], piece["wanted"])]


def test_plan(node: Station) -> None:
    """What a start would do to the maps belongs to Services, as what it would do to the table."""
    status, answer = plan(node)
    assert status == 2
    assert {"default/web", "default/dns", "default/empty"} <= changes(answer, "new").keys()
    assert FRONT in pieces(answer, "default/web")
    with node.running():
        pass
    status, answer = plan(node)
    assert (status, answer["changes"]) == (0, [])
    node.folder.put(
        endpoints("web", EP11, local=(EP11,), node=NODE_NAME),
        service("new", "10.96.0.77"),
        endpoints("new", EP12),
    )
    node.folder.remove("Service", "dns")
    node.folder.remove("EndpointSlice", "dns-1")
    status, answer = plan(node)
    assert status == 2
    assert changes(answer, "new").keys() == {"default/new"}
    assert f"front 10.96.0.77:80 TCP -> {EP12}:8080" in pieces(answer, "default/new")
    assert f"front {WEB}:80 TCP -> {EP11}:8080" in pieces(answer, "default/web")
    assert any("10.96.0.12:53 UDP" in line for line in run(node, "plan", "--diff").stdout.splitlines())
    status, answer = plan(node, "--mode", "nftables")
    assert "ebpf mode" in {each["what"] for each in answer["removed"]}


def test_verify(node: Station, places: BpfPlaces) -> None:
    """Whatever differs in the maps is named, with its Service."""
    with node.running():
        pass
    assert verify(node)[0] == 0
    folder = BpfHost(MACHINE, places).folder("v1")

    def opened(name: str) -> int:
        found = folder.get(name)
        assert found is not None
        return found.release()

    fronts = HashMap(opened("fronts4"))
    web, empty = (layout.front(address, "TCP", 80, IPV4) for address in (WEB, EMPTY))
    value = fronts.get(web)
    assert value is not None
    words = WordArray(opened("words4")).words
    index = layout.index_of(value)
    good = words[index]
    for harm, repair, line in (
        (lambda: fronts.delete([web]), lambda: fronts.put([(web, value)]), FRONT),
        (lambda: words.__setitem__(index, good - layout.ONE), lambda: words.__setitem__(index, good), FRONT),
        (
            lambda: fronts.put([(layout.front("10.96.0.99", "TCP", 80, IPV4), value)]),
            lambda: fronts.delete([layout.front("10.96.0.99", "TCP", 80, IPV4)]),
            "front 10.96.0.99:80 TCP",
        ),
        (
            lambda: fronts.delete([empty]),
            lambda: fronts.put([(empty, layout.entry(empty, index))]),
            f"front {EMPTY}:80 TCP -> ECONNREFUSED",
        ),
    ):
        harm()
        status, answer = verify(node)
        assert status == 2
        assert line in json.dumps(answer)
        repair()
    assert verify(node)[0] == 2, "the last repair leads to another Service's endpoints"
    with node.running():
        pass
    assert verify(node)[0] == 0


def test_explain(node: Station) -> None:
    """From the node sockets are connected, from outside packets are translated."""
    with node.running():
        pass
    inside = run(node, "explain", "--from", "node", "--to", f"{WEB}:80").stdout
    assert "decided when the socket is connected" in inside
    assert FRONT in inside
    outside = run(node, "explain", "--from", "192.0.2.9", "--to", "192.0.2.1:30080").stdout
    assert "decided when the socket is connected" not in outside
    assert EP11 in outside
    refused = run(node, "explain", "--from", "node", "--to", f"{EMPTY}:80").stdout
    assert f"front {EMPTY}:80 TCP -> ECONNREFUSED" in refused


@pytest.mark.parametrize("counters", [False, True])
def test_top(lab: Lab, tmp_path: Path, places: BpfPlaces, *, counters: bool) -> None:
    """Connections of sockets are counted by the programs, others by the table or as conntrack reports them."""
    node = station(lab, tmp_path / "a", places)
    if counters:
        node.config.write_text(node.config.read_text() + "nftables: {counters: true}\n")
    with node.running(), watching(node, places=places) as watch:
        assert watch.top().sources.connections == "counters"
        with bpffs.inside(places):
            sockets = asked(lab, "client", WEB, times=20)
        counted = {each.address: each.connections for each in port(watch, "web").endpoints}
        assert counted == sockets
        packets = asked(lab, "out", "192.0.2.1", 30080, times=20)
        both = {address: sockets[address] + packets[address] for address in (EP11, EP12)}
        until(lambda: {e.address: e.connections for e in port(watch, "web").endpoints} == both)
        node.folder.put(endpoints("web", EP12, local=(EP12,), node=NODE_NAME))
        until(lambda: set(asked(lab, "client", WEB, times=4)) == {EP12})
