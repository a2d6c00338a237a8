"""Wire object -> row: where values are checked, once.

An API server validates objects and sets defaults; a directory of manifests does neither, and rules are
written from these values. So each is checked here: an invalid value is left out and reported with its field,
and the rest of the object is used. A field that is absent or "" has the value that an API server would set.
Names are part of rules and therefore must be DNS names; an object with an unusable name raises `ValueError`.
"""

import re
from collections.abc import Callable, Iterable
from sys import intern

from kubeproxy.api import annotations, types
from kubeproxy.api.addresses import (
    IPV6,
    Family,
    family_of,
    is_everything,
    is_host,
    parse_address,
    parse_range,
)
from kubeproxy.api.annotations import AnnotationReader
from kubeproxy.api.balancing import balancing
from kubeproxy.api.rows import (
    Condition,
    EndpointPortRow,
    EndpointRow,
    NodeRow,
    PortRow,
    Protocol,
    ServiceRow,
    SliceRow,
)

Complain = Callable[[str, str], None]
"""Called for each part that is left out, with its field path and what is wrong with it."""

DEFAULT_NAMESPACE = "default"
DEFAULT_PROTOCOL: Protocol = "TCP"
DEFAULT_AFFINITY_SECONDS = 10800
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"

_NO_HOST = "is no address of one host"
_NAME = re.compile(r"[A-Za-z0-9](?:[-.A-Za-z0-9]*[A-Za-z0-9])?", re.ASCII)
_READY, _SERVING, _TERMINATING = (int(c) for c in (Condition.READY, Condition.SERVING, Condition.TERMINATING))
_PROTOCOLS: dict[str, Protocol] = {"TCP": "TCP", "UDP": "UDP", "SCTP": "SCTP"}
_FAMILIES: dict[str, Family] = {"IPv4": "IPv4", "IPv6": "IPv6"}


def service(wire: types.Service, complain: Complain) -> ServiceRow | None:
    """Flattens a Service; None if this proxy does not serve it.

    Not served are: type ExternalName, headless Services, and those labelled for another proxy (KEP-2447).

    Raises:
        ValueError: the name cannot be used.
    """
    meta, spec = wire.metadata, wire.spec
    if (
        spec.type == "ExternalName"
        or "None" in {spec.cluster_ip, *(spec.cluster_ips or ())}
        or (meta.labels and meta.labels.proxy_name is not None)
    ):
        return None
    namespace, name = _names(meta, 63)
    if not (spec.cluster_ips or spec.cluster_ip):
        complain(
            "spec.clusterIP", "is empty, so the Service is skipped; only an API server assigns addresses"
        )
        return None
    given = _each("spec.clusterIPs", spec.cluster_ips) or [("spec.clusterIP", spec.cluster_ip)]
    cluster_ips = _addresses(given, complain)
    if spec.cluster_ip not in {"", given[0][1]}:
        complain("spec.clusterIP", f"{spec.cluster_ip!r:.80} is not spec.clusterIPs[0], which is used")
    if len({family_of(ip) for ip in cluster_ips}) < len(cluster_ips):
        complain("spec.clusterIPs", f"{', '.join(cluster_ips)}: more than one of a family; the first is used")
        cluster_ips = tuple({family_of(ip): ip for ip in reversed(cluster_ips)}.values())[::-1]
    if spec.type not in {"ClusterIP", "NodePort", "LoadBalancer", ""}:
        complain("spec.type", f"{spec.type!r:.40} is unknown; ClusterIP is assumed")
    if spec.session_affinity not in {"None", "ClientIP", ""}:
        complain(
            "spec.sessionAffinity", f"{spec.session_affinity!r:.40} is unknown; there will be no affinity"
        )
    external_local = _policy(spec.external_traffic_policy, "spec.externalTrafficPolicy", complain)
    load_balancer_ips, source_ranges = _load_balancer(wire, complain)
    affinity, ours = _affinity(spec, complain), meta.annotations
    reader = AnnotationReader(wire.unknown_annotations)
    return ServiceRow(
        namespace=namespace,
        name=name,
        cluster_ips=cluster_ips,
        ports=_ports(spec.ports or (), complain),
        external_ips=_addresses(_each("spec.externalIPs", spec.external_ips), complain),
        load_balancer_ips=load_balancer_ips,
        source_ranges=source_ranges,
        affinity=affinity,
        internal_local=_policy(spec.internal_traffic_policy, "spec.internalTrafficPolicy", complain),
        external_local=external_local,
        health_check_port=_number(spec.health_check_node_port, 0, 65535, "spec.healthCheckNodePort", complain)
        if external_local and spec.type == "LoadBalancer"
        else 0,
        proxy_protocol=reader.choice(
            annotations.PROXY_PROTOCOL, ours.proxy_protocol if ours else None, {"v2": True}, default=False
        ),
        balancing=balancing(ours, reader, affinity=bool(affinity)) if ours else None,
        ends_connections=reader.choice(
            annotations.REMOVED_ENDPOINTS,
            ours.removed_endpoints if ours else None,
            {"end-connections": True, "keep-connections": False},
            default=False,
        ),
        skips_silent=reader.choice(
            annotations.SILENT_ENDPOINTS,
            ours.silent_endpoints if ours else None,
            {"skip": True, "use": False},
            default=False,
        ),
        allowed_sources=reader.ranges(annotations.ALLOWED_SOURCES, ours.allowed_sources if ours else None),
        denied_sources=reader.ranges(annotations.DENIED_SOURCES, ours.denied_sources if ours else None),
        at_connect=reader.choice(
            annotations.AT_CONNECT,
            ours.at_connect if ours else None,
            {"on": True, "off": False},
            default=True,
        ),
        ignored=tuple(reader.ignored),
        preserve_destination=ours is not None and ours.preserve_destination == "true",
    )


