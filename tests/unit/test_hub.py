"""Where word of the cluster goes: to the state and the loops, to the node, and when writing may begin."""

import pytest

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.api.rows import NodeRow
from kubeproxy.hub import Hub
from kubeproxy.model.node import NodeConfig
from tests.unit.model.make import node

WEB = ("default", "web")


class Loop:
    """Remembers what it was told."""

    def __init__(self, family=IPV4):
        self.family = family
        self.touched = []
        self.triggered = []
        self.node = NodeConfig()

    def set_node(self, node):
        self.node = node

    def touch(self, keys, triggered=None):
        self.touched.append(set(keys))
        self.triggered.append(triggered)


@pytest.fixture
def hub():
    return Hub("node-1")


def service(name="web", port=80):
    return types.convert(
        "Service",
        {"metadata": {"name": name}, "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port}]}},
    )


def endpoint_slice(*addresses, triggered=None):
    metadata = {
        "name": "web-x",
        "labels": {"kubernetes.io/service-name": "web"},
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": triggered},
    }
    endpoints = [{"addresses": [address]} for address in addresses]
    return types.convert(
        "EndpointSlice", {"metadata": metadata, "endpoints": endpoints, "ports": [{"name": "", "port": 80}]}
    )


def own(name="node-1", zone="a", **spec):
    metadata = {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}
    return types.convert("Node", {"metadata": metadata, "spec": spec})


def service_cidr(name, *cidrs):
    return types.convert("ServiceCIDR", {"metadata": {"name": name}, "spec": {"cidrs": list(cidrs)}})


class TestStartGate:
    @pytest.mark.parametrize("order", [("Service", "EndpointSlice"), ("EndpointSlice", "Service")])
    def test_opens_when_services_and_their_endpoints_are_known(self, hub, order):
        for kind in ("Node", "ServiceCIDR", "Endpoints", order[0]):
            hub.complete(kind)
            hub.complete(kind)
            assert not hub.lists_complete.is_set()
        hub.complete(order[1])
        assert hub.lists_complete.is_set()

    def test_objects_alone_do_not_open_it(self, hub):
        hub.set(service())
        hub.set(endpoint_slice("10.1.2.1"))
        assert not hub.lists_complete.is_set()

    def test_stays_open(self, hub):
        hub.complete("Service")
        hub.complete("EndpointSlice")
        hub.gone("Service", *WEB)
        hub.complete("Service")
        assert hub.lists_complete.is_set()


class TestServices:
    def test_the_loops_of_the_families_concerned_are_woken(self, hub):
        hub.loops = [Loop(IPV4), Loop(IPV6)]
        hub.set(service())
        hub.set(endpoint_slice("10.1.2.1"))
        hub.set(endpoint_slice("10.1.2.1"))
        hub.gone("EndpointSlice", "default", "web-x")
        hub.gone("Service", *WEB)
        ipv4, ipv6 = ([keys for keys in loop.touched if keys] for loop in hub.loops)
        assert ipv4 == [{WEB}, {WEB}, {WEB}, {WEB}]
        assert ipv6 == []

    def test_whatever_is_told_of_services_is_counted_as_the_reference_does(self, hub):
        hub.set(service())
        hub.set(service())
        hub.set(types.Service(types.ObjectMeta("x"), types.ServiceSpec(type="ExternalName")))
        hub.set(endpoint_slice("10.1.2.1"))
        hub.set(endpoint_slice("10.1.2.1"))
        hub.set(endpoint_slice("10.1.2.2"))
        hub.set(own())
        hub.set(types.EndpointSlice(types.ObjectMeta("names"), "FQDN"))
        hub.set(types.EndpointSlice(types.ObjectMeta("of-nobody"), "IPv4"))
        assert hub.received == {"Service": 3, "EndpointSlice": 3}
        hub.gone("EndpointSlice", "default", "web-x")
        hub.gone("EndpointSlice", "default", "web-x")
        hub.gone("EndpointSlice", "default", "names")
        hub.gone("Service", *WEB)
        hub.gone("Service", "default", "x")
        assert hub.received == {"Service": 5, "EndpointSlice": 4}

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("2096-10-02T07:06:40.123456789Z", 4000000000.123456),
            ("2096-10-02T09:06:40+02:00", 4000000000.0),
            ("2001-09-09T01:46:40Z", None),  # before this program began
            ("2096-10-02T07:06:40", None),
            ("9999-99-99T00:00:00Z", None),
            ("", None),
            (None, None),
        ],
    )
    def test_loops_hear_when_what_changed_endpoints_happened(self, hub, text, seconds):
        hub.set(service())
        hub.loops = [Loop()]
        hub.set(endpoint_slice("10.1.2.1", triggered=text))
        assert hub.loops[0].triggered == [seconds]

    def test_what_is_gone_and_what_was_before_the_loops_began_at_no_time(self, hub):
        triggered = "2096-10-02T07:06:40Z"
        hub.set(service())
        hub.set(endpoint_slice("10.1.2.1", triggered=triggered))
        hub.loops = [Loop()]
        hub.gone("EndpointSlice", "default", "web-x")
        hub.set(service(port=81))
        assert hub.loops[0].triggered == [None, None]

    def test_the_state_knows_them(self, hub):
        hub.set(service())
        hub.set(endpoint_slice("10.1.2.1"))
        assert hub.state.plan(WEB, node()).ports[0].cluster
        hub.gone("EndpointSlice", "", "web-x")
        assert not hub.state.plan(WEB, node()).ports[0].cluster

    def test_the_node_and_service_cidrs_touch_none(self, hub):
        hub.loops = [Loop()]
        hub.set(own())
        hub.set(service_cidr("a", "10.96.0.0/16"))
        hub.gone("Node", "", "node-1")
        assert hub.loops[0].node.service_cidrs == ("10.96.0.0/16",)
        hub.gone("ServiceCIDR", "", "a")
        assert hub.loops[0].node.service_cidrs == ()
        assert not any(hub.loops[0].touched)

    def test_refused_objects_are_told_to_the_operator(self, hub, caplog):
        hub.set(service())
        hub.refused("Service", "default/web", "spec.ports: Expected `array`, got `str`", kept=True)
        hub.refused("Service", "default/new", "metadata: Expected `object`, got `int`", kept=False)
        assert caplog.messages == [
            "Service default/web cannot be decoded, its last good state stays: spec.ports: Expected `array`, got `str`",
            "Service default/new cannot be decoded and is left out: metadata: Expected `object`, got `int`",
        ]
        assert WEB in hub.state.services


