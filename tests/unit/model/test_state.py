"""What the cluster says, kept: whatever the order it is said in, and with every change telling whom it touches."""

import itertools
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import types
from kubeproxy.model import complaints
from kubeproxy.model.state import State
from tests.unit.model.make import HERE, IPV6, node, numbers

NODES = (node(zone="zone-a"), node(IPV6, zone="zone-a"))
WEB = ("shop", "web")
DB = ("shop", "db")


def service(name="web", namespace="shop", labels=None, **spec):
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return types.convert(
        "Service",
        {"metadata": metadata, "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}], **spec}},
    )


def endpoint_slice(name, of="web", *addresses, namespace="shop", labels=None, family="IPv4", **endpoint):
    tree = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of, **(labels or {})},
        },
        "addressType": family,
        "endpoints": [{"addresses": [address], "nodeName": HERE, **endpoint} for address in addresses],
        "ports": [{"name": "", "port": 8080}],
    }
    return types.convert("EndpointSlice", tree)


def endpoints(name, *addresses, namespace="shop"):
    subset = {"addresses": [{"ip": address} for address in addresses], "ports": [{"port": 8080}]}
    return types.convert(
        "Endpoints", {"metadata": {"name": name, "namespace": namespace}, "subsets": [subset]}
    )


def name_of(obj):
    return type(obj).__name__, obj.metadata.namespace, obj.metadata.name


def plans(state):
    """Every plan there is."""
    made = {(key, on.family): state.plan(key, on) for key in state.services for on in NODES}
    return {at: plan for at, plan in made.items() if plan is not None}


def web_backends(state):
    """The backends of the one port of shop/web."""
    plan = state.plan(WEB, NODES[0])
    assert plan is not None
    (port,) = plan.ports
    return numbers(port.cluster)


services = st.builds(
    service,
    name=st.sampled_from(["web", "db"]),
    namespace=st.sampled_from(["shop", "bank"]),
    labels=st.sampled_from([None, {"service.kubernetes.io/service-proxy-name": "x"}]),
    clusterIP=st.sampled_from(["10.96.0.10", "10.96.0.10", "fd00::1", "None", ""]),
    clusterIPs=st.sampled_from([None, None, ["10.96.0.10", "fd00::1"], ["10.96.0.11"]]),
    ports=st.sampled_from([[{"port": 80}], [{"port": 81, "nodePort": 30080}], [], None, [{"port": 0}]]),
    type=st.sampled_from(["ClusterIP", "LoadBalancer", "ExternalName"]),
    externalTrafficPolicy=st.sampled_from(["Local", "Cluster"]),
    healthCheckNodePort=st.sampled_from([0, 32000]),
)
v4 = st.lists(st.sampled_from(["10.1.2.1", "10.1.2.2", "10.1.2.3", "x"]), max_size=3)
v6 = st.lists(st.sampled_from(["fd00:1::1", "fd00:1::2", "10.1.2.1"]), max_size=3)


@st.composite
def slices(draw):
    family, addresses = draw(
        st.tuples(st.just("IPv4"), v4)
        | st.tuples(st.just("IPv6"), v6)
        | st.tuples(st.just("FQDN"), st.just(["example.com"]))
    )
    return endpoint_slice(
        draw(st.sampled_from(["s1", "s2", "s3"])),
        draw(st.sampled_from(["web", "db", "nobody", ""])),
        *addresses,
        namespace=draw(st.sampled_from(["shop", "bank"])),
        labels=draw(st.sampled_from([None, None, {"service.kubernetes.io/headless": ""}])),
        family=family,
        nodeName=draw(st.sampled_from([None, HERE])),
        hints=draw(
            st.sampled_from([None, {"forZones": [{"name": "zone-a"}]}, {"forZones": [{"name": "zone-b"}]}])
        ),
        conditions=draw(st.sampled_from([None, {"ready": False}, {"ready": False, "terminating": True}])),
    )


@st.composite
def old_endpoints(draw):
    return endpoints(
        draw(st.sampled_from(["web", "db", "nobody"])),
        *draw(st.one_of(v4, v6, st.lists(st.sampled_from(["10.1.2.1", "fd00:1::1"])))),
        namespace=draw(st.sampled_from(["shop", "bank"])),
    )


objects = st.one_of(services, slices(), old_endpoints())
steps = st.lists(st.tuples(st.sampled_from(["set", "set", "set", "again", "gone"]), objects), max_size=25)


