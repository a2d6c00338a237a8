"""Names of the interface, chains and sets. They are a public contract: tools and operators look for them."""

from typing import Final, NamedTuple

from kubeproxy.api.addresses import IPV4, Family
from kubeproxy.backends.base import VIRTUAL_INTERFACE
from kubeproxy.netlink import ipset

INTERFACE: Final = VIRTUAL_INTERFACE

SERVICES: Final = "KUBE-SERVICES"
POSTROUTING: Final = "KUBE-POSTROUTING"
MARK_MASQ: Final = "KUBE-MARK-MASQ"
FORWARD: Final = "KUBE-FORWARD"
PROXY_FIREWALL: Final = "KUBE-PROXY-FIREWALL"
NODE_PORT: Final = "KUBE-NODE-PORT"
LOAD_BALANCER: Final = "KUBE-LOAD-BALANCER"
SOURCE_RANGES: Final = "KUBE-SOURCE-RANGES-FIREWALL"
FILTER_IN: Final = "KUBE-IPVS-FILTER"
FILTER_OUT: Final = "KUBE-IPVS-OUT-FILTER"

OWN_CHAINS: Final = (NODE_PORT, LOAD_BALANCER, SOURCE_RANGES, FILTER_IN, FILTER_OUT)
"""Chains that no other mode has."""

LOOP_BACK: Final = "LOOP-BACK"
CLUSTER_IP: Final = "CLUSTER-IP"
EXTERNAL_IP: Final = "EXTERNAL-IP"
EXTERNAL_IP_LOCAL: Final = "EXTERNAL-IP-LOCAL"
BALANCER: Final = "LOAD-BALANCER"
BALANCER_LOCAL: Final = "LOAD-BALANCER-LOCAL"
BALANCER_FIREWALL: Final = "LOAD-BALANCER-FW"
BALANCER_SOURCE_IP: Final = "LOAD-BALANCER-SOURCE-IP"
BALANCER_SOURCE_CIDR: Final = "LOAD-BALANCER-SOURCE-CIDR"
NODE_PORTS: Final = {"TCP": "NODE-PORT-TCP", "UDP": "NODE-PORT-UDP", "SCTP": "NODE-PORT-SCTP-HASH"}
NODE_PORTS_LOCAL: Final = {
    "TCP": "NODE-PORT-LOCAL-TCP",
    "UDP": "NODE-PORT-LOCAL-UDP",
    "SCTP": "NODE-PORT-LOCAL-SCTP-HASH",
}
HEALTH_CHECK: Final = "HEALTH-CHECK-NODE-PORT"
ADDRESSES: Final = "IPVS-IPS"


class SetKind(NamedTuple):
    """A set's type, and the comment of rules that look it up."""

    type: str
    comment: str


SETS: Final = {
    LOOP_BACK: SetKind(
        ipset.HASH_IP_PORT_IP,
        "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
    ),
    CLUSTER_IP: SetKind(ipset.HASH_IP_PORT, "Kubernetes service cluster ip + port for masquerade purpose"),
    EXTERNAL_IP: SetKind(
        ipset.HASH_IP_PORT, "Kubernetes service external ip + port for masquerade and filter purpose"
    ),
    EXTERNAL_IP_LOCAL: SetKind(
        ipset.HASH_IP_PORT, "Kubernetes service external ip + port with externalTrafficPolicy=local"
    ),
    BALANCER: SetKind(ipset.HASH_IP_PORT, "Kubernetes service lb portal"),
    BALANCER_LOCAL: SetKind(
        ipset.HASH_IP_PORT, "Kubernetes service load balancer ip + port with externalTrafficPolicy=local"
    ),
    BALANCER_FIREWALL: SetKind(
        ipset.HASH_IP_PORT, "Kubernetes service load balancer ip + port for load balancer with sourceRange"
    ),
    BALANCER_SOURCE_IP: SetKind(
        ipset.HASH_IP_PORT_IP,
        "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
    ),
    BALANCER_SOURCE_CIDR: SetKind(
        ipset.HASH_IP_PORT_NET,
        "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
    ),
    NODE_PORTS["TCP"]: SetKind(ipset.BITMAP_PORT, "Kubernetes nodeport TCP port for masquerade purpose"),
    NODE_PORTS_LOCAL["TCP"]: SetKind(
        ipset.BITMAP_PORT, "Kubernetes nodeport TCP port with externalTrafficPolicy=local"
    ),
    NODE_PORTS["UDP"]: SetKind(ipset.BITMAP_PORT, "Kubernetes nodeport UDP port for masquerade purpose"),
    NODE_PORTS_LOCAL["UDP"]: SetKind(
        ipset.BITMAP_PORT, "Kubernetes nodeport UDP port with externalTrafficPolicy=local"
    ),
    NODE_PORTS["SCTP"]: SetKind(
        ipset.HASH_IP_PORT,
        "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
    ),
    NODE_PORTS_LOCAL["SCTP"]: SetKind(
        ipset.HASH_IP_PORT,
        "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
    ),
    HEALTH_CHECK: SetKind(ipset.BITMAP_PORT, "Kubernetes health check node port"),
    ADDRESSES: SetKind(ipset.HASH_IP, ""),
}


def set_name(short: str, family: Family) -> str:
    """A set's name in the kernel, which allows 31 characters."""
    return f"KUBE-{'' if family == IPV4 else '6-'}{short}"[: ipset.NAME_SIZE]
