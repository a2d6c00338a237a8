"""What becomes of packets: refusals, traffic policies, source ranges, node ports, and what is no Service's."""

import pytest

from kubeproxy.api.rows import PortRow
from kubeproxy.model.node import LocalTraffic
from tests.fakes.manners import IPTABLES, NFTABLES
from tests.unit.model.make import IPV6, node, numbers, piece, planned, service
from tests.unit.model.packets import BOTH, CLIENT, LOCAL, NODE, POD, PODS, REMOTE_POD, book, reachable, send


@BOTH
@pytest.mark.parametrize("client", [POD, CLIENT, NODE])
@pytest.mark.parametrize(
    "front", [("10.96.0.10", 80), ("192.0.2.10", 80), ("198.51.100.1", 80), (NODE, 30080)]
)
@pytest.mark.parametrize(
    ("fields", "endpoints"),
    [({}, []), ({}, ["1 unready"]), ({"external_local": True, "internal_local": True}, ["1 local dying", "2 unready"])],
)  # fmt: skip
def test_without_endpoints_it_is_refused(manners, client, front, fields, endpoints):
    made = planned(reachable(**fields), piece(*endpoints))
    verdict = book(made, manners=manners).verdict(send(client, *front))
    # In iptables mode what this node itself sends to an address elsewhere goes there.
    out = manners is IPTABLES and client == NODE and front[0] in {"192.0.2.10", "198.51.100.1"}
    assert verdict.action == ("pass" if out else "reject")
    assert not verdict.endpoints


class TestLocalPolicy:
    fronts = (("192.0.2.10", 80), ("198.51.100.1", 80), (NODE, 30080))

    @BOTH
    @pytest.mark.parametrize("front", fronts)
    @pytest.mark.parametrize("client", [CLIENT, REMOTE_POD])
    def test_from_outside_without_local_endpoints(self, manners, front, client):
        made = planned(reachable(external_local=True), piece("2"))
        assert book(made, manners=manners).verdict(send(client, *front)).action == "drop"

    @BOTH
    @pytest.mark.parametrize("front", fronts)
    @pytest.mark.parametrize("source", [POD, NODE, (NODE, "lo")])
    def test_from_here_without_local_endpoints(self, manners, front, source):
        made = planned(reachable(external_local=True), piece("2"))
        verdict = book(made, manners=manners).verdict(send(source, *front))
        assert (verdict.action, numbers(verdict.endpoints)) == ("forward", [2])
        assert verdict.masquerade == (source != POD)

    @BOTH
    @pytest.mark.parametrize("front", fronts)
    def test_pods_that_are_not_recognised_are_outside(self, manners, front):
        made = planned(reachable(external_local=True), piece("2"))
        blind = book(made, manners=manners, on=node())
        assert blind.verdict(send(POD, *front)).action == "drop"
        assert blind.verdict(send(NODE, *front)).action == "forward"

    @BOTH
    @pytest.mark.parametrize("client", [POD, CLIENT, NODE])
    def test_internal(self, manners, client):
        remote = book(planned(reachable(internal_local=True), piece("2")), manners=manners)
        assert remote.verdict(send(client, "10.96.0.10")).action == "drop"
        assert remote.verdict(send(client, NODE, 30080)).action == "forward"


