"""Whatever an object holds, what comes through can stand in a rule."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import types
from kubeproxy.api.addresses import parse_address, parse_range
from tests.unit.api.flat import Complaints, endpoint_slice, flat, service


class TestNames:
    good = ("web", "web-1", "a", "0", "a" * 63)
    bad = (
        "-a",
        "a-",
        "a b",
        "a\nb",
        "a\n",
        'a"b',
        "a'b",
        "a/b",
        "a:b",
        "\0",
        "é",
        "a" * 64,
        ".",
        "x" * 100_000,
    )

    @pytest.mark.parametrize("name", good)
    def test_good(self, name):
        for metadata in ({"name": name}, {"namespace": name}):
            assert service({}, **metadata)[0] is not None
            assert endpoint_slice({}, **metadata)[0] is not None

    @pytest.mark.parametrize("name", bad, ids=range(len(bad)))
    def test_bad_names_of_services(self, name):
        with pytest.raises(ValueError, match=r"^metadata\.name: ") as caught:
            service({}, name=name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize("namespace", bad, ids=range(len(bad)))
    def test_bad_namespaces(self, namespace):
        for make in (service, endpoint_slice):
            with pytest.raises(ValueError, match=r"^metadata\.namespace: ") as caught:
                make({}, namespace=namespace)
            assert str(caught.value).isprintable()

    def test_names_of_slices_are_longer(self):
        found, _ = endpoint_slice({}, name="a" * 253)
        assert found is not None
        with pytest.raises(ValueError, match=r"^metadata\.name: .* of at most 253 characters$"):
            endpoint_slice({}, name="a" * 254)


texts = st.sampled_from(
    ["", "a", "web", "None", "VIP", "10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "10.0.0.0/8", "::/0"]
)
texts |= st.text(max_size=6) | st.text("a-.\n\"' 0:/", max_size=6)
numbers = st.integers(-2, 90_000) | st.integers(-(2**31), 2**31 - 1) | st.integers(1, 65535)
protocols = st.sampled_from(["TCP", "UDP", "SCTP", "tcp", ""]) | texts


def maybe(strategy):
    return st.none() | strategy


def objects_of(required=(), **fields):
    """Objects with some of these fields."""
    given_always = {name: fields.pop(name) for name in required}
    return st.fixed_dictionaries(
        given_always, optional={name: maybe(value) for name, value in fields.items()}
    )


def lists_of(strategy):
    return st.lists(strategy, max_size=4)


metadata = objects_of(
    name=texts,
    namespace=texts,
    labels=st.fixed_dictionaries({"kubernetes.io/service-name": st.just("web") | texts}),
).map(lambda given: {"name": "web", **given})
services = st.fixed_dictionaries(
    {
        "metadata": metadata,
        "spec": objects_of(
            type=st.sampled_from(["ClusterIP", "LoadBalancer"]) | texts,
            clusterIP=st.just("10.0.0.1") | texts,
            clusterIPs=lists_of(texts),
            externalIPs=lists_of(texts),
            ports=lists_of(
                objects_of(["port"], port=numbers, name=texts, protocol=protocols, nodePort=numbers)
            ),
            loadBalancerSourceRanges=lists_of(texts),
            sessionAffinity=st.just("ClientIP") | texts,
            sessionAffinityConfig=objects_of(clientIP=objects_of(timeoutSeconds=numbers)),
            externalTrafficPolicy=st.just("Local") | texts,
            internalTrafficPolicy=texts,
            healthCheckNodePort=numbers,
        ),
        "status": objects_of(loadBalancer=objects_of(ingress=lists_of(objects_of(ip=texts, ipMode=texts)))),
    }
)
endpoint_ports = lists_of(objects_of(name=texts, port=numbers, protocol=protocols))
hints = lists_of(objects_of(name=texts))
slices = st.fixed_dictionaries(
    {"metadata": metadata, "addressType": st.sampled_from(["IPv4", "IPv6"]) | texts, "ports": endpoint_ports},
    optional={
        "endpoints": lists_of(
            objects_of(
                addresses=lists_of(texts),
                nodeName=texts,
                conditions=objects_of(ready=st.booleans(), serving=st.booleans(), terminating=st.booleans()),
                hints=objects_of(forZones=hints, forNodes=hints),
            )
        )
    },
)
endpoint_addresses = lists_of(objects_of(ip=texts, nodeName=texts))
endpoints_objects = st.fixed_dictionaries(
    {
        "metadata": metadata,
        "subsets": lists_of(
            objects_of(
                addresses=endpoint_addresses, notReadyAddresses=endpoint_addresses, ports=endpoint_ports
            )
        ),
    }
)

NAME = re.compile(r"[A-Za-z0-9](?:[-.A-Za-z0-9]*[A-Za-z0-9])?")


def rows_of(kind, tree):
    """Every row of an object, or none if it is refused by name; the complaints are fit to be logged."""
    refusal = ""
    try:
        found, complaints = flat(kind, tree)
    except ValueError as e:
        found, complaints, refusal = None, Complaints(), str(e)
    except types.UndecodableError as e:
        found, complaints, refusal = None, Complaints(), e.reason
    assert not refusal or re.match(r"metadata\.name(space)?: |addressType: ", refusal)
    assert refusal.isprintable()
    for field, message in complaints.items():
        assert re.fullmatch(r"[a-zA-Z.\[\]0-9]+", field)
        assert message.isprintable()
    if found is None:
        return ()
    return found if isinstance(found, tuple) else (found,)


class TestNothingUnsafeComesThrough:
    """Whatever an object holds: a row holds names that can stand in a rule, canonical addresses and possible numbers."""

    @given(services)
    def test_services(self, tree):
        for found in rows_of("Service", tree):
            for name in (found.namespace, found.name):
                assert NAME.fullmatch(name)
                assert len(name) <= 63
            for address in (*found.cluster_ips, *found.external_ips, *found.load_balancer_ips):
                assert parse_address(address) == address
            for cidr in found.source_ranges:
                assert parse_range(cidr) == cidr
            for port in found.ports:
                assert port.name == "" or (NAME.fullmatch(port.name) and len(port.name) <= 63)
                assert port.protocol in {"TCP", "UDP", "SCTP"}
                assert 1 <= port.port <= 65535
                assert 0 <= port.node_port <= 65535
            assert len({(port.name, port.protocol) for port in found.ports}) == len(found.ports)
            assert len({(port.port, port.protocol) for port in found.ports}) == len(found.ports)
            assert 0 <= found.affinity <= 86400
            assert 0 <= found.health_check_port <= 65535

    @given(st.tuples(st.just("EndpointSlice"), slices) | st.tuples(st.just("Endpoints"), endpoints_objects))
    def test_endpoints(self, given_object):
        for found in rows_of(*given_object):
            assert NAME.fullmatch(found.namespace)
            for endpoint in found.endpoints:
                assert parse_address(endpoint.address) == endpoint.address
                assert (":" in endpoint.address) == (found.family == "IPv6")
                assert 0 <= endpoint.conditions <= 7
                assert "" not in (*endpoint.zone_hints, *endpoint.node_hints)
            for port in found.ports:
                assert port.protocol in {"TCP", "UDP", "SCTP"}
                assert 1 <= port.port <= 65535