class Cluster:
    """A state, and what it was told."""

    def __init__(self):
        self.state = State()
        self.objects = {}

    def do(self, what, obj):
        """Says a thing: an object, the same once more, or that the one of that name is gone."""
        if what == "gone":
            self.objects.pop(name_of(obj), None)
            return self.state.gone(*name_of(obj))
        touched = self.state.set(obj)
        self.objects[name_of(obj)] = obj
        if what == "again":
            assert not self.state.set(obj)
        return touched


@given(steps, st.randoms(use_true_random=False))
def test_only_what_is_counts_not_how_it_came_to_be(history, random):
    cluster = Cluster()
    for step in history:
        cluster.do(*step)
    last = list(cluster.objects.values())
    random.shuffle(last)
    fresh = State()
    for obj in last:
        fresh.set(obj)
    assert plans(cluster.state) == plans(fresh)
    assert cluster.state.services == fresh.services


@given(steps)
def test_no_plan_changes_unsaid(history):
    cluster = Cluster()
    before = plans(cluster.state)
    for step in history:
        touched = set(cluster.do(*step))
        after = plans(cluster.state)
        changed = {at[0] for at in before.keys() | after.keys() if before.get(at) != after.get(at)}
        assert changed <= touched
        assert touched <= {at[0] for at in before.keys() | after.keys()} | cluster.state.services.keys() | {
            (obj.metadata.namespace, obj.metadata.name) for _, obj in [step]
        }
        before = after


@given(steps)
def test_when_all_is_gone_nothing_is_kept(history):
    cluster = Cluster()
    for step in history:
        cluster.do(*step)
    for obj in list(cluster.objects.values()):
        cluster.do("gone", obj)
    assert not any(vars(cluster.state).values())


def test_slices_count_in_the_order_of_their_names():
    """Two say the same of an endpoint but for its hints."""
    pieces = [
        endpoint_slice(f"s{i}", "web", "10.1.2.1", hints={"forZones": [{"name": f"zone-{zone}"}]})
        for i, zone in enumerate("abc")
    ]
    made = []
    for order in itertools.permutations(pieces):
        state = State()
        for obj in (service(), *order):
            state.set(obj)
        made.append(plans(state))
    assert all(plan == made[0] for plan in made)


class TestTouched:
    def test_a_service(self):
        state = State()
        assert set(state.set(service())) == {WEB}
        assert not state.set(service())
        assert set(state.set(service(ports=[{"port": 81}]))) == {WEB}
        assert set(state.gone("Service", *WEB)) == {WEB}
        assert not state.gone("Service", *WEB)

    def test_what_does_not_concern_us_touches_nobody(self):
        state = State()
        state.set(service())
        state.set(endpoint_slice("s1", "web", "10.1.2.1"))
        assert not state.set(service(selector={"app": "other"}, labels={"app": "x"}))
        assert not state.set(endpoint_slice("s1", "web", "10.1.2.1", targetRef={"name": "pod"}))
        assert not state.set(service("db", clusterIP="None"))
        assert not state.set(endpoint_slice("s2", "nobody", "10.1.2.1"))

    @pytest.mark.parametrize(
        "change", [{"type": "ExternalName"}, {"clusterIP": "None"}, {"labels": {"service.kubernetes.io/service-proxy-name": ""}}]
    )  # fmt: skip
    def test_a_service_that_is_ours_no_more(self, change):
        state = State()
        state.set(service())
        assert set(state.set(service(**change))) == {WEB}
        assert not plans(state)
        assert set(state.set(service())) == {WEB}
        assert plans(state)

    def test_a_slice_moves(self):
        state = State()
        state.set(service())
        state.set(service("db"))
        assert set(state.set(endpoint_slice("s1", "web", "10.1.2.1"))) == {WEB}
        assert set(state.set(endpoint_slice("s1", "db", "10.1.2.1"))) == {WEB, DB}
        assert set(state.set(endpoint_slice("s1", "nobody", "10.1.2.1"))) == {DB}
        assert set(state.set(endpoint_slice("s1", "web", "10.1.2.1"))) == {WEB}
        assert set(state.set(endpoint_slice("s1", "web", "fd00:1::1", family="IPv6"))) == {WEB}
        headless = {"service.kubernetes.io/headless": ""}
        assert set(state.set(endpoint_slice("s1", "web", "10.1.2.1", labels=headless))) == {WEB}
        assert set(state.set(endpoint_slice("s1", "web", "10.1.2.1"))) == {WEB}
        assert set(state.gone("EndpointSlice", "shop", "s1")) == {WEB}

    def test_only_the_families_concerned_are_touched(self):
        state = State()
        assert state.set(service(clusterIPs=["10.96.0.1", "fd00:10:96::1"])) == {WEB: {"IPv4", "IPv6"}}
        assert state.set(endpoint_slice("s1", "web", "10.1.2.1")) == {WEB: {"IPv4"}}
        assert state.set(endpoint_slice("s2", "web", "fd00:1::1", family="IPv6")) == {WEB: {"IPv6"}}
        assert state.set(endpoint_slice("s1", "web", "fd00:1::2", family="IPv6")) == {WEB: {"IPv4", "IPv6"}}
        assert state.gone("EndpointSlice", "shop", "s2") == {WEB: {"IPv6"}}

    def test_slices_may_come_first(self):
        state = State()
        assert not state.set(endpoint_slice("s1", "web", "10.1.2.1"))
        assert not state.set(endpoints("web", "10.1.2.2"))
        assert set(state.set(service())) == {WEB}
        assert web_backends(state) == [1, 2]

    def test_other_namespaces_are_others(self):
        state = State()
        state.set(service())
        assert not state.set(endpoint_slice("s1", "web", "10.1.2.1", namespace="bank"))
        assert web_backends(state) == []

    def test_no_namespace_is_the_default_one(self):
        state = State()
        assert set(state.set(service(namespace=""))) == {("default", "web")}
        assert not state.set(service(namespace="default"))
        assert set(state.set(endpoint_slice("s1", "web", "10.1.2.1", namespace=""))) == {("default", "web")}
        assert set(state.gone("EndpointSlice", "", "s1")) == {("default", "web")}
        assert set(state.gone("Service", "default", "web")) == {("default", "web")}

    def test_kinds_with_one_name_are_two_objects(self):
        state = State()
        state.set(service())
        state.set(endpoint_slice("web", "web", "10.1.2.1"))
        state.set(endpoints("web", "10.1.2.2"))
        state.gone("EndpointSlice", "shop", "web")
        assert web_backends(state) == [2]

    def test_there_is_no_plan_of_nothing(self):
        assert State().plan(WEB, NODES[0]) is None


