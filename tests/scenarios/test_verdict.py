"""The verdict on every packet the oracle saw is what the reference did with it, in iptables, nftables and ipvs mode."""

import copy

import pytest

from kubeproxy.model.manners import Manners
from tests.fakes.manners import IPTABLES, IPVS, NFTABLES
from tests.lab import cases, probe
from tests.lab.probe import Outcomes
from tests.scenarios.carried import forgive
from tests.scenarios.world import World, outcome

RECORDED = [
    *(("iptables", IPTABLES, name) for name in cases.NAMES),
    *(("nftables", NFTABLES, name) for name in cases.NAMES),
    *(("ipvs", IPVS, name) for name in cases.recorded("ipvs")),
]


@pytest.mark.parametrize(
    ("mode", "manners", "name"), RECORDED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_verdicts_are_the_recorded_outcomes(mode: str, manners: Manners, name: str) -> None:
    expected = copy.deepcopy(cases.expected(mode, name))
    judged: Outcomes = {client: {} for client in expected}
    for client, front, sent, verdict in World.of_case(name, mode).verdicts(manners, expected):
        judged[client][front] = outcome(client, sent, verdict, owned=manners.owns_addresses)
    forgive(judged, expected)
    assert judged == expected, probe.differences(expected, judged)
