"""The compact rows that stay in memory: what an object means, without its wire form.

Equal rows mean that nothing changed for us, whatever else changed in the object. All are immutable, none is
tracked by the garbage collector; recurring strings and tuples are shared. An endpoint costs about 150 bytes.
"""

from enum import IntFlag
from typing import Literal

from msgspec import Struct

from kubeproxy.api.addresses import Family

Protocol = Literal["TCP", "UDP", "SCTP"]

Method = Literal["random", "maglev", "least-connections"]
"""How an endpoint is chosen for a new connection."""

WeightKind = Literal["zone", "node", "pods", "group", "address", "any"]
"""By what the endpoints are selected that have a weight; see `WeightRow`."""

Near = Literal["", "node", "zone"]
"""Which endpoints are preferred: none, those on the node, those in the zone of the node."""


class PortRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """One port of a Service. `node_port` is 0 where there is none."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


class WeightRow(Struct, frozen=True, gc=False):
    """A rule that gives some endpoints a weight.

    Attributes:
        kind: by what they are selected.
        name: the zone, the node, what `EndpointRow.pods` is or begins with, the group of their EndpointSlice,
            or the address; "" for all endpoints.
        weight: the weight; 0 for no new connections.
    """

    kind: WeightKind
    name: str
    weight: int


class BalancingRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """How a Service wants new connections to be divided among its endpoints.

    Attributes:
        method: how an endpoint is chosen.
        by_port: the hash of Maglev is of the client's address and port, otherwise of its address.
        table_size: the number of slots of Maglev's table; 0 for the default.
        weights: the rules of weights. Of those that match an endpoint the first counts; if none does, the
            weight is 1.
        near: the endpoints that get all connections until each has `bound` of them open.
        bound: that number; 0 if none are preferred.
    """

    method: Method = "random"
    by_port: bool = False
    table_size: int = 0
    weights: tuple[WeightRow, ...] = ()
    near: Near = ""
    bound: int = 0


class IgnoredAnnotation(Struct, frozen=True, gc=False):
    """An annotation of a Service that cannot be used, or a part of it.

    Attributes:
        name: the annotation.
        reason: what is wrong with it.
    """

    name: str
    reason: str


class ServiceRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """A Service that is to be served.

    Attributes:
        cluster_ips: its ClusterIPs, at most one a family.
        external_ips: externalIPs, of both families.
        load_balancer_ips: the status' ingress IPs that the node serves (ipMode VIP or unset).
        source_ranges: loadBalancerSourceRanges, canonical, of both families.
        affinity: seconds a client stays with its endpoint; 0 without ClientIP affinity.
        health_check_port: healthCheckNodePort where it is to be served, else 0.
        proxy_protocol: its endpoints expect PROXY protocol headers, version 2.
        balancing: how new connections are divided; None: at random, with equal shares.
        ends_connections: connections to endpoints that were removed are ended.
        skips_silent: endpoints that do not answer get no connections.
        allowed_sources: the clients that may use node ports and external IPs, canonical, of both families;
            none for all.
        denied_sources: the clients that may use neither these nor the load balancer IPs.
        ignored: its annotations that cannot be used.
        preserve_destination: packets to its load balancer IPs keep their destination, in kernelspace mode.
        at_connect: in ebpf mode, sockets may be connected to its endpoints.
    """

    namespace: str
    name: str
    cluster_ips: tuple[str, ...]
    ports: tuple[PortRow, ...]
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    affinity: int = 0
    internal_local: bool = False
    external_local: bool = False
    health_check_port: int = 0
    proxy_protocol: bool = False
    balancing: BalancingRow | None = None
    ends_connections: bool = False
    skips_silent: bool = False
    allowed_sources: tuple[str, ...] = ()
    denied_sources: tuple[str, ...] = ()
    ignored: tuple[IgnoredAnnotation, ...] = ()
    preserve_destination: bool = False
    at_connect: bool = True


class Condition(IntFlag):
    """The conditions of an endpoint (KEP-1672)."""

    READY = 1
    SERVING = 2
    TERMINATING = 4


class EndpointRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """One endpoint.

    Attributes:
        conditions: a sum of `Condition`, kept as a plain int.
        node: the name of its node, "" if it is not known.
        zone_hints: the zones it is hinted for.
        node_hints: the nodes it is hinted for.
        zone: the zone it is in, "" if it is not known.
        pods: the name of its Pod without what follows the last "-": what the Pods of one ReplicaSet,
            StatefulSet or DaemonSet have in common; "" if it is no Pod.
    """

    address: str
    conditions: int
    node: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()
    zone: str = ""
    pods: str = ""


class EndpointPortRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """A port of every endpoint of a slice."""

    name: str
    protocol: str
    port: int


class SliceRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """An EndpointSlice of one Service.

    Attributes:
        group: its label `kube-proxy/group`, "" if it has none.
    """

    namespace: str
    service: str
    family: Family
    ports: tuple[EndpointPortRow, ...]
    endpoints: tuple[EndpointRow, ...]
    group: str = ""


class NodeRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """The own node.

    Attributes:
        addresses: its IPs, InternalIPs first, then ExternalIPs, at most one a family.
        pod_cidrs: the ranges its Pods are in.
        zone: label topology.kubernetes.io/zone.
        leaving: being deleted, or tainted by the cluster autoscaler (KEP-3836).
    """

    name: str
    uid: str = ""
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    zone: str = ""
    leaving: bool = False
