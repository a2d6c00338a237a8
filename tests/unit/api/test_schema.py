"""The fields that are known: all that we read, and all that an API server writes."""

from typing import Any, get_args

import msgspec
import pytest
from msgspec.structs import fields

from kubeproxy.api import types
from kubeproxy.api.schema import SCHEMAS
from kubeproxy.fields import Schema, strict_decoder, unknown

WRITTEN: dict[str, Any] = {
    "Service": {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "web",
            "generateName": "w",
            "labels": {"any.thing/at-all": ""},
            "annotations": {"any": "thing"},
            "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "b", "controller": True}
            ],
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:ports": {}}}, "time": None}],
        },
        "spec": {
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "appProtocol": "kubernetes.io/h2c"}],
            "selector": {"app": "web"},
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
            "trafficDistribution": "PreferSameNode",
            "ipFamilyPolicy": "PreferDualStack",
            "loadBalancerClass": "x",
        },
        "status": {
            "conditions": [{"type": "a", "observedGeneration": 1}],
            "loadBalancer": {"ingress": [{"hostname": "a", "ports": [{"port": 1, "error": "e"}]}]},
        },
    },
    "EndpointSlice": {
        "kind": "EndpointSlice",
        "metadata": {"name": "web-x"},
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.1.0.1"],
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "a", "fieldPath": "x"},
                "deprecatedTopology": {"any": "thing"},
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "a"}]},
                "zone": "a",
            }
        ],
        "ports": [{"name": "", "port": 1, "appProtocol": "http"}],
    },
    "Endpoints": {
        "metadata": {"name": "a"},
        "subsets": [{"notReadyAddresses": [{"ip": "10.1.0.1", "hostname": "a"}]}],
    },
    "Node": {
        "metadata": {"name": "a"},
        "spec": {"providerID": "x", "taints": [{"key": "a", "timeAdded": None}]},
        "status": {
            "capacity": {"example.com/gpu": "1"},
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"osImage": "Debian", "swap": {"capacity": 1}},
            "runtimeHandlers": [{"name": "", "features": {"userNamespaces": True}}],
        },
    },
    "ServiceCIDR": {
        "metadata": {"name": "a"},
        "spec": {"cidrs": ["10.96.0.0/16"]},
        "status": {"conditions": []},
    },
}


@pytest.mark.parametrize("kind", types.KINDS)
def test_what_is_written_is_known(kind: str) -> None:
    assert list(unknown(WRITTEN[kind], SCHEMAS[kind])) == []
    strict_decoder(SCHEMAS[kind]).decode(msgspec.json.encode(WRITTEN[kind]))


@pytest.mark.parametrize("kind", types.KINDS)
def test_what_is_read_is_known(kind: str) -> None:
    def check(type_: Any, schema: Schema | None, path: str) -> None:
        if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
            if type_ in {types.Labels, types.Annotations}:
                assert schema is None, f"{path} may have any keys"
                return
            assert schema is not None, path
            for field in fields(type_):
                if field.name == "unknown_annotations":  # found after decoding
                    continue
                assert field.encode_name in schema, f"{path}.{field.encode_name}"
                check(field.type, schema[field.encode_name], f"{path}.{field.encode_name}")
        for inner in get_args(type_):
            check(inner, schema, path)

    check(types.KINDS[kind], SCHEMAS[kind], kind)


@pytest.mark.parametrize(
    ("kind", "tree", "path", "meant"),
    [
        ("Service", {"spec": {"prots": []}}, "spec.prots", "spec.ports"),
        ("Service", {"spec": {"ports": [{}, {"targetport": 1}]}}, "spec.ports[1].targetport", "spec.ports[1].targetPort"),
        ("Service", {"spec": {"targetPort": 1}}, "spec.targetPort", "spec.ports.targetPort"),
        ("Service", {"spec": {"externalTrafficpolicy": "Local"}}, "spec.externalTrafficpolicy", "spec.externalTrafficPolicy"),
        ("Service", {"spec": {"loadbalancerIPs": []}}, "spec.loadbalancerIPs", "spec.loadBalancerIP"),
        ("Service", {"clusterIP": "10.0.0.1"}, "clusterIP", "spec.clusterIP"),
        ("EndpointSlice", {"addresstype": "IPv4"}, "addresstype", "addressType"),
        ("EndpointSlice", {"endpoints": [{"address": "x"}]}, "endpoints[0].address", "endpoints[0].addresses"),
        ("EndpointSlice", {"endpoints": [{"nodename": "x"}]}, "endpoints[0].nodename", "endpoints[0].nodeName"),
        ("EndpointSlice", {"spec": {"endpoints": []}}, "spec", None),
        ("Endpoints", {"subset": []}, "subset", "subsets"),
        ("Node", {"spec": {"podCidr": "x"}}, "spec.podCidr", "spec.podCIDR"),
    ],
)  # fmt: skip
def test_what_is_misspelt_is_not(kind: str, tree: Any, path: str, meant: str | None) -> None:
    (field,) = unknown(tree, SCHEMAS[kind])
    assert (field.path, field.meant) == (path, (meant,) if meant else ())
    with pytest.raises(msgspec.ValidationError):
        strict_decoder(SCHEMAS[kind]).decode(msgspec.json.encode(tree))
