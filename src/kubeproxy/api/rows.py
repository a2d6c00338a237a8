"""The compact rows that stay in memory: what an object means, without its wire form.

Equal rows mean that nothing changed for us, whatever else changed in the object. All are immutable, none is
tracked by the garbage collector; recurring strings and tuples are shared. An endpoint costs about 150 bytes.
"""

from enum import IntFlag
from typing import Literal

from msgspec import Struct

from kubeproxy.api.addresses import Family

Protocol = Literal["TCP", "UDP", "SCTP"]


class PortRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """One port of a Service. `node_port` is 0 where there is none."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


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
        zone: the zone it is in, "" if it is not known. Nothing is planned by it; it is shown by commands.
    """

    address: str
    conditions: int
    node: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()
    zone: str = ""


class EndpointPortRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """A port of every endpoint of a slice."""

    name: str
    protocol: str
    port: int


class SliceRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """An EndpointSlice of one Service."""

    namespace: str
    service: str
    family: Family
    ports: tuple[EndpointPortRow, ...]
    endpoints: tuple[EndpointRow, ...]


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