def endpoint_slice(wire: types.EndpointSlice, complain: Complain) -> SliceRow | None:
    """Flattens an EndpointSlice; None if no Service that is served can use it (no Service, headless, FQDN).

    Raises:
        ValueError: the name cannot be used, or the address type is unknown.
    """
    labels = wire.metadata.labels
    if labels is None or not labels.service or labels.headless is not None or wire.address_type == "FQDN":
        return None
    family = _FAMILIES.get(wire.address_type)
    if family is None:
        raise ValueError(f"addressType: {wire.address_type!r:.40} is neither IPv4, IPv6 nor FQDN")
    separator = ":" if family == IPV6 else "."
    endpoints = []
    # The longest loop at a start, often over 100,000 endpoints, so it makes as few calls as possible.
    for i, ep in enumerate(wire.endpoints or ()):
        try:
            address = parse_address(ep.addresses[0] if ep.addresses else "")
        except ValueError as e:
            complain(f"endpoints[{i}].addresses[0]", str(e))
            continue
        if separator not in address:
            complain(f"endpoints[{i}].addresses[0]", f"{address} is not {family}")
            continue
        if not is_host(address):
            complain(f"endpoints[{i}].addresses[0]", f"{address} {_NO_HOST}")
            continue
        given, hints = ep.conditions, ep.hints
        if given is None:
            conditions = _READY | _SERVING
        else:
            conditions = 0 if given.ready is False else _READY
            if given.serving is not False:
                conditions |= _SERVING
            if given.terminating:
                conditions |= _TERMINATING
        node = intern(ep.node_name) if ep.node_name else ""
        zone = intern(ep.zone) if ep.zone else ""
        pods = "" if ep.target_ref is None else _pods(ep.target_ref)
        if hints is None:
            endpoints.append(EndpointRow(address, conditions, node, (), (), zone, pods))
        else:
            zones, nodes = _hints(hints.for_zones), _hints(hints.for_nodes)
            endpoints.append(EndpointRow(address, conditions, node, zones, nodes, zone, pods))
    namespace, _ = _names(wire.metadata)
    return SliceRow(
        namespace,
        intern(labels.service),
        family,
        _endpoint_ports(wire.ports, "ports", complain),
        tuple(endpoints),
        intern(labels.group or ""),
    )


def endpoints(wire: types.Endpoints, complain: Complain) -> tuple[SliceRow, ...]:
    """Flattens core/v1 Endpoints to what their mirrored EndpointSlices would be: a row a subset and family.

    Raises:
        ValueError: the name cannot be used.
    """
    labels = wire.metadata.labels
    if labels is not None and labels.headless is not None:
        return ()
    namespace, name = _names(wire.metadata)
    rows = []
    for i, subset in enumerate(wire.subsets or ()):
        ports = _endpoint_ports(subset.ports, f"subsets[{i}].ports", complain)
        families: dict[Family, list[EndpointRow]] = {}
        for field, addresses, conditions in (
            ("addresses", subset.addresses, _READY | _SERVING),
            ("notReadyAddresses", subset.not_ready_addresses, 0),
        ):
            for j, given in enumerate(addresses or ()):
                address = _address(given.ip, f"subsets[{i}].{field}[{j}].ip", complain)
                if address:
                    pods = "" if given.target_ref is None else _pods(given.target_ref)
                    row = EndpointRow(address, conditions, intern(given.node_name or ""), pods=pods)
                    families.setdefault(family_of(address), []).append(row)
        rows += [SliceRow(namespace, name, family, ports, tuple(found)) for family, found in families.items()]
    return tuple(rows)


