"""The annotations of balancing: what they mean, and what is ignored without harm to the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json

from kubeproxy.api import flatten, types
from kubeproxy.api.balancing import MOST_RULES, TABLE_SIZES
from kubeproxy.api.rows import BalancingRow, IgnoredAnnotation, WeightRow
from tests.unit.api.flat import endpoint_slice, flat, row, service

AFFINITY = {"sessionAffinity": "ClientIP"}


def annotated(spec=None, **values):
    """The row of a Service with these annotations, and the names of those that are ignored."""
    given = {f"kube-proxy/{name.replace('_', '-')}": value for name, value in values.items()}
    found, complaints = service(spec or {}, annotations=given)
    assert not complaints
    return found, [each.name.removeprefix("kube-proxy/") for each in found.ignored]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, None),
        ({"balancing": "random"}, None),
        ({"maglev_hash": "source-and-port", "maglev_table_size": "251"}, None),  # of no use without maglev
        ({"balancing": "maglev"}, BalancingRow("maglev")),
        (
            {"balancing": "maglev", "maglev_hash": "source-and-port", "maglev_table_size": "65521"},
            BalancingRow("maglev", by_port=True, table_size=65521),
        ),
        ({"balancing": "maglev", "maglev_hash": "source"}, BalancingRow("maglev")),
        ({"balancing": "least-connections"}, BalancingRow("least-connections")),
        ({"prefer": "node", "spill_over": "100"}, BalancingRow(near="node", bound=100)),
        (
            {"prefer": "zone", "spill_over": "1", "balancing": "least-connections"},
            BalancingRow("least-connections", near="zone", bound=1),
        ),
        (
            {"weights": " zone:eu-1a=3,node:n-1.example=0\npods:web_canary=1, group:blue=7 *=1000 "},
            BalancingRow(
                weights=(
                    WeightRow("zone", "eu-1a", 3),
                    WeightRow("node", "n-1.example", 0),
                    WeightRow("pods", "web_canary", 1),
                    WeightRow("group", "blue", 7),
                    WeightRow("any", "", 1000),
                )
            ),
        ),
        (
            {"weights": "address:010.1.2.3=1 address:FD00:0::1=2"},
            BalancingRow(weights=(WeightRow("address", "10.1.2.3", 1), WeightRow("address", "fd00::1", 2))),
        ),
    ],
)
def test_what_annotations_mean(values, wanted):
    found, ignored = annotated(**values)
    assert (found, ignored) == (row(balancing=wanted), [])


@pytest.mark.parametrize(
    ("values", "left", "ignored"),
    [
        ({"balancing": "Maglev"}, None, ["balancing"]),
        ({"balancing": ""}, None, ["balancing"]),
        ({"balancing": "maglev", "maglev_hash": "port"}, BalancingRow("maglev"), ["maglev-hash"]),
        ({"balancing": "maglev", "maglev_table_size": "1000"}, BalancingRow("maglev"), ["maglev-table-size"]),
        ({"prefer": "zone"}, None, ["prefer"]),
        ({"spill_over": "10"}, None, ["spill-over"]),
        ({"prefer": "zone", "spill_over": "0"}, None, ["spill-over", "prefer"]),
        ({"prefer": "rack", "spill_over": "5"}, None, ["prefer", "spill-over"]),
        ({"prefer": "node", "spill_over": "1e3"}, None, ["spill-over", "prefer"]),
        (
            {"prefer": "node", "spill_over": "5", "balancing": "maglev"},
            BalancingRow("maglev"),
            ["prefer"],
        ),
        ({"weights": ""}, None, ["weights"]),
        ({"weights": ", ,"}, None, ["weights"]),
        ({"weights": "zone:a"}, None, ["weights"]),
        ({"weights": "zone:a=1001"}, None, ["weights"]),
        ({"weights": "zone:a=-1"}, None, ["weights"]),
        ({"weights": "zone:a=\u0663"}, None, ["weights"]),
        ({"weights": "zone:a=99999999999999999999"}, None, ["weights"]),
        ({"weights": "rack:a=1"}, None, ["weights"]),
        ({"weights": "zone:=1"}, None, ["weights"]),
        ({"weights": "any:x=1"}, None, ["weights"]),
        ({"weights": "address:web=1"}, None, ["weights"]),
        (
            {"weights": "zone:a=3 zone:a=4 x zone:b=5"},
            BalancingRow(weights=(WeightRow("zone", "a", 3), WeightRow("zone", "b", 5))),
            ["weights", "weights"],
        ),
        # One wrong value does not affect the others.
        (
            {"balancing": "least", "weights": "*=2", "proxy_protocol": "v1"},
            BalancingRow(weights=(WeightRow("any", "", 2),)),
            ["proxy-protocol", "balancing"],
        ),
    ],
)
def test_what_cannot_be_used_is_ignored(values, left, ignored):
    found, names = annotated(**values)
    assert found.balancing == left
    assert names == ignored


def test_affinity_excludes_maglev():
    found, ignored = annotated(AFFINITY, balancing="maglev", weights="*=2")
    assert found.affinity
    assert found.balancing == BalancingRow(weights=(WeightRow("any", "", 2),))
    assert ignored == ["balancing"]
    assert annotated(AFFINITY, balancing="least-connections")[1] == []


def test_too_many_rules():
    found, ignored = annotated(weights=" ".join(f"node:n{i}=2" for i in range(MOST_RULES + 5)))
    assert len(found.balancing.weights) == MOST_RULES
    assert ignored == ["weights"]


def test_sizes_are_primes():
    assert all(size % n for size in TABLE_SIZES for n in range(2, 256) if n < size)


@given(st.dictionaries(st.sampled_from(["balancing", "weights", "prefer", "spill_over"]), st.text()))
def test_any_text_is_read(values):
    found, _ = annotated(**values)
    assert found.balancing is None or found.balancing != BalancingRow()


def test_the_reason_is_given():
    found, _ = annotated(balancing="Maglev")
    assert found.ignored == (
        IgnoredAnnotation("kube-proxy/balancing", "'Maglev' is not random, maglev or least-connections"),
    )


def decoded(annotations):
    """The rows of a Service from a tree and from JSON."""
    tree = {"metadata": {"name": "web", "annotations": annotations}, "spec": {"clusterIP": "10.96.0.10"}}
    found = []
    for obj in (types.convert("Service", tree), types.decode("Service", json.encode(tree))):
        assert isinstance(obj, types.Service)
        found.append(flatten.service(obj, lambda *_: None))
    return found


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("kube-proxy/weight", "there is no such annotation, did you mean kube-proxy/weights?"),
        ("kube-proxy/Balancing", "there is no such annotation, did you mean kube-proxy/balancing?"),
        (
            "kube-proxy/removed-endpoint",
            "there is no such annotation, did you mean kube-proxy/removed-endpoints?",
        ),
        ("kube-proxy/something-else", "there is no such annotation"),
        ("kube-proxy/group", "it is a label of EndpointSlices"),
    ],
)
def test_unknown_names_are_reported_with_the_nearest_right_one(name, reason):
    for found in decoded({name: "x", "kube-proxy/weights": "*=2", "example.com/weight": "1"}):
        assert found.ignored == (IgnoredAnnotation(name, reason),)
        assert found.balancing == BalancingRow(weights=(WeightRow("any", "", 2),))


@given(st.dictionaries(st.one_of(st.text(), st.text().map("kube-proxy/{}".format)), st.text()))
def test_any_names_are_read(given):
    rows = decoded(given)
    assert rows[0] == rows[1]
    assert all(each.name.isprintable() for each in rows[0].ignored)


@pytest.mark.parametrize(
    ("target", "pods"),
    [
        ({"kind": "Pod", "name": "web-canary-7d9f8c6b5-x2x4z"}, "web-canary-7d9f8c6b5"),
        ({"kind": "Pod", "name": "db-0"}, "db"),
        ({"kind": "Pod", "name": "single"}, ""),
        ({"kind": "Node", "name": "n-1"}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_pods_of_an_endpoint(target, pods):
    found, complaints = endpoint_slice(
        {"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"], "targetRef": target}], "ports": []}
    )
    assert not complaints
    assert found.endpoints[0].pods == pods
    tree = {
        "metadata": {"name": "web", "namespace": "shop"},
        "subsets": [{"addresses": [{"ip": "10.1.0.1", "targetRef": target}]}],
    }
    (mirrored,), _ = flat("Endpoints", tree)
    assert mirrored.endpoints[0].pods == pods


def test_group_of_a_slice():
    labels = {"kubernetes.io/service-name": "web", "kube-proxy/group": "blue"}
    found, complaints = endpoint_slice({"addressType": "IPv4"}, labels=labels)
    assert not complaints
    assert found.group == "blue"