class TestSourceRanges:
    ranges = ("203.0.113.0/25",)

    def verdict(
        self, source, destination="198.51.100.1", port=80, ranges=ranges, manners=IPTABLES, local=LOCAL
    ):
        made = planned(reachable(source_ranges=ranges), piece("1 local", "2"))
        return book(made, manners=manners, local=local).verdict(send(source, destination, port))

    @BOTH
    @pytest.mark.parametrize("address", ["198.51.100.1", "198.51.100.2"])
    @pytest.mark.parametrize(
        ("source", "admitted"),
        [
            (CLIENT, True),
            (("203.0.113.127", "eth0"), True),
            (("203.0.113.128", "eth0"), False),
            (POD, False),
            (REMOTE_POD, False),
            (NODE, False),
        ],
    )
    def test_clients(self, manners, address, source, admitted):
        verdict = self.verdict(source, address, manners=manners)
        assert verdict.action == ("forward" if admitted else "drop")
        assert verdict.masquerade == admitted

    @BOTH
    @pytest.mark.parametrize("front", [("10.96.0.10", 80), ("192.0.2.10", 80), (NODE, 30080)])
    def test_other_fronts_are_not_limited(self, manners, front):
        assert (
            self.verdict(("203.0.113.200", "eth0"), front[0], front[1], manners=manners).action == "forward"
        )

    @pytest.mark.parametrize("source", [NODE, "198.51.100.1", "198.51.100.2"])
    @pytest.mark.parametrize("address", ["198.51.100.1", "198.51.100.2"])
    @pytest.mark.parametrize(
        ("ranges", "admitted"), [(("192.168.0.0/24",), True), (("203.0.113.0/25",), False)]
    )
    def test_the_node(self, source, address, ranges, admitted):
        """Where a load balancer IP is bound to the node, the node speaks to it from it."""
        local = (*LOCAL, "198.51.100.1", "198.51.100.2")
        verdict = self.verdict(source, address, ranges=ranges, local=local)
        assert verdict.action == ("forward" if admitted else "drop")

    def test_a_pod_that_is_named(self):
        assert self.verdict(POD, ranges=("10.1.2.100/32",)).action == "forward"

    def test_none_admit_all(self):
        assert self.verdict(("192.0.2.200", "eth0"), ranges=()).action == "forward"

    def test_ranges_of_the_other_family_do_not_limit(self):
        assert self.verdict(("192.0.2.200", "eth0"), ranges=("2001:db8::/32",)).action == "forward"

    @pytest.mark.parametrize(
        ("manners", "source", "action"),
        [(IPTABLES, POD, "reject"), (IPTABLES, CLIENT, "reject"), (NFTABLES, POD, "drop"), (NFTABLES, CLIENT, "reject")],
    )  # fmt: skip
    def test_without_endpoints_nftables_mode_checks_the_ranges_first(self, manners, source, action):
        made = planned(reachable(source_ranges=self.ranges))
        assert book(made, manners=manners).verdict(send(source, "198.51.100.1")).action == action
        assert book(made, manners=manners).verdict(send(source, "192.0.2.10")).action == "reject"


class TestHairpin:
    def test_an_endpoint_that_reaches_itself_is_masqueraded(self):
        made = planned(service(), piece("1 local", "2 local"))
        packet = send(("10.1.2.1", "cni0"), "10.96.0.10")
        verdict = book(made).verdict(packet)
        assert not verdict.masquerade
        assert [verdict.masquerades(packet, backend) for backend in verdict.endpoints] == [True, False]

    def test_what_is_masqueraded_is_so_to_all(self):
        made = planned(service(), piece("1 local", "2"))
        packet = send(CLIENT, "10.96.0.10")
        verdict = book(made).verdict(packet)
        assert [verdict.masquerades(packet, backend) for backend in verdict.endpoints] == [True, True]


