"""The verdict on every packet the oracle saw is what the reference did with it, in iptables and in nftables mode."""

import pytest

from kubeproxy.api.addresses import FAMILIES, family_of
from kubeproxy.model.verdict import IPTABLES, NFTABLES, Manners
from tests.lab import cases, probe
from tests.scenarios.world import World, outcome, packet, parse_front


@pytest.mark.parametrize("name", cases.NAMES)
@pytest.mark.parametrize(("mode", "manners"), [("iptables", IPTABLES), ("nftables", NFTABLES)])
def test_verdicts_are_the_recorded_outcomes(mode: str, manners: Manners, name: str) -> None:
    world = World.of_case(name, mode)
    books = {family: world.book(family, manners) for family in FAMILIES}
    expected = cases.expected(mode, name)
    judged: dict[str, dict[str, str | list[str]]] = {}
    for client, fronts in expected.items():
        judged[client] = {}
        for front in fronts:
            sent = packet(client, front)
            verdict = books[family_of(parse_front(front)[0])].verdict(sent)
            judged[client][front] = outcome(client, sent, verdict)
    assert judged == expected, probe.differences(expected, judged)
