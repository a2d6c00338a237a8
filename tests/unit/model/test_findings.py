"""What is probably wrong with a Service: each kind by itself, in agreement with the plans, and whatever the order of changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.api.rows import EndpointPortRow, PortRow
from kubeproxy.model.findings import Finding, Findings, of_service
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import DROP, REJECT, Key
from kubeproxy.model.planning import plan
from kubeproxy.model.state import State
from tests import strategies
from tests.unit.model.make import HERE, piece, service

HTTP, DNS = PortRow("http", "TCP", 80), PortRow("dns", "UDP", 53)
BOTH = ("10.96.0.10", "fd00::10")


def ports(*texts):
    """Reads "http/TCP"."""
    return tuple(
        EndpointPortRow(name, protocol, 8080) for name, _, protocol in (t.partition("/") for t in texts)
    )


def found(*slices, **fields):
    return of_service(service(**fields), slices, HERE)


class TestEndpoints:
    @pytest.mark.parametrize("text", ["1", "1 draining", "1 published-dying", "1 local"])
    def test_a_usable_endpoint_is_enough(self, text):
        assert found(piece("2 unready", text)) == ()

    def test_none(self):
        assert found() == found(piece()) == found(piece(), piece()) == (Finding("NoEndpoints"),)

    @pytest.mark.parametrize("text", ["1 unready", "1 serving", "1 dying"])
    def test_none_is_ready(self, text):
        assert found(piece(text), piece("2 unready")) == (Finding("NoReadyEndpoints"),)

    def test_none_of_one_port(self):
        slices = piece("1", ports=ports("http/TCP")), piece("2 unready", ports=ports("dns/UDP"))
        assert found(*slices, ports=(HTTP, DNS)) == (Finding("NoReadyEndpoints", ports="dns/UDP"),)

    def test_a_service_without_ports_lacks_nothing(self):
        assert found(ports=()) == ()


class TestFamilies:
    def test_what_is_so_in_both_names_none(self):
        assert found(cluster_ips=BOTH) == (Finding("NoEndpoints"),)

    def test_what_is_so_in_one_names_it(self):
        assert found(piece("1"), cluster_ips=BOTH) == (Finding("NoEndpoints", IPV6),)
        slices = piece("1 unready"), piece("1", family=IPV6)
        assert found(*slices, cluster_ips=BOTH) == (Finding("NoReadyEndpoints", IPV4),)

    def test_endpoints_of_another_family(self):
        assert found(piece("1", family=IPV6)) == (Finding("NoEndpoints", detail="IPv6"),)


class TestPorts:
    def test_another_name(self):
        assert found(piece("1", ports=ports("web/TCP")), ports=(HTTP,)) == (
            Finding("PortWithoutEndpoints", ports="http/TCP", detail="web/TCP"),
            Finding("UnknownEndpointPort", ports="web/TCP"),
        )

    def test_another_protocol(self):
        reasons = [f.reason for f in found(piece("1", ports=ports("dns/TCP")), ports=(DNS,))]
        assert reasons == ["PortWithoutEndpoints", "UnknownEndpointPort"]

    def test_no_name(self):
        first, second = found(piece("1"), ports=(HTTP,))
        assert (first.detail, second.ports) == ("(unnamed)/TCP", "(unnamed)/TCP")

    def test_no_ports(self):
        assert found(piece("1", ports=()), ports=(HTTP,)) == (
            Finding("PortWithoutEndpoints", ports="http/TCP"),
        )

    def test_more_ports_than_the_service_has(self):
        slices = piece("1", ports=ports("http/TCP", *(f"p{i}/TCP" for i in range(9))))
        assert found(slices, ports=(HTTP,)) == (
            Finding("UnknownEndpointPort", ports="p0/TCP, p1/TCP, p2/TCP, p3/TCP, p4/TCP and 4 more"),
        )

    def test_a_slice_without_endpoints_says_nothing_of_ports(self):
        """The controller leaves such slices, with the ports they had."""
        slices = piece("1", ports=ports("http/TCP")), piece(ports=ports("old/TCP"))
        assert found(*slices, ports=(HTTP,)) == ()


class TestLocal:
    def test_internal(self):
        assert found(piece("1"), internal_local=True) == (Finding("NoLocalEndpointsInternal"),)
        assert found(piece("1", "2 local"), internal_local=True) == ()
        assert found(piece("1", "2 local unready"), internal_local=True) == (
            Finding("NoLocalEndpointsInternal"),
        )

    @pytest.mark.parametrize(
        "fields",
        [
            {"ports": (PortRow("", "TCP", 80, 30080),)},
            {"load_balancer_ips": ("192.0.2.5",)},
            {"external_ips": ("192.0.2.5",)},
        ],
    )
    def test_external(self, fields):
        assert found(piece("1"), external_local=True, **fields) == (Finding("NoLocalEndpointsExternal"),)
        assert found(piece("1 local"), external_local=True, **fields) == ()
        assert found(piece("1"), **fields) == ()

    def test_without_external_traffic_the_policy_means_nothing(self):
        assert found(piece("1"), external_local=True) == ()
        assert found(piece("1"), external_local=True, external_ips=("2001:db8::1",)) == ()

    def test_without_any_usable_endpoint_that_is_what_is_wrong(self):
        assert found(piece("1 unready"), internal_local=True) == (Finding("NoReadyEndpoints"),)


def reasons_by_plan(state, node):
    """What the plans of a node say of each Service, by port name and protocol."""
    seen: dict[Key, set[str]] = {}
    for key, row in state.services.items():
        made = plan(row, state.slices(key), node)
        for port in made.ports if made else ():
            reasons = set()
            if not (port.any or port.cluster or port.local):
                reasons.add("unusable")
            if port.internal_local and port.internal_action == DROP:
                reasons.add("NoLocalEndpointsInternal")
            if port.external_local and port.external and port.external_action == DROP:
                reasons.add("NoLocalEndpointsExternal")
            assert ("unusable" in reasons) == (port.internal_action == REJECT)
            for reason in reasons:
                seen.setdefault(key, set()).add(reason)
    return seen


_UNUSABLE = {"NoEndpoints", "NoReadyEndpoints", "PortWithoutEndpoints"}
_OF_OBJECTS = {"UnknownEndpointPort", "IgnoredAnnotation"}
"""Mistakes without an effect on connections."""


@pytest.mark.parametrize("family", [IPV4, IPV6])
@given(events=st.lists(st.one_of(strategies.services(), strategies.slices()), max_size=20))
def test_findings_are_what_the_plans_do(family, events):
    """A front rejects or drops exactly where a finding says so."""
    state, node = State(), NodeConfig(family=family, name=strategies.NODE)
    addresses: set[str] = set()
    for event in events:
        if isinstance(event, types.EndpointSlice):
            # In a cluster no address stands in two slices of a Service for longer than a moment.
            mine = {a for e in event.endpoints or () for a in (e.addresses or ())[:1]}
            if mine & addresses:
                continue
            addresses |= mine
        state.set(event)
    findings = Findings(state, strategies.NODE, orphans=False)
    findings.touch_all()
    findings.update()
    seen = reasons_by_plan(state, node)
    for key in state.services:
        mine = {f.reason for f in findings.known.get(key, ()) if f.family in {"", family}}
        told = {"unusable" if reason in _UNUSABLE else reason for reason in mine - _OF_OBJECTS}
        if any(family == ("IPv6" if ":" in ip else "IPv4") for ip in state.services[key].cluster_ips):
            assert told == seen.get(key, set()), (key, mine)


@given(
    events=st.lists(st.one_of(strategies.services(), strategies.slices(), strategies.events()), max_size=25),
    looks=st.sets(st.integers(0, 24)),
)
def test_findings_do_not_depend_on_the_order_of_changes(events, looks):
    """What is judged change by change is what is found in the end, and every change of it was named."""
    state = State()
    kept = Findings(state, strategies.NODE, orphans=True)
    state.on_change = kept.touch
    mirror: dict[Key, tuple[Finding, ...]] = {}

    def look():
        for key in kept.update():
            assert mirror.get(key, ()) != kept.known.get(key, ())
            mirror[key] = kept.known.get(key, ())

    for i, event in enumerate(events):
        strategies.tell(state, event)
        if i in looks:
            look()
    look()
    fresh = Findings(state, strategies.NODE, orphans=True)
    fresh.touch_all()
    fresh.update()
    assert kept.known == fresh.known == {key: found for key, found in mirror.items() if found}
    assert +kept.counts == +fresh.counts
    assert sum(fresh.counts.values()) == sum(len({f.reason for f in found}) for found in fresh.known.values())


class TestOrphans:
    def told(self, *events, orphans=True):
        state = State()
        for event in events:
            strategies.tell(state, event)
        findings = Findings(state, HERE, orphans=orphans)
        findings.touch_all()
        findings.update()
        return findings.known

    def slice_of(self, name, labels=None):
        tree = {
            "metadata": {
                "name": f"{name}-1",
                "labels": {"kubernetes.io/service-name": name, **(labels or {})},
            },
            "endpoints": [{"addresses": ["10.1.2.1"]}],
        }
        return types.convert("EndpointSlice", tree)

    def test_slices_of_no_service(self):
        assert self.told(self.slice_of("wbe")) == {
            ("default", "wbe"): (Finding("NoService", detail="EndpointSlice default/wbe-1"),)
        }

    def test_in_a_cluster_the_service_may_have_been_deleted_first(self):
        assert self.told(self.slice_of("wbe"), orphans=False) == {}

    @pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"type": "ExternalName"}])
    def test_slices_of_services_that_are_not_ours(self, spec):
        other = types.convert("Service", {"metadata": {"name": "web"}, "spec": spec})
        assert self.told(other, self.slice_of("web")) == self.told(self.slice_of("web"), other) == {}
        gone = strategies.Gone("Service", "", "web")
        assert self.told(self.slice_of("web"), other, gone).keys() == {("default", "web")}