class TestFronts:
    @BOTH
    def test_protocols(self, manners):
        ports = (PortRow("t", "TCP", 53, 30053), PortRow("u", "UDP", 53, 30053))
        made = planned(service(ports=ports))
        pages = book(made, manners=manners)
        for front in (("10.96.0.10", 53), (NODE, 30053)):
            found = {p: pages.verdict(send(CLIENT, *front, p)).port for p in ("TCP", "UDP", "SCTP")}
            assert found == {"TCP": made.ports[0], "UDP": made.ports[1], "SCTP": None}

    @pytest.mark.parametrize(
        ("destination", "port", "iptables", "nftables"),
        [
            ("10.96.0.10", 81, "pass", "reject"),
            ("10.96.7.7", 80, "pass", "drop"),
            ("10.97.0.1", 80, "pass", "pass"),
            (NODE, 80, "pass", "pass"),
            ("192.0.2.10", 81, "pass", "pass"),
            ("192.0.2.10", 30080, "pass", "pass"),
        ],
    )
    def test_what_is_no_front(self, destination, port, iptables, nftables):
        made = planned(reachable(), piece("1"))
        for manners, action in ((IPTABLES, iptables), (NFTABLES, nftables)):
            pages = book(made, manners=manners, service_cidrs=("10.96.0.0/16", "fd00:96::/108"))
            assert pages.verdict(send(CLIENT, destination, port)).action == action

    def test_node_ports_of_other_nodes_are_not_ours(self):
        assert (
            book(planned(reachable(), piece("1"))).verdict(send(POD, "192.168.0.2", 30080)).action == "pass"
        )

    @pytest.mark.parametrize(
        ("fields", "served"),
        [
            ({}, ["192.168.0.1", "10.1.2.254"]),
            ({"localhost_node_ports": True}, ["127.0.0.1", "192.168.0.1", "10.1.2.254"]),
            ({"node_port_ranges": ("192.168.0.0/24",)}, ["192.168.0.1"]),
            ({"node_port_ranges": ("192.168.9.0/24",)}, []),
            ({"node_port_ranges": ("127.0.0.0/8", "10.1.0.0/16")}, ["10.1.2.254"]),
            ({"node_port_ranges": ("127.0.0.0/8",), "localhost_node_ports": True}, ["127.0.0.1"]),
            ({"node_port_ranges": ("192.168.0.0/24",), "localhost_node_ports": True}, ["192.168.0.1"]),
        ],
    )
    def test_which_addresses_serve_node_ports(self, fields, served):
        on = node(local_traffic=PODS, **fields).with_addresses(LOCAL)
        pages = book(planned(reachable(), piece("1"), on=on), on=on)
        assert [a for a in LOCAL if pages.verdict(send(NODE, a, 30080)).action == "forward"] == sorted(
            served, key=LOCAL.index
        )

    @pytest.mark.parametrize(("manners", "action"), [(IPTABLES, "reject"), (NFTABLES, "pass")])
    def test_refused_node_ports_of_addresses_that_do_not_serve_them(self, manners, action):
        on = node(node_port_ranges=("10.9.0.0/16",)).with_addresses(LOCAL)
        pages = book(planned(reachable(), on=on), on=on, manners=manners)
        assert pages.verdict(send(CLIENT, NODE, 30080)).action == action

    def test_an_address_of_two_kinds(self):
        """Rules come in the order ClusterIP, external IP, load balancer IP, and the first is taken."""
        both = service(
            external_ips=("10.96.0.10", "192.0.2.1"),
            load_balancer_ips=("192.0.2.1",),
            source_ranges=("203.0.113.0/25",),
            internal_local=True,
        )
        pages = book(planned(both, piece("1 local", "2")))
        assert numbers(pages.verdict(send(CLIENT, "10.96.0.10")).endpoints) == [1]
        assert pages.verdict(send(("192.0.2.200", "eth0"), "192.0.2.1")).action == "forward"
        pages = book(planned(both, piece("1 local", "2")), manners=NFTABLES)
        assert pages.verdict(send(("192.0.2.200", "eth0"), "192.0.2.1")).action == "drop", (
            "the firewall is first"
        )

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"cluster_ips": ("10.96.0.11",), "external_ips": ("10.96.0.10",)},
            {"cluster_ips": ("10.96.0.11",), "ports": (PortRow("", "TCP", 81, 30080),)},
        ],
    )
    def test_plans_that_were_made_without_an_owner_of_each_front_are_not_judged(self, fields):
        one = planned(service(ports=(PortRow("", "TCP", 80, 30080),)))
        other = planned(service(name="other", **fields))
        for plans in ((one, other), (other, one)):
            with pytest.raises(ValueError, match="is in two plans"):
                book(*plans)

    def test_ipv6(self):
        on = node(IPV6, local_traffic=LocalTraffic("range", "fd00:1::/64"))
        wanted = service(cluster_ips=("10.96.0.10", "fd00::10"), ports=(PortRow("", "TCP", 80, 30080),))
        made = planned(wanted, piece("1 local"), piece("7", family=IPV6), on=on)
        pages = book(made, on=on, local=("::1", "fd00:168::1"))
        assert numbers(pages.verdict(send(("fd00:1::100", "cni0"), "fd00::10")).endpoints) == [7]
        assert not pages.verdict(send(("fd00:1::100", "cni0"), "fd00::10")).masquerade
        assert pages.verdict(send("::1", "::1", 30080)).action == "pass"
        assert pages.verdict(send(CLIENT, "fd00:168::1", 30080)).masquerade


class TestLocalTraffic:
    @pytest.mark.parametrize(
        ("by", "source", "local"),
        [
            (LocalTraffic("range", "10.1.2.0/24"), ("10.1.2.7", "eth0"), True),
            (LocalTraffic("range", "10.1.2.0/24"), ("10.1.3.7", "cni0"), False),
            (LocalTraffic("range", "fd00::/8"), ("10.1.2.7", "cni0"), False),
            (LocalTraffic("interface", "cni0"), ("203.0.113.5", "cni0"), True),
            (LocalTraffic("interface", "cni0"), ("10.1.2.7", "cni01"), False),
            (LocalTraffic("interface", "cni0"), ("10.1.2.7", ""), False),
            (LocalTraffic("prefix", "veth"), ("203.0.113.5", "veth1234"), True),
            (LocalTraffic("prefix", "veth"), ("203.0.113.5", "veth"), True),
            (LocalTraffic("prefix", "veth"), ("10.1.2.7", "eth0"), False),
            (LocalTraffic("prefix", "veth"), ("10.1.2.7", ""), False),
        ],
    )
    def test_recognised(self, by, source, local):
        assert by.matches(*source) == local
        on = node(local_traffic=by)
        verdict = book(planned(service(), piece("1"), on=on), on=on).verdict(send(source, "10.96.0.10"))
        assert verdict.masquerade == (not local)
