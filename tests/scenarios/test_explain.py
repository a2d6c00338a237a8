"""`explain` says of every packet the oracle saw what the reference did with it, and accounts for every endpoint."""

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest

from kubeproxy import backends
from kubeproxy.api.addresses import FAMILIES, family_of
from kubeproxy.config.load import load
from kubeproxy.insight.answer import answer
from kubeproxy.insight.origin import Origin
from kubeproxy.insight.packets import packet as parse_packet
from kubeproxy.insight.snapshot import Snapshot, take
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.explain import explain
from kubeproxy.model.plan import FORWARD
from tests.lab import cases, probe
from tests.lab.probe import Outcomes
from tests.scenarios.world import CLIENTS, LOCAL_ADDRESSES, outcome, packet, parse_front

ADDRESSES = [address for family in FAMILIES for address in LOCAL_ADDRESSES[family]]


def taken(name: str, mode: str, folder: Path) -> Snapshot:
    config, manifests = cases.write(name, mode, folder)
    options = load(
        {"config": str(config), "manifests": (str(manifests),), "hostname-override": "bench-node"}, "linux"
    )
    return asyncio.run(take(Origin(options), FakeMachine(ADDRESSES)))


@pytest.mark.parametrize("name", cases.NAMES)
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_explanations_are_the_recorded_outcomes(mode: str, name: str, tmp_path: Path) -> None:
    expected = cases.expected(mode, name)
    snapshot = taken(name, mode, tmp_path)
    judged: Outcomes = {client: {} for client in expected}
    for client, fronts in expected.items():
        for front in fronts:
            sent = packet(client, front)
            family = family_of(sent.destination)
            node = snapshot.node(family)
            manners = backends.mode(mode).manners
            assert node is not None
            assert manners is not None
            explained = explain(snapshot.state, node, snapshot.local_addresses[family], manners, sent)
            judged[client][front] = outcome(client, sent, explained.verdict)
            found = answer(snapshot, explained)
            assert found.verdict == explained.verdict.action
            reached = {(each.address, each.port) for each in found.endpoints}
            if found.verdict == FORWARD:
                assert reached == {(each.address, each.port) for each in explained.verdict.endpoints}
                assert sum(each.share for each in found.endpoints) == pytest.approx(1, abs=1e-3)
                assert all(each.slice for each in found.endpoints)
            if found.service:
                _accounts_for_all(snapshot, found.service, reached, {each.address for each in found.excluded})
    assert judged == expected, probe.differences(expected, judged)


def _accounts_for_all(
    snapshot: Snapshot, service: str, reached: Collection[tuple[str, int]], excluded: Collection[str]
) -> None:
    """Each endpoint of each EndpointSlice of the Service is reached, or excluded with a reason."""
    namespace, _, name = service.partition("/")
    known = {
        row.address for _, piece in snapshot.state.named_slices((namespace, name)) for row in piece.endpoints
    }
    assert known == {address for address, _ in reached} | set(excluded)


@pytest.mark.parametrize("name", ["clusterip-basic", "nodeport-cluster"])
def test_a_packet_as_people_name_it(name: str, tmp_path: Path) -> None:
    snapshot = taken(name, "iptables", tmp_path)
    machine = FakeMachine(ADDRESSES)
    for client, fronts in cases.expected("iptables", name).items():
        if client == "node":
            continue
        for front in fronts:
            address, port, protocol = parse_front(front)
            addresses, interface = CLIENTS[client]
            source = addresses[family_of(address)]
            at = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            given = parse_packet(snapshot, machine, source, f"{at}/{protocol.lower()}", interface)
            assert given == packet(client, front)
