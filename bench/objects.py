"""Clusters of any size: Services and EndpointSlices as an API server sends them."""

from typing import Any

import msgspec

NODE = "bench"
_MANAGED = [
    {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:spec": {"f:ports": {}}}}
]


def service(i: int) -> dict[str, Any]:
    """A ClusterIP Service with one port."""
    ip = f"10.{96 + (i >> 16)}.{i >> 8 & 255}.{i & 255}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": f"svc-{i}", "namespace": "default", "uid": f"00000000-0000-0000-0000-{i:012}",
            "labels": {"app": f"svc-{i}"}, "managedFields": _MANAGED,
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "selector": {"app": f"svc-{i}"},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    }  # fmt: skip


def address(number: int) -> str:
    """The address of an endpoint."""
    return f"10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def slice_(i: int, addresses: list[str]) -> dict[str, Any]:
    """The EndpointSlice of a Service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"svc-{i}-x7k2p", "namespace": "default", "uid": f"00000000-0000-0000-0001-{i:012}",
            "labels": {"kubernetes.io/service-name": f"svc-{i}", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "managedFields": _MANAGED,
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {
                "addresses": [ip], "nodeName": f"node-{k % 50}", "zone": f"zone-{k % 3}",
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": "default", "name": f"svc-{i}-{k}", "uid": f"00000000-0000-0000-0002-{i:012}"},
            }
            for k, ip in enumerate(addresses)
        ],
    }  # fmt: skip


def endpoints(i: int, count: int) -> list[str]:
    """The addresses of a Service's endpoints."""
    return [address(i * count + k) for k in range(count)]


def cluster(services: int, count: int) -> list[dict[str, Any]]:
    """Services with a number of endpoints each."""
    numbers = range(services)
    return [service(i) for i in numbers] + [slice_(i, endpoints(i, count)) for i in numbers]


def manifest(services: int, count: int) -> bytes:
    """A cluster as one List in JSON."""
    return as_list(cluster(services, count))


def as_list(items: list[dict[str, Any]]) -> bytes:
    """Objects as one List in JSON."""
    return msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})
