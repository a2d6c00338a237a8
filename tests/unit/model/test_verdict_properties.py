"""What must hold of every packet, whatever the Service, its endpoints and the node."""

from hypothesis import assume, given
from hypothesis import strategies as st

from kubeproxy.api.rows import Condition, PortRow
from kubeproxy.model.node import LocalTraffic
from tests.fakes.manners import IPTABLES, NFTABLES
from tests.unit.model.make import STATES, node, piece, planned
from tests.unit.model.packets import CLIENT, LOCAL, NODE, POD, PODS, REMOTE_POD, book, reachable, send

sources = st.sampled_from(
    [POD, REMOTE_POD, CLIENT, NODE, "127.0.0.1", ("10.1.2.1", "cni0"), ("203.0.113.200", "eth0")]
)
destinations = st.sampled_from(
    ["10.96.0.10", "192.0.2.10", "198.51.100.1", "198.51.100.2", *LOCAL, "10.96.1.1", "203.0.113.9"]
)
endpoint_texts = st.builds(
    "{} {} {} {}".format,
    st.integers(1, 5),
    st.sampled_from(["local", ""]),
    st.sampled_from(sorted(STATES)),
    st.sampled_from(["", "zone-a", "zone-b", "node-1"]),
)
worlds = st.fixed_dictionaries(
    {
        "service": st.builds(
            reachable,
            ports=st.sampled_from([(PortRow("", "TCP", 80, 30080),), (PortRow("", "TCP", 80),)]),
            external_ips=st.sampled_from([(), ("192.0.2.10",)]),
            load_balancer_ips=st.sampled_from([(), ("198.51.100.1", "198.51.100.2")]),
            source_ranges=st.sampled_from([(), ("203.0.113.0/25",), ("192.168.0.0/24",)]),
            internal_local=st.booleans(),
            external_local=st.booleans(),
        ),
        "slices": st.lists(st.lists(endpoint_texts, max_size=4).map(lambda texts: piece(*texts)), max_size=3),
        "on": st.builds(
            node,
            zone=st.sampled_from(["", "zone-a"]),
            local_traffic=st.sampled_from([None, PODS, LocalTraffic("interface", "cni0")]),
            masquerade_all=st.booleans(),
            localhost_node_ports=st.booleans(),
        ),
        "manners": st.sampled_from([IPTABLES, NFTABLES]),
    }
)
packets = st.builds(send, sources, destinations, st.sampled_from([80, 81, 30080]))


class TestEveryPacket:
    def judge(self, world, packet):
        made = planned(world["service"], *world["slices"], on=world["on"])
        pages = book(made, on=world["on"], manners=world["manners"], service_cidrs=("10.96.0.0/16",))
        return pages.verdict(packet)

    @given(worlds, packets)
    def test_it_goes_to_endpoints_that_can_serve_it(self, world, packet):
        verdict = self.judge(world, packet)
        assert bool(verdict.endpoints) == (verdict.action == "forward")
        known: dict[tuple[str, int], list[Condition]] = {}
        for row in (row for piece_ in world["slices"] for row in piece_.endpoints):
            known.setdefault((row.address, 80), []).append(Condition(row.conditions))
        draining = Condition.SERVING | Condition.TERMINATING
        for backend in verdict.endpoints:
            states = known[backend.address, backend.port]
            assert any(Condition.READY in state or draining in state for state in states)

    @given(worlds, packets)
    def test_local_policy_keeps_strangers_on_this_node(self, world, packet):
        assume(packet.interface == "eth0")
        verdict = self.judge(world, packet)
        internal = packet.destination == "10.96.0.10"
        if world["service"].internal_local if internal else world["service"].external_local:
            assert all(backend.local for backend in verdict.endpoints)
            if not internal:
                assert not verdict.masquerade, "the client's address is what the policy keeps"

    @given(worlds, packets)
    def test_internal_local_holds_for_all(self, world, packet):
        verdict = self.judge(world, packet)
        if world["service"].internal_local and packet.destination == "10.96.0.10":
            assert all(backend.local for backend in verdict.endpoints)

    @given(worlds, packets)
    def test_what_comes_back_to_itself_is_masqueraded(self, world, packet):
        verdict = self.judge(world, packet)
        for backend in verdict.endpoints:
            assert verdict.masquerades(packet, backend) or packet.source != backend.address

    @given(worlds, packets)
    def test_strangers_outside_the_ranges_are_kept_out(self, world, packet):
        verdict = self.judge(world, packet)
        if world["service"].source_ranges and packet.source == "203.0.113.200":
            assert verdict.action != "forward" or not packet.destination.startswith("198.51.100.")

    @given(worlds, packets)
    def test_what_is_forwarded_is_so_in_all_modes(self, world, packet):
        one, other = (self.judge({**world, "manners": manners}, packet) for manners in (IPTABLES, NFTABLES))
        if "forward" in {one.action, other.action}:
            assert one == other

    @given(worlds, packets)
    def test_a_reason_is_given(self, world, packet):
        verdict = self.judge(world, packet)
        assert verdict.reason
        assert verdict.port is not None or verdict.action != "forward"
