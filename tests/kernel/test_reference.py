"""The tables recorded of the reference in nftables mode, loaded and evaluated, do what the plans say, packet by packet."""

import subprocess

import pytest

from kubeproxy.api.addresses import FAMILIES, family_of
from kubeproxy.insight.reference.outcome import of_verdict, same
from kubeproxy.insight.reference.route import Router
from kubeproxy.insight.reference.table import NftRules
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import IP, IP6, TableName
from tests.fakes.manners import NFTABLES
from tests.lab import cases, netns
from tests.machines import MACHINE
from tests.scenarios.world import LOCAL_ADDRESSES, World


@pytest.mark.parametrize("name", cases.NAMES)
def test_nftables(space: str, name: str) -> None:
    expected = cases.expected("nftables", name, recorded_rules=True)
    with netns.inside(space):
        subprocess.run(["nft", "-f", "-"], input=cases.rules("nftables", name), check=True, text=True)
        with NftKernel(MACHINE) as kernel:
            routers = {
                family: Router(
                    NftRules(
                        kernel,
                        TableName(IP if family == "IPv4" else IP6, "kube-proxy"),
                        LOCAL_ADDRESSES[family],
                    ),
                    LOCAL_ADDRESSES[family],
                )
                for family in FAMILIES
            }
    wrong = []
    for client, front, sent, verdict in World.of_case(name, "nftables").verdicts(NFTABLES, expected):
        if (client, front) in cases.WITHOUT_ZONE.get(("nftables", name), {}):
            continue  # recorded before the reference knew the zone
        family = family_of(sent.destination)
        found, planned = routers[family].outcome(sent), of_verdict(sent, verdict)
        if not same(found, planned, sent, LOCAL_ADDRESSES[family]):
            wrong.append(f"{client} -> {front}: rules {found}; plan {planned}")
    assert wrong == []