def node(wire: types.Node, complain: Complain) -> NodeRow:
    """Flattens a Node."""
    addresses: dict[Family, str] = {}
    for wanted in ("InternalIP", "ExternalIP"):
        for i, given in enumerate(wire.status.addresses or ()):
            if given.type == wanted and (ip := _address(given.address, f"status.addresses[{i}]", complain)):
                addresses.setdefault(family_of(ip), ip)
    spec, meta = wire.spec, wire.metadata
    cidrs = _each("spec.podCIDRs", spec.pod_cidrs) or [("spec.podCIDR", spec.pod_cidr)] * bool(spec.pod_cidr)
    return NodeRow(
        name=meta.name,
        uid=meta.uid,
        addresses=tuple(addresses.values()),
        pod_cidrs=_ranges(cidrs, complain),
        zone=(meta.labels.zone or "") if meta.labels else "",
        leaving=bool(meta.deletion_timestamp) or any(t.key == AUTOSCALER_TAINT for t in spec.taints or ()),
    )


def service_cidr(wire: types.ServiceCIDR, complain: Complain) -> tuple[str, ...]:
    """Flattens a ServiceCIDR to its canonical ranges.

    A range that holds every address is left out: packets to a ServiceCIDR that are for no Service may be
    dropped.
    """
    ranges = _ranges(_each("spec.cidrs", wire.spec.cidrs), complain)
    for cidr in filter(is_everything, ranges):
        complain("spec.cidrs", f"{cidr} holds every address; it is ignored")
    return tuple(cidr for cidr in ranges if not is_everything(cidr))


def _names(meta: types.ObjectMeta, longest: int = 253) -> tuple[str, str]:
    """Namespace and name of a namespaced object, valid as part of a rule."""
    namespace = meta.namespace or DEFAULT_NAMESPACE
    if len(namespace) > 63 or not _NAME.fullmatch(namespace):
        raise ValueError(f"metadata.namespace: {namespace!r:.80} is not a DNS label")
    if len(meta.name) > longest or not _NAME.fullmatch(meta.name):
        raise ValueError(
            f"metadata.name: {meta.name!r:.80} is not a DNS name of at most {longest} characters"
        )
    return intern(namespace), meta.name


def _ports(given: Iterable[types.ServicePort], complain: Complain) -> tuple[PortRow, ...]:
    rows: list[PortRow] = []
    taken: dict[tuple[object, str], int] = {}
    node_ports: dict[tuple[int, str], int] = {}
    for i, port in enumerate(given):
        field = f"spec.ports[{i}]"
        protocol = _PROTOCOLS.get(port.protocol or DEFAULT_PROTOCOL)
        if protocol is None:
            complain(f"{field}.protocol", f"{port.protocol!r:.40} is not TCP, UDP or SCTP")
        elif not 1 <= port.port <= 65535:
            complain(f"{field}.port", f"{port.port} is not between 1 and 65535")
        elif port.name and (len(port.name) > 63 or not _NAME.fullmatch(port.name)):
            complain(f"{field}.name", f"{port.name!r:.80} is not a DNS label")
        elif (first := taken.get((port.name, protocol), taken.get((port.port, protocol)))) is not None:
            complain(field, f"has the name or the number of spec.ports[{first}]")
        else:
            node_port = _number(port.node_port, 0, 65535, f"{field}.nodePort", complain)
            if node_port and (first := node_ports.setdefault((node_port, protocol), i)) != i:
                complain(f"{field}.nodePort", f"{node_port} is that of spec.ports[{first}]")
                node_port = 0
            rows.append(PortRow(intern(port.name), protocol, port.port, node_port))
            taken[port.name, protocol] = taken[port.port, protocol] = i
    return tuple(rows)


