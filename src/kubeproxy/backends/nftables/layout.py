"""What the table is made of.

There is no object per Service (session affinity apart), only elements of sets and maps, so a change is a few
elements and costs the same however many Services there are. "Front" stands for a destination: address,
protocol and port; for node ports protocol and port. "Slot" numbers the endpoints of a front from 0.

    endpoints-N            front . slot : endpoint, for fronts with N endpoints
    here-endpoints-N       the same for traffic that starts on this node, where the policy is Local
    nodeport-...           the same two for node ports
    service-ips            front : goto a chain, for all but ClusterIPs with at most 16 endpoints
    service-nodeports      the same for node ports
    no-endpoints-...       fronts to drop or reject
    firewall-fronts, firewall-sources     fronts with source ranges, and who is let in
    firewall-nodeports, firewall-nodeport-sources     the same two for node ports
    maglev-SIZE-...        of a Service port with Maglev hashing, slot : endpoint
    cluster-ips, service-cidrs, nodeport-ips, hairpin-connections

For ClusterIPs with few endpoints, which is nearly all there are, chain `find-endpoint` asks each
`endpoints-N` up to 16 itself. Why they are not in the verdict map, too: whenever an element with a `goto` is
added, the kernel checks all elements with one again, 6 ms at 50,000, but a Service that grows from one
`endpoints-N` to the next is plain data, 60 us. And why there is a map for each N, not one for all: a rule in
a new chain makes the kernel walk the maps it names, 56 ms at 250,000 elements.

Names that the reference also has mean and look the same, so that it can take over this table, and we its.
"""

import re
from functools import cache
from typing import Final

from msgspec import Struct

from kubeproxy.netlink.nft.messages import (
    FORWARD,
    INPUT,
    INTERVAL,
    IP,
    IP6,
    OUTPUT,
    POSTROUTING,
    PREROUTING,
    Hook,
)
from kubeproxy.netlink.nft.types import ADDRESS4, ADDRESS6, PROTOCOL, SERVICE, Type, below

ADDRESSES: Final = {IP: ADDRESS4, IP6: ADDRESS6}

TABLE: Final = "kube-proxy"
COMMENT: Final = "rules for kube-proxy, layout 1"
"""Marks the table as ours and identifies its layout: a table with another comment is replaced."""

DIRECT: Final = 16
"""The number of endpoints up to which a ClusterIP is found without the verdict map."""

CLUSTER_IPS: Final = "cluster-ips"
NODEPORT_IPS: Final = "nodeport-ips"
SERVICE_CIDRS: Final = "service-cidrs"
HAIRPIN: Final = "hairpin-connections"
SERVICE_IPS: Final = "service-ips"
SERVICE_NODEPORTS: Final = "service-nodeports"
DROP_SERVICES: Final = "no-endpoints-drop"
REJECT_SERVICES: Final = "no-endpoints-reject"
DROP_NODEPORTS: Final = "no-endpoints-nodeports-drop"
REJECT_NODEPORTS: Final = "no-endpoints-nodeports-reject"
FIREWALL_IPS: Final = "firewall-fronts"
FIREWALL_SOURCES: Final = "firewall-sources"
FIREWALL_NODEPORTS: Final = "firewall-nodeports"
FIREWALL_NODEPORT_SOURCES: Final = "firewall-nodeport-sources"

_NODE_PORT_BYTES: Final = 8

BASE_CHAINS: Final = {
    "filter-prerouting-pre-dnat": Hook("filter", PREROUTING, -110),
    "filter-output-pre-dnat": Hook("filter", OUTPUT, -110),
    "filter-input": Hook("filter", INPUT, 0),
    "filter-forward": Hook("filter", FORWARD, 0),
    "filter-output": Hook("filter", OUTPUT, 0),
    "nat-prerouting": Hook("nat", PREROUTING, -100),
    "nat-output": Hook("nat", OUTPUT, -100),
    "nat-postrouting": Hook("nat", POSTROUTING, 100),
}
"""The base chains. Their names and priorities are a public contract: others register before and after."""

