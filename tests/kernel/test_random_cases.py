"""What packets do in random clusters is what the verdict says, in every mode: the oracle's cases are few."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from kubeproxy.api.addresses import family_of, is_loopback, join
from kubeproxy.insight import daemon
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.model.manners import Manners
from tests.fakes.manners import IPTABLES, IPVS, NFTABLES
from tests.lab import cases, probe, random_case
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.probe import SOME_LOST, Outcomes
from tests.lab.random_case import Document
from tests.lab.topology import Lab
from tests.scenarios.carried import carried, forgive
from tests.scenarios.world import CLIENTS, World, outcome, parse_front

MANNERS: dict[str, Manners] = {"iptables": IPTABLES, "nftables": NFTABLES, "ipvs": IPVS}
START_SECONDS = 120.0


def expected(world: World, manners: Manners, fronts: random_case.Fronts) -> Outcomes:
    """What each client should get at each front."""
    wanted: Outcomes = {client: {} for client in fronts}
    for client, front, sent, verdict in world.verdicts(manners, fronts):
        explained = world.explain(manners, sent)
        assert explained.verdict == verdict, (client, front)
        assert {(each.address, each.port) for each in explained.endpoints} == {
            (each.address, each.port) for each in verdict.endpoints
        }
        told = outcome(client, sent, explained.verdict, owned=manners.owns_addresses)
        # Who stays with a backend may stay with one that answers past the node: chance decides for all tries.
        if not (verdict.port and verdict.port.affinity and SOME_LOST in told):
            wanted[client][front] = told
    return wanted


def laid_out(
    config: Document, objects: list[Document], mode: str, folder: Path
) -> tuple[Path, Path, Outcomes]:
    """A configuration file, a folder of manifests, and what is expected of them."""
    asked = random_case.fronts([each for each in objects if each["kind"] == "Service"])
    if mode != "userspace":
        file, manifests = cases.lay_out(config, objects, mode, folder)
        return file, manifests, expected(World(file, manifests), MANNERS[mode], asked)
    # What nftables mode takes for granted; userspace mode's default is every address.
    config = {**config, "nodePortAddresses": config["nodePortAddresses"] or ["primary"]}
    world = World(*cases.lay_out(config, objects, "nftables", folder / "rules"))
    return *cases.lay_out(config, objects, mode, folder), carried(world, expected(world, NFTABLES, asked))


def check(lab: Lab, mode: str, config: Document, objects: list[Document]) -> None:
    """Measures what packets do, and compares."""
    lab.reset()
    endpoints = sum(len(each["endpoints"]) for each in objects if each["kind"] == "EndpointSlice")
    with tempfile.TemporaryDirectory() as folder:
        file, manifests, wanted = laid_out(config, objects, mode, Path(folder))
        with Daemon(lab, kube_proxy(file, manifests), timeout=START_SECONDS):
            measured = probe.outcomes(lab, wanted, endpoints)
            assert differences(lab, wanted) == {}
    forgive(wanted, measured, fronts="")
    assert measured == wanted, probe.differences(wanted, measured)


def differences(lab: Lab, fronts: Outcomes) -> dict[str, Any]:
    """How the kernel differs from what the daemon explains of a packet to each front, each from another client."""
    clients = itertools.cycle(client for client in fronts if client in CLIENTS)
    found: dict[str, Any] = {}
    for front in sorted({front for asked in fronts.values() for front in asked}):
        address, port, protocol = parse_front(front)
        if is_loopback(address):
            continue
        source = CLIENTS[next(clients)][0][family_of(address)]
        with lab.inside("node"):
            told = daemon.ask(LinuxMachine(), source, f"{join(address, port)}/{protocol.lower()}", "")
        assert told is not None, front
        if told.kernel != "agrees":
            found[f"{source} to {front}"] = told.unread or told.differences
    return found


def examples(count: int) -> settings:
    """So many examples, in the kernel's time."""
    return settings(
        max_examples=count,
        phases=(Phase.explicit, Phase.generate),  # to find a smaller one would take minutes
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.mark.parametrize("mode", ["iptables", "nftables", "userspace"])
@examples(6)
@given(config=random_case.configurations(), objects=random_case.objects())
def test_packets_go_where_the_verdict_says(
    lab: Lab, mode: str, config: Document, objects: list[Document]
) -> None:
    check(lab, mode, config, objects)


@pytest.mark.vm
@examples(3)  # each takes ten times as long there
@given(config=random_case.configurations(), objects=random_case.objects())
def test_packets_go_where_the_verdict_says_in_ipvs_mode(
    lab: Lab, config: Document, objects: list[Document]
) -> None:
    check(lab, "ipvs", config, objects)