class TestNode:
    @pytest.fixture
    def heard(self, hub):
        heard: list[NodeRow | None] = []
        hub.on_node.append(heard.append)
        return heard

    def test_the_own_one_only(self, hub, heard):
        hub.set(own("node-2"))
        hub.gone("Node", "", "node-2")
        assert hub.node is None
        hub.set(own())
        assert hub.node == NodeRow("node-1", zone="a")
        hub.set(own("node-2"))
        hub.gone("Node", "", "node-2")
        assert heard == [NodeRow("node-1", zone="a")]

    def test_changes_that_concern_us_are_told_once(self, hub, heard):
        hub.set(own())
        hub.set(own(unschedulable=True))
        hub.set(own())
        assert len(heard) == 1
        hub.set(own(zone="b"))
        hub.gone("Node", "", "node-1")
        hub.gone("Node", "", "node-1")
        hub.set(own())
        assert heard[1:] == [NodeRow("node-1", zone="b"), None, NodeRow("node-1", zone="a")]
        assert hub.node == heard[-1]

    def test_its_absence_is_told_when_the_list_is_complete(self, hub, heard):
        assert not hub.node_complete
        hub.complete("Service")
        assert not hub.node_complete
        assert heard == []
        hub.complete("Node")
        assert hub.node_complete
        assert heard == [None]

    def test_its_presence_is_told_again_when_the_list_is_complete(self, hub, heard):
        hub.set(own())
        hub.complete("Node")
        assert heard == [NodeRow("node-1", zone="a")] * 2

    def test_what_is_wrong_with_it_is_told_and_the_rest_stands(self, hub, heard, caplog):
        hub.set(own(podCIDRs=["x", "10.244.1.0/24"]))
        assert heard == [NodeRow("node-1", pod_cidrs=("10.244.1.0/24",), zone="a")]
        assert caplog.messages == ["Node node-1: spec.podCIDRs[0]: 'x' is not a CIDR range"]

    def test_what_is_wrong_with_it_is_told_once_until_it_changes(self, hub, caplog):
        for kubelet_reports in range(3):
            hub.set(own(podCIDRs=["x"], unschedulable=bool(kubelet_reports)))
        assert len(caplog.messages) == 1
        hub.set(own(podCIDRs=["x", "y"]))
        assert len(caplog.messages) == 3
        hub.set(own())
        hub.set(own(podCIDRs=["x"]))
        assert len(caplog.messages) == 4
        hub.gone("Node", "", "node-1")
        hub.set(own(podCIDRs=["x"]))
        assert len(caplog.messages) == 5


class TestServiceCIDRs:
    def test_the_union_of_all(self, hub):
        hub.set(service_cidr("a", "10.96.0.0/16", "fd00:96::/108"))
        hub.set(service_cidr("b", "10.96.0.5/16", "10.97.0.0/16"))
        assert hub.service_cidrs == ("10.96.0.0/16", "fd00:96::/108", "10.97.0.0/16")

    @pytest.mark.parametrize(("gone", "stays"), [("a", "b"), ("b", "a")])
    def test_a_range_of_two_objects_stays_as_long_as_one_has_it(self, hub, gone, stays):
        hub.set(service_cidr("a", "10.96.0.0/16"))
        hub.set(service_cidr("b", "10.96.0.0/16"))
        hub.gone("ServiceCIDR", "", gone)
        assert hub.service_cidrs == ("10.96.0.0/16",)
        hub.gone("ServiceCIDR", "", stays)
        assert hub.service_cidrs == ()

    def test_they_change(self, hub):
        hub.set(service_cidr("a", "10.96.0.0/16", "fd00:96::/108"))
        hub.set(service_cidr("a", "10.98.0.0/16"))
        assert hub.service_cidrs == ("10.98.0.0/16",)
        hub.gone("ServiceCIDR", "", "unknown")
        assert hub.service_cidrs == ("10.98.0.0/16",)

    def test_a_bad_range_harms_no_other(self, hub, caplog):
        hub.set(service_cidr("a", "10.96.0.0/99", "10.98.0.0/16"))
        assert hub.service_cidrs == ("10.98.0.0/16",)
        assert caplog.messages == ["ServiceCIDR a: spec.cidrs[0]: '10.96.0.0/99' is not a CIDR range"]

    def test_what_is_wrong_is_told_once(self, hub, caplog):
        for _ in range(3):
            hub.set(service_cidr("a", "x"))
            hub.set(service_cidr("b", "x"))
        assert len(caplog.messages) == 2