SERVICES: Final = "services"
FIND_ENDPOINT: Final = "find-endpoint"
MASQUERADING: Final = "masquerading"
FIREWALL_CHECK: Final = "firewall-check"
SERVICE_CHECK: Final = "service-endpoints-check"
NODEPORT_CHECK: Final = "nodeport-endpoints-check"
CLUSTER_IPS_CHECK: Final = "cluster-ips-check"
FIXED_CHAINS: Final = (
    FIND_ENDPOINT,
    SERVICES,
    MASQUERADING,
    FIREWALL_CHECK,
    SERVICE_CHECK,
    NODEPORT_CHECK,
    CLUSTER_IPS_CHECK,
)


def firewall_sources(front: bytes) -> str:
    """The set of who is let in at a packed front or node port."""
    return FIREWALL_NODEPORT_SOURCES if len(front) == _NODE_PORT_BYTES else FIREWALL_SOURCES


class SetType(Struct, frozen=True, gc=False):
    """A set, or with `data` a map (empty data: of verdicts), as `messages.add_set` makes it."""

    name: str
    key: tuple[Type, ...]
    data: tuple[Type, ...] | None = None
    flags: int = 0
    comment: str = ""
    size: int = 0


@cache
def endpoints(family: int, count: int, *, here: bool = False, node_port: bool = False) -> SetType:
    """The map of fronts with so many endpoints."""
    address = ADDRESSES[family]
    name = f"{'nodeport-' if node_port else ''}{'here-' if here else ''}endpoints-{count}"
    front = (PROTOCOL, SERVICE) if node_port else (address, PROTOCOL, SERVICE)
    return SetType(name, (*front, below(count)), (address, SERVICE))


SLOTS: Final = re.compile(r"(nodeport-)?(here-)?endpoints-([1-9]\d*)")
"""Names of `endpoints`."""


def table(family: int, name: str) -> SetType:
    """A table of Maglev hashing, by its name. With its size given, the kernel needs half the memory."""
    found = TABLES.match(name)
    assert found is not None
    size = int(found[1])
    return SetType(name, (below(size),), (ADDRESSES[family], SERVICE), size=size)


TABLES: Final = re.compile(r"maglev-([1-9]\d{0,4})-")
"""The beginning of the names of tables of Maglev hashing: `names.table`."""


def parse_endpoints(family: int, name: str) -> SetType | None:
    """The map of endpoints that has this name; None if there is none with such a name."""
    if TABLES.match(name):
        return table(family, name)
    found = SLOTS.fullmatch(name)
    if found is None:
        return None
    return endpoints(family, int(found[3]), here=bool(found[2]), node_port=bool(found[1]))


@cache
def sets(family: int) -> tuple[SetType, ...]:
    """The sets and maps that are always there."""
    address = ADDRESSES[family]
    front = (address, PROTOCOL, SERVICE)
    port = (PROTOCOL, SERVICE)
    return (
        SetType(CLUSTER_IPS, (address,), comment="Active ClusterIPs"),
        SetType(NODEPORT_IPS, (address,), comment="IPs that accept NodePort traffic"),
        SetType(SERVICE_CIDRS, (address,), flags=INTERVAL, comment="where ClusterIPs come from"),
        SetType(HAIRPIN, (address, address, PROTOCOL, SERVICE), comment="service hairpin connections"),
        SetType(SERVICE_IPS, front, (), comment="ClusterIP, ExternalIP and LoadBalancer IP traffic"),
        SetType(SERVICE_NODEPORTS, port, (), comment="NodePort traffic"),
        *(endpoints(family, n) for n in range(1, DIRECT + 1)),
        SetType(DROP_SERVICES, front, comment="Services with endpoints elsewhere only"),
        SetType(REJECT_SERVICES, front, comment="Services without endpoints"),
        SetType(DROP_NODEPORTS, port, comment="NodePorts with endpoints elsewhere only"),
        SetType(REJECT_NODEPORTS, port, comment="NodePorts without endpoints"),
        SetType(FIREWALL_IPS, front, comment="destinations that are subject to LoadBalancerSourceRanges"),
        SetType(FIREWALL_SOURCES, (*front, address), flags=INTERVAL, comment="who may use them"),
        SetType(FIREWALL_NODEPORTS, port, comment="NodePorts with allowed or denied sources"),
        SetType(FIREWALL_NODEPORT_SOURCES, (*port, address), flags=INTERVAL, comment="who may use them"),
    )
