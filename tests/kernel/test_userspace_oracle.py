"""Userspace mode against what the reference's nftables mode was seen to do, with the differences that docs/userspace.md names.

- A backend sees an address of the node in place of the client's.
- So a client beyond the node is answered, whichever backend it reaches; recorded is "no answer" where a backend answered past it.
- Where every address accepts node ports, localhost does, too.

Who is served by whom, and who is dropped or rejected, is the same.
"""

from pathlib import Path

import pytest
import yaml

from kubeproxy.api.addresses import FAMILIES, IPV6, family_of
from kubeproxy.model.plan import FORWARD
from kubeproxy.model.verdict import NFTABLES
from tests.lab import cases, probe
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.probe import NO_ANSWER, Outcome, Outcomes
from tests.lab.topology import Lab
from tests.scenarios.world import BRIDGE, World, packet, parse_front

LOST = f"and {NO_ANSWER}"
# The address this node speaks from, by where the backend is. The first that fits counts.
SOURCES = (
    ("10.244.1.", "10.244.1.1"),
    ("10.244.2.", "192.0.2.1"),
    ("192.0.2.1", "192.0.2.1"),
    ("fd00:10:244:1:", "fd00:10:244:1::1"),
    ("fd00:10:244:2:", "2001:db8:2::1"),
)


def expected(name: str) -> Outcomes:
    """The recorded outcomes of nftables mode with this mode's differences."""
    recorded = cases.expected("nftables", name)
    world = World.of_case(name, "nftables")
    books = {family: world.book(family, NFTABLES) for family in FAMILIES if family in world.nodes}
    wanted: Outcomes = {}
    for client, fronts in recorded.items():
        wanted[client] = {}
        for front, outcome in fronts.items():
            verdict = books[family_of(parse_front(front)[0])].verdict(packet(client, front))
            reached = verdict.backends if verdict.action == FORWARD else ()
            wanted[client][front] = _carried(outcome, [backend.address for backend in reached])
    for front in wanted["node"]:
        address, port, _ = parse_front(front)
        family = family_of(address)
        if address in {"127.0.0.1", "::1"} and not world.nodes[family].node_port_ranges:
            elsewhere = f"nodePort {BRIDGE[family]}:{port}/tcp"
            wanted["node"][front] = wanted["node"][elsewhere]
    return wanted


def _carried(outcome: Outcome, backends: list[str]) -> Outcome:
    """What becomes of an outcome when a relay carries the connection to these backends."""
    if isinstance(outcome, str):
        return sorted(map(_seen, backends)) if outcome == NO_ANSWER and backends else outcome
    if outcome[0].startswith("*"):
        return ["*<-node" if outcome == ["*<-client"] else outcome[0]]
    served = {each.partition("<-")[0] for each in outcome} - {LOST}
    if LOST in outcome:
        served |= set(backends)
    return sorted(map(_seen, served))


def _seen(backend: str) -> str:
    """A backend and the source it sees in this mode."""
    return f"{backend}<-{next(source for prefix, source in SOURCES if backend.startswith(prefix))}"


def _forgive(wanted: Outcomes, measured: Outcomes) -> None:
    """Over IPv6 a TCP client takes the second rejection for one, a second later: who is measured for longer hears of it."""
    for client, fronts in wanted.items():
        for front, outcome in fronts.items():
            late = outcome == NO_ANSWER and measured[client][front] == "ECONNREFUSED"
            if late and front.startswith("clusterIP-other-port") and family_of(parse_front(front)[0]) == IPV6:
                measured[client][front] = NO_ANSWER


@pytest.mark.parametrize("name", cases.NAMES)
def test_outcomes_are_those_of_nftables_mode_but_for_the_source(lab: Lab, tmp_path: Path, name: str) -> None:
    config, manifests = cases.write(name, "userspace", tmp_path)
    # What the reference's nftables mode takes for granted; this mode's default is every address.
    settings = {"nodePortAddresses": ["primary"], **yaml.safe_load(config.read_text())}
    config.write_text(yaml.safe_dump(settings))
    wanted = expected(name)
    with Daemon(lab, kube_proxy(config, manifests)):
        measured = probe.outcomes(lab, wanted, cases.endpoints(name))
        _forgive(wanted, measured)
        assert measured == wanted, probe.differences(wanted, measured)
