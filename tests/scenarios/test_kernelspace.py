"""The cases of the oracle in kernelspace mode: what the verdict says of every front is what HNS in memory holds."""

from itertools import chain

import pytest
from msgspec.structs import replace

from kubeproxy.api.addresses import IPV4, is_loopback
from kubeproxy.backends.kernelspace.mode import MODE
from kubeproxy.model.plan import FORWARD
from kubeproxy.protocols import NUMBERS
from tests.fakes.hns import HnsProxy, WindowsNode
from tests.lab import cases
from tests.scenarios.world import LOCAL_ADDRESSES, World, parse_front


@pytest.mark.parametrize("name", cases.NAMES)
def test_cases(name: str) -> None:
    assert MODE.manners is not None
    world = World.of_case(name, "nftables")
    node = world.nodes.get(IPV4)
    if node is None:  # a node of IPv6 alone
        return
    slices = chain.from_iterable(world.hub.state.slices(key) for key in world.hub.state.services)
    local = {each.address for piece in slices for each in piece.endpoints if each.node == node.name}
    windows = WindowsNode(local=sorted(each for each in local if "." in each))
    world.nodes = {IPV4: replace(node, hns=windows.settings, node_port_ranges=(), local_traffic=None)}
    proxy = HnsProxy(windows, world.nodes[IPV4])
    proxy.state = world.hub.state
    assert not proxy.full()
    endpoints = windows.hns.endpoints()
    held = {
        (each.vips[0] if each.vips else "", mapping.protocol, mapping.external_port): {
            endpoints[ident].addresses[0] for ident in each.endpoints
        }
        for each in windows.hns.load_balancers().values()
        for mapping in each.mappings
    }
    asked = 0
    fronts = {
        client: [front for front in found if ":" not in parse_front(front)[0]]
        for client, found in cases.expected("nftables", name).items()
    }
    for client, front, sent, verdict in world.verdicts(MODE.manners, fronts):
        if is_loopback(sent.destination):  # such packets do not reach the Virtual Filtering Platform
            continue
        own = sent.destination in LOCAL_ADDRESSES[IPV4]
        there = held.get((sent.destination, NUMBERS[sent.protocol], sent.port))
        if there is None and own:
            there = held.get(("", NUMBERS[sent.protocol], sent.port))
        wanted = {each.address for each in verdict.endpoints} if verdict.action == FORWARD else set()
        assert (there or set()) == wanted, (client, front, verdict.reason)
        asked += 1
    assert asked or all(
        ":" in front for found in cases.expected("nftables", name).values() for front in found
    )
