"""`explain` says of every packet the oracle saw what the reference did with it, and accounts for every endpoint."""

import asyncio
import copy
import tempfile
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given, settings

from kubeproxy import backends
from kubeproxy.answers.asking import answer
from kubeproxy.answers.packets import packet as parse_packet
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import FAMILIES, family_of
from kubeproxy.config.load import load
from kubeproxy.insight.origin import Origin
from kubeproxy.insight.snapshot import take
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.explain import explain
from kubeproxy.model.plan import FORWARD
from tests.lab import cases, probe, random_case
from tests.lab.probe import Outcomes
from tests.scenarios.carried import forgive
from tests.scenarios.world import CLIENTS, LOCAL_ADDRESSES, World, outcome, packet, parse_front

ADDRESSES = [address for family in FAMILIES for address in LOCAL_ADDRESSES[family]]


def taken(name: str, mode: str, folder: Path) -> Snapshot:
    config, manifests = cases.write(name, mode, folder)
    options = load(
        {"config": str(config), "manifests": (str(manifests),), "hostname-override": "bench-node"}, "linux"
    )
    return asyncio.run(take(Origin(options), FakeMachine(ADDRESSES)))


@pytest.mark.parametrize(
    ("mode", "name"),
    [(mode, name) for mode in ("iptables", "nftables") for name in cases.NAMES]
    + [("ipvs", name) for name in cases.recorded("ipvs")],
)
def test_explanations_are_the_recorded_outcomes(mode: str, name: str, tmp_path: Path) -> None:
    expected = copy.deepcopy(cases.expected(mode, name))
    snapshot = taken(name, mode, tmp_path)
    manners = backends.mode(mode).manners
    assert manners is not None
    judged: Outcomes = {client: {} for client in expected}
    for client, fronts in expected.items():
        for front in fronts:
            sent = packet(client, front, owned=manners.owns_addresses)
            family = family_of(sent.destination)
            node = snapshot.node(family)
            assert node is not None
            explained = explain(snapshot.state, node, snapshot.local_addresses[family], manners, sent)
            judged[client][front] = outcome(client, sent, explained.verdict, owned=manners.owns_addresses)
            found = answer(snapshot, explained)
            assert found.verdict == explained.verdict.action
            reached = {(each.address, each.port) for each in found.endpoints}
            if found.verdict == FORWARD:
                assert reached == {(each.address, each.port) for each in explained.verdict.endpoints}
                assert sum(each.share for each in found.endpoints) == pytest.approx(1, abs=1e-3)
                assert all(each.slice for each in found.endpoints)
            if found.service:
                _accounts_for_all(snapshot, found.service, reached, {each.address for each in found.excluded})
    forgive(judged, expected)
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
    machine.interfaces |= {"cni0": 3, "wan": 4}
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


@pytest.mark.parametrize("mode", ["iptables", "nftables", "ipvs"])
@settings(max_examples=30)
@given(config=random_case.configurations(), objects=random_case.objects())
def test_explanations_of_random_clusters_are_the_verdicts(
    mode: str, config: random_case.Document, objects: list[random_case.Document]
) -> None:
    manners = backends.mode(mode).manners
    assert manners is not None
    with tempfile.TemporaryDirectory() as folder:
        world = World(*cases.lay_out(config, objects, mode, Path(folder)))
    fronts = random_case.fronts([each for each in objects if each["kind"] == "Service"])
    for client, front, sent, verdict in world.verdicts(manners, fronts):
        explained = world.explain(manners, sent)
        assert explained.verdict == verdict, (client, front)
        reached = {(each.address, each.port, each.masquerade) for each in explained.endpoints}
        assert reached == {
            (each.address, each.port, verdict.masquerades(sent, each)) for each in verdict.endpoints
        }
        if explained.service:
            slices = (piece for _, piece in world.hub.state.named_slices(explained.service))
            known = {row.address for piece in slices for row in piece.endpoints}
            excluded = {each.address for each in explained.excluded}
            assert known == {address for address, _, _ in reached} | excluded
