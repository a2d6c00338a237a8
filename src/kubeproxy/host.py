"""Which node this is, and what the configuration means on it, family by family.

The node's addresses are, in this order: --bind-address for its family; those of its Node object; the source
addresses of this host; loopback. The first one found decides the primary family.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from socket import AF_INET, AF_INET6

from msgspec import Struct

from kubeproxy import backends
from kubeproxy.api.addresses import (
    BITS,
    FAMILIES,
    IPV4,
    IPV6,
    Family,
    contains,
    family_of,
    is_everything,
    is_link_local,
    is_loopback,
    parse_address,
)
from kubeproxy.api.rows import NodeRow
from kubeproxy.config.gates import resolve
from kubeproxy.config.types import LONGEST_INTERFACE, KubeProxyConfiguration
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import LOOPBACK, LocalTraffic, NodeConfig

log = logging.getLogger(__name__)

DOMAINS: Mapping[Family, int] = {IPV4: AF_INET, IPV6: AF_INET6}
UNSPECIFIED = frozenset({"0.0.0.0", "::"})


class NodeError(Exception):
    """The configuration cannot work on this node."""


class Host(Struct, frozen=True, gc=False):
    """The node, once for each IP family it supports, the primary one first."""

    nodes: tuple[NodeConfig, ...]

    @property
    def primary(self) -> NodeConfig:
        """The node for its primary family."""
        return self.nodes[0]


def host(
    config: KubeProxyConfiguration,
    name: str,
    row: NodeRow | None,
    *,
    supported: Sequence[Family],
    found: Sequence[str] = (),
) -> Host:
    """Determines the node's families, addresses and settings.

    Args:
        config: the configuration.
        name: the node's name.
        row: its Node object, if there is one.
        supported: the families that this host supports.
        found: addresses to use if neither the configuration nor the Node object has any.

    Raises:
        NodeError: the configuration cannot work here.
    """
    given = row.addresses if row and row.addresses else tuple(found)
    primary, addresses = node_addresses(given, config.bind_address)
    if primary not in supported:
        raise NodeError(f"no support for primary IP family {primary}")
    if is_loopback(addresses[primary]):
        log.warning(
            "Cannot determine this node's IP, assuming loopback; if that is wrong, set --bind-address"
        )
    mode = backends.mode(config.mode)
    families = [primary, *(f for f in FAMILIES if f != primary and f in supported)]
    node_ports = node_port_cidrs(config, addresses)
    ranges = node_port_ranges(node_ports)
    external_ips = resolve(config.feature_gates)["AllowServiceExternalIPs"]
    pod_cidrs = row.pod_cidrs if row else ()
    nodes = tuple(
        NodeConfig(
            family=family,
            name=name,
            zone=row.zone if row else "",
            address=addresses[family],
            local_traffic=local_traffic(config, family, pod_cidrs) if mode.filters else None,
            masquerade_all=mode.masquerade_all(config),
            masquerade_mark=1 << mode.masquerade_bit(config),
            node_port_ranges=ranges[family],
            names_loopback=names_loopback(node_ports, family),
            relay_ports=config.ports or (0, 0),
            external_ips=external_ips,
            primary=family == primary,
            balancing=mode.balancing,
        )
        for family in families
    )
    _check(config, families, node_ports, pod_cidrs)
    return Host(tuple(mode.node(node, config) for node in nodes))


def node_addresses(given: Sequence[str], bind_address: str) -> tuple[Family, dict[Family, str]]:
    """The primary family, and the node's address of each family.

    Args:
        given: the node's addresses, the most important first.
        bind_address: --bind-address; 0.0.0.0 or :: if it is not set.
    """
    addresses = dict(LOOPBACK)
    primary: Family = IPV4
    for address in reversed(given):
        primary = family_of(address)
        addresses[primary] = address
    bound = parse_address(bind_address) if bind_address else "0.0.0.0"
    if bound not in UNSPECIFIED:
        primary = family_of(bound)
        addresses[primary] = bound
    return primary, addresses


def node_port_cidrs(config: KubeProxyConfiguration, addresses: Mapping[Family, str]) -> tuple[str, ...]:
    """The configured ranges for node ports; with `primary` the node's addresses that are known, too."""
    mine = [a for a in addresses.values() if not is_loopback(a)] if config.node_port_primary else ()
    return (*(f"{a}/{BITS[family_of(a)]}" for a in mine), *config.node_port_cidrs)


def node_port_ranges(given: Sequence[str]) -> dict[Family, tuple[str, ...]]:
    """The ranges whose local addresses accept node ports, of each family; none means all."""
    ranges: dict[Family, tuple[str, ...]] = {}
    for family in FAMILIES:
        mine = tuple(cidr for cidr in given if family_of(cidr) == family)
        ranges[family] = () if any(is_everything(cidr) for cidr in mine) else mine
    return ranges


