"""The verdict on every packet the oracle saw is what the reference did with it, in iptables and in nftables mode."""

import pytest

from kubeproxy.model.manners import Manners
from tests.fakes.manners import IPTABLES, NFTABLES
from tests.lab import cases, probe
from tests.lab.probe import Outcomes
from tests.scenarios.world import World, outcome


@pytest.mark.parametrize("name", cases.NAMES)
@pytest.mark.parametrize(("mode", "manners"), [("iptables", IPTABLES), ("nftables", NFTABLES)])
def test_verdicts_are_the_recorded_outcomes(mode: str, manners: Manners, name: str) -> None:
    expected = cases.expected(mode, name)
    judged: Outcomes = {client: {} for client in expected}
    for client, front, sent, verdict in World.of_case(name, mode).verdicts(manners, expected):
        judged[client][front] = outcome(client, sent, verdict)
    assert judged == expected, probe.differences(expected, judged)
