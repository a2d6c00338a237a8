"""The plan of a Service: what each family gets of it, its backends from all its slices, its health check."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api.rows import EndpointPortRow, PortRow
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.planning import plan
from kubeproxy.model.select import Endpoint
from tests.unit.model.make import IPV6, STATES, endpoint, node, numbers, piece, planned, service


class TestService:
    def test_every_field(self):
        wanted = service(
            cluster_ips=("10.96.0.10", "fd00::10"),
            ports=(PortRow("http", "TCP", 80, 30080), PortRow("dns", "UDP", 53)),
            external_ips=("192.0.2.10", "2001:db8::10"),
            load_balancer_ips=("2001:db8:5::1", "198.51.100.1", "198.51.100.2"),
            source_ranges=("203.0.113.0/25", "2001:db8:1::/48"),
            affinity=100,
            external_local=True,
            health_check_port=32000,
        )
        slices = [
            piece("1 local", "2", ports=(EndpointPortRow("http", "TCP", 8080), EndpointPortRow("dns", "UDP", 5353))),
            piece("7 local", family=IPV6, ports=(EndpointPortRow("http", "TCP", 8080),)),
        ]  # fmt: skip
        both = (Endpoint("10.1.2.1", 8080, local=True), Endpoint("10.1.2.2", 8080))
        dns = (Endpoint("10.1.2.1", 5353, local=True), Endpoint("10.1.2.2", 5353))
        assert planned(wanted, *slices) == ServicePlan(
            namespace="shop",
            name="web",
            health_check_port=32000,
            local_ready=1,
            ports=(
                PortPlan(
                    name="shop/web:http",
                    protocol="TCP",
                    port=80,
                    cluster_ip="10.96.0.10",
                    node_port=30080,
                    external_ips=("192.0.2.10",),
                    load_balancer_ips=("198.51.100.1", "198.51.100.2"),
                    source_ranges=("203.0.113.0/25",),
                    affinity=100,
                    external_local=True,
                    cluster=both,
                    local=both[:1],
                    any=True,
                    known_endpoints=2,
                ),
                PortPlan(
                    name="shop/web:dns",
                    protocol="UDP",
                    port=53,
                    cluster_ip="10.96.0.10",
                    external_ips=("192.0.2.10",),
                    load_balancer_ips=("198.51.100.1", "198.51.100.2"),
                    source_ranges=("203.0.113.0/25",),
                    affinity=100,
                    external_local=True,
                    cluster=dns,
                    local=dns[:1],
                    any=True,
                    known_endpoints=2,
                    serving=dns,
                ),
            ),
        )
        http, nothing = planned(wanted, *slices, on=node(IPV6)).ports
        assert http.cluster_ip == "fd00::10"
        assert http.external_ips == ("2001:db8::10",)
        assert http.load_balancer_ips == ("2001:db8:5::1",)
        assert http.source_ranges == ("2001:db8:1::/48",)
        assert http.cluster == (Endpoint("fd00:1::7", 8080, local=True),)
        assert (nothing.cluster, nothing.internal_action) == ((), "reject")

    @pytest.mark.parametrize(
        ("cluster_ips", "v4", "v6"),
        [
            (("10.96.0.10",), "10.96.0.10", None),
            (("fd00::10",), None, "fd00::10"),
            (("10.96.0.10", "fd00::10"), "10.96.0.10", "fd00::10"),
            (("fd00::10", "10.96.0.10"), "10.96.0.10", "fd00::10"),
            ((), None, None),
        ],
    )
    def test_one_plan_a_family(self, cluster_ips, v4, v6):
        for on, expected in ((node(), v4), (node(IPV6), v6)):
            made = plan(service(cluster_ips=cluster_ips), [], on)
            assert (None if made is None else made.ports[0].cluster_ip) == expected

    def test_key(self):
        assert planned(service()).key == ("shop", "web")

    def test_a_port_without_name(self):
        assert planned(service()).ports[0].name == "shop/web"

    def test_no_ports(self):
        assert planned(service(ports=()), piece("1")).ports == ()

    def test_ranges_limit_load_balancer_addresses_only(self):
        ports = (PortRow("", "TCP", 80, 30080),)
        ranges = ("203.0.113.0/25", "2001:db8:1::/48")
        made = planned(service(ports=ports, source_ranges=ranges, external_ips=("192.0.2.10",)))
        assert made.ports[0].source_ranges == ()
        v6_only = service(load_balancer_ips=("198.51.100.1",), source_ranges=ranges[1:])
        assert planned(v6_only).ports[0].source_ranges == ()

    @pytest.mark.parametrize("allowed", [True, False])
    def test_external_ips_can_be_switched_off(self, allowed):
        wanted = service(external_ips=("192.0.2.10",), external_local=True)
        port = planned(wanted, piece("1"), on=node(external_ips=allowed)).ports[0]
        assert port.external_ips == (("192.0.2.10",) if allowed else ())
        assert port.external == port.uses_local == allowed

    def test_reachable_in_the_other_family_only_is_not_reachable(self):
        wanted = service(
            cluster_ips=("10.96.0.10", "fd00::10"), external_ips=("2001:db8::10",), external_local=True
        )
        assert not planned(wanted).ports[0].uses_local
        assert planned(wanted, on=node(IPV6)).ports[0].uses_local


class TestEndpoints:
    def test_of_many_slices(self):
        made = planned(service(), piece("3", "1"), piece("2", "7"), piece(), piece("9", family=IPV6))
        assert numbers(made.ports[0].cluster) == [1, 2, 3, 7]
        assert made.ports[0].known_endpoints == 4

    def test_their_order_is_that_of_the_text(self):
        """As in the reference, whose rules can then be compared line by line."""
        made = planned(service(), piece("9", "10", "100", "2"), piece("10", port=8080))
        assert [(b.address, b.port) for b in made.ports[0].cluster] == [
            ("10.1.2.100", 80),
            ("10.1.2.10", 80),
            ("10.1.2.10", 8080),
            ("10.1.2.2", 80),
            ("10.1.2.9", 80),
        ]

    def test_one_port_many_numbers(self):
        """A named targetPort may be another number in each Pod; each number has a slice."""
        made = planned(service(), piece("1", port=8080), piece("2", "3", port=9090))
        assert [(b.address, b.port) for b in made.ports[0].cluster] == [
            ("10.1.2.1", 8080),
            ("10.1.2.2", 9090),
            ("10.1.2.3", 9090),
        ]

    def test_protocols_on_one_number(self):
        ports = tuple(PortRow(p.lower(), p, 53) for p in ("TCP", "UDP", "SCTP"))
        of_slice = tuple(EndpointPortRow(p.lower(), p, n) for p, n in (("SCTP", 3), ("TCP", 1), ("UDP", 2)))
        made = planned(service(ports=ports), piece("1", ports=of_slice))
        assert [(p.name, p.protocol, p.port, p.cluster[0].port) for p in made.ports] == [
            ("shop/web:tcp", "TCP", 53, 1),
            ("shop/web:udp", "UDP", 53, 2),
            ("shop/web:sctp", "SCTP", 53, 3),
        ]

    @pytest.mark.parametrize(
        ("name", "protocol", "found"),
        [("http", "TCP", True), ("", "TCP", False), ("http", "UDP", False), ("https", "TCP", False), ("HTTP", "TCP", False)],
    )  # fmt: skip
    def test_name_and_protocol_must_be_the_same(self, name, protocol, found):
        made = planned(
            service(ports=(PortRow("http", "TCP", 80),)),
            piece("1", ports=(EndpointPortRow(name, protocol, 80),)),
        )
        assert bool(made.ports[0].cluster) == found

    def test_two_ports_of_a_slice_with_one_name(self):
        ports = (EndpointPortRow("", "TCP", 1), EndpointPortRow("", "TCP", 2), EndpointPortRow("", "TCP", 1))
        assert [b.port for b in planned(service(), piece("1", ports=ports)).ports[0].cluster] == [1, 2]

    @pytest.mark.parametrize(
        ("better", "worse"),
        [
            ("1", "1 draining"),
            ("1 local", "1 local draining"),
            ("1", "1 local dying"),
            ("1 published", "1 published-draining"),
            ("1", "1 unready"),
            ("1 draining", "1 dying"),
            ("1 local", "1"),
            ("1 local draining", "1 draining"),
        ],
    )
    def test_of_two_at_one_place_the_better_counts(self, better, worse):
        alone = planned(service(), piece(better))
        assert planned(service(), piece(better), piece(worse)) == alone
        assert planned(service(), piece(worse), piece(better)) == alone
        assert planned(service(), piece(worse, better, worse)) == alone

    def test_not_to_be_terminating_comes_first(self):
        """The leaving Pod still serves, the one that took its address does not yet."""
        for order in itertools.permutations([piece("1 draining"), piece("1 unready")]):
            assert planned(service(), *order).ports[0].internal_action == "reject"

    def test_other_ports_are_other_places(self):
        made = planned(service(), piece("1", port=80), piece("1 draining", port=81))
        assert made.ports[0].known_endpoints == 2
        assert [b.port for b in made.ports[0].cluster] == [80]

    @given(
        st.lists(
            st.lists(
                st.builds(
                    "{} {} {}".format,
                    st.integers(1, 4),
                    st.sampled_from(["local", ""]),
                    st.sampled_from(sorted(STATES)),
                ),
                max_size=4,
            ),
            max_size=4,
        ).flatmap(lambda slices: st.tuples(st.just(slices), st.permutations(slices)))
    )
    def test_the_order_of_slices_is_nothing(self, orders):
        wanted = service(external_local=True, ports=(PortRow("", "TCP", 80, 30080),))
        first, second = (planned(wanted, *[piece(*texts) for texts in order]) for order in orders)
        assert first == second


class TestBackends:
    @pytest.mark.parametrize(
        ("fields", "endpoints", "internal", "external", "all_"),
        [
            ({}, ["1 local", "2"], [1, 2], [1, 2], [1, 2]),
            ({"internal_local": True}, ["1 local", "2"], [1], [1, 2], [1, 2]),
            ({"external_local": True}, ["1 local", "2"], [1, 2], [1], [1, 2]),
            ({"internal_local": True, "external_local": True}, ["1 local", "2"], [1], [1], [1, 2]),
            ({"external_local": True}, ["3 local draining", "2", "9"], [2, 9], [3], [2, 3, 9]),
        ],
    )
    def test_of_each_kind_of_traffic(self, fields, endpoints, internal, external, all_):
        wanted = service(ports=(PortRow("", "TCP", 80, 30080),), **fields)
        port = planned(wanted, piece(*endpoints)).ports[0]
        assert numbers(port.internal_endpoints) == internal
        assert numbers(port.external_endpoints) == external
        assert numbers(port.endpoints) == all_


class TestServing:
    """Who keeps flows: whoever is ready, or serves until it ends, wherever it is."""

    EVERY_STATE = (
        "1",
        "2 unready",
        "3 serving",
        "4 draining local",
        "5 dying",
        "6 published",
        "7 published-dying",
    )

    @pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
    @pytest.mark.parametrize("fields", [{}, {"internal_local": True}, {"external_local": True}])
    def test_of_flows(self, protocol, fields):
        (port,) = planned(
            service(ports=(PortRow("", protocol, 53, 30053),), **fields),
            piece(*self.EVERY_STATE, ports=(EndpointPortRow("", protocol, 5353),)),
        ).ports
        assert numbers(port.serving) == [1, 3, 4, 6, 7]

    def test_of_connections(self):
        (port,) = planned(service(), piece(*self.EVERY_STATE)).ports
        assert port.serving == ()

    def test_most_often_costs_nothing(self):
        (port,) = planned(
            service(ports=(PortRow("", "UDP", 53),)),
            piece("1", "2", ports=(EndpointPortRow("", "UDP", 53),)),
        ).ports
        assert port.serving is port.cluster


class TestHealthCheck:
    @pytest.mark.parametrize(
        ("slices", "count"),
        [
            ([], 0),
            ([["1 local", "2 local", "3"]], 2),
            ([["1 local unready", "2 local draining", "3 local dying", "4 local serving"]], 0),
            ([["1 local", "2 local draining"]], 1),
            ([["1 local published", "2 local published-draining"]], 2),
            ([["1 local"], ["1 local"], ["1 local unready", "2"]], 1),
        ],
    )
    def test_counts_ready_local_addresses(self, slices, count):
        pieces = [piece(*texts, port=80 + i) for i, texts in enumerate(slices)]
        wanted = service(external_local=True, health_check_port=32000)
        assert planned(wanted, *pieces).local_ready == count

    def test_one_address_many_ports(self):
        ports = (EndpointPortRow("a", "TCP", 1), EndpointPortRow("b", "TCP", 2))
        wanted = service(health_check_port=32000, ports=(PortRow("a", "TCP", 80), PortRow("b", "TCP", 81)))
        assert planned(wanted, piece("1 local", ports=ports)).local_ready == 1

    def test_a_slice_without_ports_serves_nobody(self):
        assert planned(service(health_check_port=32000), piece("1 local", ports=())).local_ready == 0

    def test_counts_nothing_without_a_port(self):
        """So that the plan does not change with what nobody asks."""
        assert planned(service(), piece("1 local")).local_ready == 0

    def test_each_family_counts_its_own(self):
        wanted = service(cluster_ips=("10.96.0.10", "fd00::10"), health_check_port=32000)
        slices = [piece("1 local"), piece("1 local", "2 local", family=IPV6)]
        assert planned(wanted, *slices).local_ready == 1
        assert planned(wanted, *slices, on=node(IPV6)).local_ready == 2


def test_equal_rows_make_equal_plans():
    wanted = service(affinity=5), [piece("1 local", "2 zone-a"), piece("3 draining")]
    assert plan(*wanted, node()) == plan(*wanted, node())
    assert endpoint("1") == endpoint("1")
