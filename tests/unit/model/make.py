"""Rows in few words, for the tests of the model."""

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.api.rows import Condition, EndpointPortRow, EndpointRow, PortRow, ServiceRow, SliceRow
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import ServicePlan
from kubeproxy.model.planning import plan

HERE = "node-1"
ELSEWHERE = "node-9"
STATES = {
    "ready": Condition.READY | Condition.SERVING,
    "unready": Condition(0),
    "serving": Condition.SERVING,
    "draining": Condition.SERVING | Condition.TERMINATING,
    "dying": Condition.TERMINATING,
    # What publishNotReadyAddresses makes of Pods that are unready or leaving.
    "published": Condition.READY,
    "published-draining": Condition.READY | Condition.SERVING | Condition.TERMINATING,
    "published-dying": Condition.READY | Condition.TERMINATING,
}


def endpoint(text: str, family: Family = IPV4) -> EndpointRow:
    """Reads "3 local draining zone-a zone-b node-1": 10.1.2.3, on this node, its state, and its hints."""
    number, *words = text.split()
    state = next((word for word in words if word in STATES), "ready")
    return EndpointRow(
        address=f"10.1.2.{number}" if family == IPV4 else f"fd00:1::{number}",
        conditions=int(STATES[state]),
        node=HERE if "local" in words else ELSEWHERE,
        zone_hints=tuple(word for word in words if word.startswith("zone-")),
        node_hints=tuple(word for word in words if word.startswith("node-")),
    )


def piece(*endpoints: str, port: int = 80, family: Family = IPV4, **fields) -> SliceRow:
    """A slice of shop/web with these endpoints, behind one unnamed TCP port unless told otherwise."""
    defaults = {
        "namespace": "shop",
        "service": "web",
        "family": family,
        "ports": (EndpointPortRow("", "TCP", port),),
        "endpoints": tuple(endpoint(text, family) for text in endpoints),
    }
    return SliceRow(**{**defaults, **fields})


def service(**fields) -> ServiceRow:
    """The Service shop/web with one unnamed TCP port 80 unless told otherwise."""
    defaults = {
        "namespace": "shop",
        "name": "web",
        "cluster_ips": ("10.96.0.10",),
        "ports": (PortRow("", "TCP", 80),),
    }
    return ServiceRow(**{**defaults, **fields})


def node(family: Family = IPV4, **fields) -> NodeConfig:
    """This node."""
    address = "192.168.0.1" if family == IPV4 else "fd00:168::1"
    return NodeConfig(**{"family": family, "name": HERE, "address": address, **fields})


def planned(of: ServiceRow, *slices: SliceRow, on: NodeConfig | None = None) -> ServicePlan:
    """The plan of a Service that has one."""
    made = plan(of, slices, on or node())
    assert made is not None
    return made


def numbers(backends) -> list[int]:
    """The last part of each backend's address."""
    return [int(backend.address.replace("::", ".").rpartition(".")[2]) for backend in backends]


__all__ = ["ELSEWHERE", "HERE", "IPV4", "IPV6", "endpoint", "node", "numbers", "piece", "planned", "service"]
