"""What a relay makes of outcomes of nftables mode: userspace mode's, as docs/userspace.md has the differences.

- A backend sees an address of the node in place of the client's.
- So a client beyond the node is answered, whichever backend it reaches, also one that would answer past the node.
- Where every address accepts node ports, localhost does, too.

Who is served by whom, and who is dropped or rejected, is the same.
"""

from kubeproxy.api.addresses import IPV6, family_of
from kubeproxy.model.plan import FORWARD
from tests.fakes.manners import NFTABLES
from tests.lab.probe import NO_ANSWER, SOME_LOST, Outcome, Outcomes
from tests.scenarios.world import BRIDGE, World, parse_front

# The address this node speaks from, by where the backend is. The first that fits counts.
SOURCES = (
    ("10.244.1.", "10.244.1.1"),
    ("10.244.2.", "192.0.2.1"),
    ("192.0.2.1", "192.0.2.1"),
    ("fd00:10:244:1:", "fd00:10:244:1::1"),
    ("fd00:10:244:2:", "2001:db8:2::1"),
)


def carried(world: World, outcomes: Outcomes) -> Outcomes:
    """What becomes of outcomes in userspace mode.

    Args:
        world: the cluster they are of.
        outcomes: those of nftables mode.
    """
    wanted: Outcomes = {client: {} for client in outcomes}
    for client, front, _, verdict in world.verdicts(NFTABLES, outcomes):
        reached = verdict.endpoints if verdict.action == FORWARD else ()
        wanted[client][front] = _carried(outcomes[client][front], [backend.address for backend in reached])
    for front in wanted["node"]:
        address, port, protocol = parse_front(front)
        family = family_of(address)
        if address in {"127.0.0.1", "::1"} and not world.nodes[family].node_port_ranges:
            elsewhere = f"nodePort {BRIDGE[family]}:{port}/{protocol.lower()}"
            wanted["node"][front] = wanted["node"][elsewhere]
    return wanted


def _carried(outcome: Outcome, backends: list[str]) -> Outcome:
    """What becomes of an outcome when a relay carries the connection to these backends."""
    if isinstance(outcome, str):
        return sorted(map(_seen, backends)) if outcome == NO_ANSWER and backends else outcome
    if outcome[0].startswith("*"):
        return ["*<-node" if outcome == ["*<-client"] else outcome[0]]
    served = {each.partition("<-")[0] for each in outcome} - {SOME_LOST}
    if SOME_LOST in outcome:
        served |= set(backends)
    return sorted(map(_seen, served))


def _seen(backend: str) -> str:
    """A backend and the source it sees in this mode."""
    return f"{backend}<-{next(source for prefix, source in SOURCES if backend.startswith(prefix))}"


def forgive(wanted: Outcomes, measured: Outcomes, fronts: str = "clusterIP-other-port") -> None:
    """Over IPv6 a TCP client takes the second rejection for one, a second later: who is measured for longer hears of it.

    Args:
        wanted: what is expected.
        measured: what was measured; changed.
        fronts: how the fronts begin that may reject.
    """
    for client, outcomes in wanted.items():
        for front, outcome in outcomes.items():
            address, _, protocol = parse_front(front)
            late = outcome == NO_ANSWER and measured[client][front] == "ECONNREFUSED"
            if late and front.startswith(fronts) and family_of(address) == IPV6 and protocol == "TCP":
                measured[client][front] = NO_ANSWER
