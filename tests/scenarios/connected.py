"""What sockets that are connected to endpoints make of outcomes of nftables mode: those of ebpf mode.

Who is served by whom is the same; what a socket of the node decides itself is not masqueraded, and is refused at once.
"""

from tests.fakes.manners import EBPF
from tests.lab.probe import ON_NODE, Outcomes
from tests.scenarios.world import World, outcome


def connected(world: World, outcomes: Outcomes) -> Outcomes:
    """What becomes of outcomes in ebpf mode.

    Args:
        world: the cluster they are of, in ebpf mode.
        outcomes: those of nftables mode.
    """
    wanted: Outcomes = {client: dict(fronts) for client, fronts in outcomes.items()}
    for client, front, sent, verdict in world.verdicts(EBPF, outcomes):
        # A Pod of another node is in the range of local ones, but its sockets are not here.
        if verdict.at_connect and client in ON_NODE:
            wanted[client][front] = outcome(client, sent, verdict)
    return wanted