def _load_balancer(wire: types.Service, complain: Complain) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Load balancer IPs and their source ranges.

    A family without ranges is open to all clients. So if ranges are invalid and a family is left without any,
    its addresses are not served either, because the Service was meant to be limited.
    """
    addresses = _ingress(wire.status, complain)
    refused: list[str] = []

    def refuse(field: str, message: str) -> None:
        refused.append(field)
        complain(field, message)

    field = "spec.loadBalancerSourceRanges"
    ranges = _ranges(_each(field, wire.spec.load_balancer_source_ranges), refuse)
    if refused:
        limited = {family_of(cidr) for cidr in ranges}
        if shut := [ip for ip in addresses if family_of(ip) not in limited]:
            complain(
                field, f"{', '.join(shut)} would be open to all without {', '.join(refused)}; not served"
            )
            addresses = tuple(ip for ip in addresses if family_of(ip) in limited)
    return addresses, _limits(ranges)


def _ingress(status: types.ServiceStatus | None, complain: Complain) -> tuple[str, ...]:
    found: dict[str, None] = {}
    ingress = status.load_balancer.ingress if status and status.load_balancer else ()
    for i, given in enumerate(ingress or ()):
        field = f"status.loadBalancer.ingress[{i}]"
        if given.ip_mode not in {None, "VIP", "Proxy"}:
            complain(f"{field}.ipMode", f"{given.ip_mode!r:.40} is unknown; the address is not served")
        elif given.ip and given.ip_mode != "Proxy" and (ip := _address(given.ip, f"{field}.ip", complain)):
            found[ip] = None
    return tuple(found)


def _affinity(spec: types.ServiceSpec, complain: Complain) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    return (
        _number(seconds or 0, 1, 86400, field, complain) if seconds is not None else DEFAULT_AFFINITY_SECONDS
    )


def _policy(given: str | None, field: str, complain: Complain) -> bool:
    if given not in {None, "", "Cluster", "Local"}:
        complain(field, f"{given!r:.40} is unknown; Cluster is used")
    return given == "Local"


def _endpoint_ports(
    given: Iterable[types.EndpointPort] | None, field: str, complain: Complain
) -> tuple[EndpointPortRow, ...]:
    rows = []
    for i, port in enumerate(given or ()):
        protocol = _PROTOCOLS.get(port.protocol or DEFAULT_PROTOCOL)
        if protocol is None:
            complain(f"{field}[{i}].protocol", f"{port.protocol!r:.40} is not TCP, UDP or SCTP")
        elif port.port is None:
            complain(f"{field}[{i}].port", "is not set; no Service uses a port without a number")
        elif not 1 <= port.port <= 65535:
            complain(f"{field}[{i}].port", f"{port.port} is not between 1 and 65535")
        else:
            rows.append(EndpointPortRow(intern(port.name or ""), protocol, port.port))
    return tuple(rows)


def _pods(of: types.TargetRef) -> str:
    """What the names of Pods that were made together have in common; "" if it is no Pod."""
    return intern(of.name.rpartition("-")[0]) if of.kind == "Pod" else ""


def _hints(given: tuple[types.Hint, ...] | None) -> tuple[str, ...]:
    return tuple(intern(hint.name) for hint in given if hint.name) if given else ()


def _address(text: str, field: str, complain: Complain) -> str | None:
    try:
        address = parse_address(text)
    except ValueError as e:
        complain(field, str(e))
        return None
    if not is_host(address):
        complain(field, f"{address} {_NO_HOST}")
        return None
    return address


def _each(field: str, given: Iterable[str] | None) -> list[tuple[str, str]]:
    """The texts of a list, each with its field path."""
    return [(f"{field}[{i}]", text) for i, text in enumerate(given or ())]


def _addresses(given: Iterable[tuple[str, str]], complain: Complain) -> tuple[str, ...]:
    parsed = (_address(text, field, complain) for field, text in given)
    return tuple(dict.fromkeys(address for address in parsed if address))


def _ranges(given: Iterable[tuple[str, str]], complain: Complain) -> tuple[str, ...]:
    ranges: dict[str, None] = {}
    for field, text in given:
        try:
            ranges[parse_range(text.strip())] = None
        except ValueError as e:
            complain(field, str(e))
    return tuple(ranges)


def _limits(ranges: tuple[str, ...]) -> tuple[str, ...]:
    """Ranges that limit something: a family whose list holds everything has none."""
    unlimited = {family_of(cidr) for cidr in ranges if is_everything(cidr)}
    return tuple(cidr for cidr in ranges if family_of(cidr) not in unlimited)


def _number(value: int, low: int, high: int, field: str, complain: Complain) -> int:
    """The value if it is in range, else the default 0, reported."""
    if low <= value <= high:
        return value
    complain(field, f"{value} is not between {low} and {high}")
    return 0
