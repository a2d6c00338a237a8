"""`kube-proxy check` against the HNS in memory: everything is asked, and nothing stays."""

import argparse
import json
import subprocess
import sys
from socket import socket

import pytest

from kubeproxy.cli import check
from kubeproxy.cli.command import Asked, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.windows import errors
from kubeproxy.windows.fake import FakeHns
from kubeproxy.windows.fake_profiles import WS2019, WS2022, WS2025, Profile
from kubeproxy.windows.questions import ask
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, PortMapping
from tests.machines import MACHINE


def world(profile: Profile = WS2025, kind: str = "L2Bridge") -> FakeHns:
    made = FakeHns(profile)
    network = made.add_network("cbr0net", kind)
    endpoint = made.add_endpoint(HcnEndpoint(network, ("10.244.1.11",)))
    made.add_load_balancer(HcnLoadBalancer((endpoint,), ("10.96.0.10",), (PortMapping(6, 8080, 80),)))
    return made


@pytest.mark.parametrize("kind", ["L2Bridge", "Overlay"])
@pytest.mark.parametrize("profile", [WS2019, WS2022, WS2025])
def test_all_is_asked_and_nothing_stays(profile: Profile, kind: str) -> None:
    hns = world(profile, kind)
    before = hns.endpoints(), hns.load_balancers()
    found = {each.question: each for each in ask(hns, "CBR0NET", socket)}
    assert len(found) == 12
    assert found["Is everything removed?"].answer == "yes"
    assert (hns.endpoints(), hns.load_balancers()) == before
    assert sum(bool(each.exchanges) for each in found.values()) >= 10
    assert hns.open_handles == 0


def test_an_hns_that_lies_is_seen() -> None:
    lies = {each.question: each.answer for each in ask(world(WS2022), "cbr0net", socket)}
    assert lies["Does Modify change the source VIP?"] != "yes"


@pytest.mark.parametrize("pattern", ["HcnCreate*", "HcnModify*", "HcnDelete*", "HcnQueryLoad*", "HcnOpen*"])
def test_failures_are_answers_and_nothing_stays(pattern: str) -> None:
    hns = world()
    before = hns.endpoints(), hns.load_balancers()
    hns.fail(pattern, errors.PORT_ALREADY_EXISTS, times=1)
    if pattern == "HcnOpen*":
        with pytest.raises(LookupError):
            list(ask(hns, "cbr0net", socket))
    else:
        assert [each for each in ask(hns, "cbr0net", socket) if "0x803b0013" in repr(each.exchanges).lower()]
    assert (hns.endpoints(), hns.load_balancers()) == before


def asked(**values: object) -> Asked:
    return Asked(argparse.Namespace(**{"network": "cbr0net", "json": False, **values}), {}, Output())


def test_the_command_prints_documents(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.answer(asked(), world(), MACHINE) == 0
    text = capsys.readouterr().out
    assert "Are Name and Owner of a load balancer kept?" in text
    assert '"FrontendVIPs"' in text
    assert check.answer(asked(json=True), world(), MACHINE) == 0
    assert json.loads(capsys.readouterr().out)[-1]["answer"] == "yes"


def test_a_wrong_question() -> None:
    with pytest.raises(CommandError, match="HNS has no network other; Get-HnsNetwork lists them"):
        check.answer(asked(network="other"), world(), MACHINE)
    with pytest.raises(CommandError, match="--network NAME is missing"):
        check.answer(asked(network=""), world(), MACHINE)


def test_elsewhere_it_says_so_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kubeproxy", "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "Error: check asks the Host Networking Service of Windows, and this is not Windows\n"
    )