def names_loopback(given: Sequence[str], family: Family) -> bool:
    """Whether ranges for node ports name loopback addresses of a family; that of all addresses does not."""
    mine = [cidr for cidr in given if family_of(cidr) == family and not is_everything(cidr)]
    return any(is_loopback(cidr.partition("/")[0]) or contains(cidr, LOOPBACK[family]) for cidr in mine)


def local_traffic(
    config: KubeProxyConfiguration, family: Family, pod_cidrs: Sequence[str]
) -> LocalTraffic | None:
    """How packets of local Pods are recognised."""
    mode = config.detect_local_mode
    if mode == "BridgeInterface":
        return LocalTraffic("interface", config.detect_local.bridge_interface)
    if mode == "InterfaceNamePrefix":
        prefix = config.detect_local.interface_name_prefix
        # No interface has a longer name, and iptables would have no room for the wildcard.
        whole = len(prefix.encode()) == LONGEST_INTERFACE
        return LocalTraffic("interface" if whole else "prefix", prefix)
    cidrs = pod_cidrs if mode == "NodeCIDR" else config.cluster_cidrs
    mine = next((cidr for cidr in cidrs if family_of(cidr) == family), None)
    if mine is None:
        log.info(
            "%(ipFamily)s: local traffic cannot be distinguished from other traffic: detectLocalMode %(detectLocalMode)s has no range",
            {"ipFamily": family, "detectLocalMode": mode},
        )
        return None
    return LocalTraffic("range", mine)


def supported_families(machine: Machine) -> list[Family]:
    """The families a host supports: IPv6 may be compiled out or disabled."""
    return [family for family in FAMILIES if machine.has_family(DOMAINS[family])]


def own_addresses(machine: Machine) -> tuple[str, ...]:
    """The source addresses of a host for other networks, IPv4 first, without IPv6 link-local addresses."""
    found = [machine.source_address(DOMAINS[family]) for family in FAMILIES]
    return tuple(a for a in found if a and not (":" in a and is_link_local(a)))


def _check(
    config: KubeProxyConfiguration,
    families: Sequence[Family],
    node_ports: Sequence[str],
    pod_cidrs: Sequence[str],
) -> None:
    """Logs settings that are probably not intended, and refuses what cannot work."""
    primary = families[0]
    other = IPV6 if primary == IPV4 else IPV4
    both = len(families) > 1
    limited = _families(node_ports)
    dual = any(len(_families(cidrs)) > 1 for cidrs in (config.cluster_cidrs, pod_cidrs))
    if not backends.mode(config.mode).filters:
        if config.node_port_addresses:
            log.warning(
                "nodePortAddresses has no effect in %(mode)s mode: node ports are on all local IPs",
                {"mode": config.mode},
            )
    elif not config.node_port_addresses:
        log.warning(
            "nodePortAddresses is unset; NodePort connections will be accepted on all local IPs. Consider using"
            " --nodeport-addresses=primary"
        )
    elif primary not in limited or (both and dual and other not in limited):
        missing = other if primary in limited else primary
        log.warning(
            "nodePortAddresses has no %(ipFamily)s range; node ports are on all local %(ipFamily)s IPs",
            {"ipFamily": missing},
        )
    if _families(config.cluster_cidrs) == {other}:
        message = f"clusterCIDR has only {other} ranges, but the node's primary IP family is {primary}"
        if config.detect_local_mode == "ClusterCIDR" and not both:
            raise NodeError(message)
        log.warning("%s", message)
    if _families(pod_cidrs) == {other}:
        message = f"the Node's podCIDRs are only {other}, but its primary IP family is {primary}"
        if config.detect_local_mode == "NodeCIDR":
            raise NodeError(message)
        log.warning("%s", message)
    if both:
        return
    for doubt in backends.mode(config.mode).doubts(config, primary):
        log.warning("%s", doubt)
    for field, listener in (
        ("healthzBindAddress", config.healthz_address),
        ("metricsBindAddress", config.metrics_address),
    ):
        address = parse_address(listener[0]) if listener else "0.0.0.0"
        if family_of(address) == other and not (address in UNSPECIFIED or is_loopback(address)):
            log.warning(
                "%(field)s is %(address)s, but this host supports only %(ipFamily)s",
                {"field": field, "address": address, "ipFamily": primary},
            )


def _families(cidrs: Iterable[str]) -> set[Family]:
    return {family_of(cidr) for cidr in cidrs}