class TestWhatCannotBeUsed:
    @pytest.mark.parametrize(
        "bad",
        [
            endpoint_slice("s1", "web", "10.1.2.9", family="IPv9"),
            endpoint_slice("s1", "web", "10.1.2.9", namespace="no name"),
            service("a b"),
            service("a\nE0101 all is lost"),
            service("x" * 64),
            endpoints('web"', "10.1.2.9"),
        ],
        ids=range(6),
    )
    def test_it_changes_nothing_and_is_told(self, bad, caplog):
        state = State()
        for good in (service(), endpoint_slice("s1", "web", "10.1.2.1")):
            state.set(good)
        before = plans(state)
        assert not state.set(bad)
        assert plans(state) == before
        (message,) = caplog.messages
        assert message.startswith(type(bad).__name__)
        assert message.endswith("; the object is left out")
        assert "\n" not in message

    def test_a_wrong_part_is_told_with_its_field_and_the_rest_stands(self, caplog):
        state = State()
        state.set(service(ports=[{"port": 80}, {"port": 0, "name": "b"}]))
        assert web_backends(state) == []  # of the one port that is right
        assert caplog.messages == ["Service shop/web: spec.ports[1].port: 0 is not between 1 and 65535"]
        assert caplog.records[0].levelno == logging.WARNING

    def test_it_is_told_once_as_long_as_it_stays_so(self, caplog):
        state = State()
        wrong, otherwise_wrong, right = ({"ports": [{"port": port}]} for port in (0, -1, 80))
        told = []
        for spec in (wrong, wrong, otherwise_wrong, otherwise_wrong, right, right, wrong):
            caplog.clear()
            state.set(service(**spec))
            told.append(len(caplog.messages))
        assert told == [1, 0, 1, 0, 0, 0, 1]

    def test_it_is_told_again_of_a_new_object_with_its_name(self, caplog):
        state = State()
        for _ in range(2):
            caplog.clear()
            state.set(service(ports=[{"port": 0}]))
            assert len(caplog.messages) == 1
            state.gone("Service", *WEB)

    def test_of_a_thousand_wrong_parts_some_are_told(self, caplog):
        State().set(endpoint_slice("s1", "web", *itertools.repeat("x", 1000)))
        assert len(caplog.messages) == complaints.MOST + 1
        assert caplog.messages[-1].endswith(f"{1000 - complaints.MOST} more parts are wrong and left out")
