"""Settings, interfaces and routes of this host that Services depend on."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from kubeproxy.api.addresses import FAMILIES, IPV4, IPV6, Family, contains, pack, unpack
from kubeproxy.insight.doctor.check import ERROR, NOTE, WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts
from kubeproxy.netlink.route import Address

_GROUP: Final = "kernel"
_OVERLAYS: Final = frozenset({"vxlan", "geneve"})
_VIRTUAL: Final = frozenset(
    {
        "bridge",
        "veth",
        "dummy",
        "vxlan",
        "geneve",
        "ipip",
        "ip6tnl",
        "sit",
        "gre",
        "tun",
        "wireguard",
        "ifb",
        "nlmon",
    }
)
_OVERHEAD: Final = 50
"""Bytes that VXLAN over IPv4 adds to a packet (RFC 7348)."""

_FOLDERS: Final[dict[Family, str]] = {IPV4: "net/ipv4/conf", IPV6: "net/ipv6/conf"}
_NEIGHBOURS: Final[dict[Family, str]] = {
    IPV4: "net/ipv4/neigh/default/gc_thresh3",
    IPV6: "net/ipv6/neigh/default/gc_thresh3",
}


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


@check(
    "KP030",
    "packets are forwarded",
    group=_GROUP,
    severity=ERROR,
    looks_at="net.ipv4.ip_forward, net.ipv6.conf.all.forwarding",
)
def forwarding(facts: Facts) -> Iterator[Symptom]:
    """Without forwarding only connections of this host itself reach endpoints."""
    for family in FAMILIES:
        folder = _FOLDERS[family]
        if facts.setting(f"{folder}/all/forwarding") != "0":
            continue
        if family == IPV6 and facts.snapshot.value is not None and not facts.plans.get(IPV6):
            continue
        single = "forwarding" if family == IPV4 else "force_forwarding"
        values = facts.settings().values
        others = (name for name in values if name.startswith(f"{folder}/") and name.endswith(f"/{single}"))
        if any(values[name] != "0" for name in others if name.split("/")[3] not in {"all", "default", "lo"}):
            continue
        name = "net.ipv4.ip_forward" if family == IPV4 else "net.ipv6.conf.all.forwarding"
        if family == IPV6 and facts.snapshot.value is None:
            continue
        yield Symptom(
            f"{family} forwarding is off",
            f"{name} is 0",
            f"sysctl -w {name}=1, and the same in /etc/sysctl.d for the next boot",
        )


@check(
    "KP031",
    "reverse path filters let answers through",
    group=_GROUP,
    severity=WARNING,
    looks_at="rp_filter of interfaces",
)
def reverse_path(facts: Facts) -> Iterator[Symptom]:
    """A strict filter drops packets that arrive by another interface than the answer would leave by."""
    links = {link.number: link for link in facts.links()}
    inside = facts.options.value.config.cluster_cidrs if facts.options.value else ()
    uplinks = dict.fromkeys(
        links[a.interface].name
        for a in facts.addresses()
        if a.interface in links
        and links[a.interface].up
        and links[a.interface].kind not in _VIRTUAL
        and len(a.packed) == 4
        and not ip_address(a.packed).is_loopback
        and not any(contains(cidr, unpack(a.packed)) for cidr in inside if "." in cidr)
    )
    settings = facts.settings()
    everywhere = settings.number("net/ipv4/conf/all/rp_filter") or 0
    strict = [
        name
        for name in uplinks
        if max(everywhere, settings.number(f"net/ipv4/conf/{name}/rp_filter") or 0) == 1
    ]
    if len(uplinks) > 1 and strict:
        yield Symptom(
            "a strict reverse path filter may drop packets to Services",
            f"rp_filter is 1 on {', '.join(strict)}, and the host has several networks: {', '.join(uplinks)}",
            "set rp_filter to 2 (loose) for these interfaces: sysctl -w net.ipv4.conf.all.rp_filter=2",
        )


@check(
    "KP032",
    "bridges show packets to iptables",
    group=_GROUP,
    severity=WARNING,
    looks_at="net.bridge.bridge-nf-call-iptables, bridges, unanswered flows",
)
def bridges(facts: Facts) -> Iterator[Symptom]:
    """On a bridge, answers between two Pods bypass the translation back unless the bridge calls iptables."""
    names = {link.number: link.name for link in facts.links() if link.kind == "bridge"}
    networks = [
        (names[a.interface], a)
        for a in facts.addresses()
        if a.interface in names and a.prefix < 8 * len(a.packed)
    ]
    if not networks:
        return
    for family, name in ((IPV4, "bridge-nf-call-iptables"), (IPV6, "bridge-nf-call-ip6tables")):
        value = facts.setting(f"net/bridge/{name}")
        if value == "1":
            continue
        bridged = sorted(
            {bridge for bridge, a in networks if (len(a.packed) == 4) == (family == IPV4)} - {"docker0"}
        )
        if not bridged:
            continue
        of_family = [(bridge, a) for bridge, a in networks if (len(a.packed) == 4) == (family == IPV4)]
        flows = [
            flow
            for flow in (facts.tracking.value.flows if facts.tracking.value else ())
            if flow.protocol == "TCP" and flow.endpoint != flow.front and _on(of_family, flow.endpoint[0])
        ]
        waiting = sum(flow.count for flow in flows if flow.state == "SYN_SENT")
        answered = sum(flow.count for flow in flows) - waiting
        yield Symptom(
            f"{family}: bridges do not show packets between their ports to iptables",
            f"net.bridge.{name} is {value if value is not None else 'not there (module br_netfilter is not loaded)'};"
            f" bridges: {', '.join(bridged)}; {waiting} connections to endpoints there wait for an answer,"
            f" {answered} were answered",
            f"if Pods of one node do not reach each other through a Service: modprobe br_netfilter; sysctl -w net.bridge.{name}=1",
            severity=None if waiting > answered else NOTE,
        )


def _on(networks: list[tuple[str, Address]], address: str) -> bool:
    """Whether an address is in the network of a bridge."""
    packed = pack(address)
    return any(
        len(packed) == len(a.packed)
        and int.from_bytes(packed) >> (8 * len(packed) - a.prefix)
        == int.from_bytes(a.packed) >> (8 * len(packed) - a.prefix)
        for _, a in networks
    )


@check(
    "KP033",
    "node ports are reserved",
    group=_GROUP,
    severity=WARNING,
    looks_at="ip_local_port_range, ip_local_reserved_ports, node ports",
)
def reserved_ports(facts: Facts) -> Iterator[Symptom]:
    """A client of this host with a node port as its source port does not get its answers."""
    span = facts.setting("net/ipv4/ip_local_port_range")
    reserved = _ports(facts.setting("net/ipv4/ip_local_reserved_ports") or "")
    if span is None:
        return
    first, last = (int(number) for number in span.split())
    taken = sorted(
        {
            port.node_port
            for _, _, plan in facts.all_plans()
            for port in plan.ports
            if first <= port.node_port <= last
            and not any(low <= port.node_port <= high for low, high in reserved)
        }
    )
    if taken:
        yield Symptom(
            f"{len(taken)} node ports may be taken by clients of this host",
            f"ip_local_port_range is {first}-{last}, and {', '.join(map(str, taken[:5]))} are not in ip_local_reserved_ports",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={taken[0]}-{taken[-1]}, and in /etc/sysctl.d for the next boot",
        )


def _ports(text: str) -> list[tuple[int, int]]:
    """Ranges such as 30000-32767,40000."""
    pairs = (part.partition("-") for part in text.split(",") if part.strip())
    return [(int(low), int(high or low)) for low, _, high in pairs]


@check(
    "KP034",
    "node ports are served on localhost",
    group=_GROUP,
    severity=WARNING,
    looks_at="net.ipv4.conf.all.route_localnet",
)
def localhost(facts: Facts) -> Iterator[Symptom]:
    """Packets from 127.0.0.1 to an endpoint are dropped unless the kernel routes them."""
    node = facts.snapshot().node(IPV4)
    if node is None or not node.localhost_node_ports or node.localhost_relay or node.listens or node.ipvs:
        return
    if node.relayed or not any(node.serves_node_ports(address) for address in ("127.0.0.1",)):
        return
    if facts.setting("net/ipv4/conf/all/route_localnet") == "0":
        yield Symptom(
            "node ports are not reachable at 127.0.0.1",
            "net.ipv4.conf.all.route_localnet is 0, and the configuration asks for node ports on localhost",
            "sysctl -w net.ipv4.conf.all.route_localnet=1, or set iptables.localhostNodePorts to false",
        )


@check(
    "KP035",
    "strictARP is in force",
    group=_GROUP,
    severity=WARNING,
    looks_at="net.ipv4.conf.all.arp_ignore and arp_announce",
)
def strict_arp(facts: Facts) -> Iterator[Symptom]:
    """In ipvs mode each node has all addresses of Services, and must not answer ARP requests for them."""
    node = facts.snapshot().node(IPV4)
    if node is None or node.ipvs is None or not node.ipvs.strict_arp:
        return
    for name, wanted in (("arp_ignore", "1"), ("arp_announce", "2")):
        value = facts.setting(f"net/ipv4/conf/all/{name}")
        if value is not None and value != wanted:
            yield Symptom(
                "ARP requests for addresses of Services are answered by this node",
                f"net.ipv4.conf.all.{name} is {value}, strictARP asks for {wanted}",
                f"sysctl -w net.ipv4.conf.all.{name}={wanted}; find out what sets it back",
            )


@check(
    "KP036",
    "checksums of tunnels are right",
    group=_GROUP,
    severity=WARNING,
    looks_at="the kernel's version and tunnels",
)
def offload(facts: Facts) -> Iterator[Symptom]:
    """Before Linux 5.7 masqueraded VXLAN packets may have a wrong checksum (kubernetes/kubernetes#88986)."""
    tunnels = [link.name for link in facts.links() if link.kind in _OVERLAYS]
    release = facts.release()
    if tunnels and _release(release) < (5, 7):
        yield Symptom(
            "masqueraded packets through a tunnel may have wrong checksums",
            f"Linux {release} with {', '.join(tunnels)}: fixed in 5.7 and in later releases of 5.6 and 5.4",
            f"upgrade the kernel, or switch it off: ethtool --offload {tunnels[0]} rx off tx off",
        )


@check(
    "KP037",
    "packets of tunnels fit",
    group=_GROUP,
    severity=WARNING,
    looks_at="MTU of tunnels and of the interfaces below them",
)
def mtu(facts: Facts) -> Iterator[Symptom]:
    """A tunnel that accepts larger packets than the network loses them: only large transfers fail."""
    links = {link.number: link for link in facts.links()}
    for link in links.values():
        below = links.get(link.parent)
        if link.kind in _OVERLAYS and link.up and below is not None and link.mtu > below.mtu - _OVERHEAD:
            yield Symptom(
                f"packets of {link.name} are too large for {below.name}",
                f"the MTU of {link.name} is {link.mtu}, that of {below.name} {below.mtu}: at most {below.mtu - _OVERHEAD} fits",
                "correct the MTU in the configuration of the network plugin",
            )


@check("KP038", "the kernel is supported", group=_GROUP, severity=WARNING, looks_at="the kernel's version")
def release(facts: Facts) -> Iterator[Symptom]:
    """Linux 5.13 is the oldest release for all modes (support.md)."""
    found = facts.release()
    if _release(found) < (5, 13):
        yield Symptom(
            "the kernel is older than what is supported by all modes",
            f"Linux {found}; nftables and userspace mode need 5.13",
            "upgrade the kernel; iptables and ipvs mode may work (support.md)",
        )


@check(
    "KP039",
    "the kernel can store all neighbours",
    group=_GROUP,
    severity=ERROR,
    looks_at="neigh.default.gc_thresh3 and the number of neighbours",
)
def neighbours(facts: Facts) -> Iterator[Symptom]:
    """When the table is full, connections to further endpoints of this network fail."""
    for family, count in facts.neighbours().items():
        most = facts.settings().number(_NEIGHBOURS[family])
        if most and count > 0.8 * most:
            name = _NEIGHBOURS[family].replace("/", ".")
            yield Symptom(
                f"{family}: the table of neighbours is almost full"
                if count < most
                else f"{family}: the table of neighbours is full",
                f"{count:,} entries, {name} is {most:,}",
                f"sysctl -w {name}={4 * most}, and gc_thresh1 and gc_thresh2 likewise",
            )


@check(
    "KP040",
    "this host has a route to ClusterIPs",
    group=_GROUP,
    severity=ERROR,
    looks_at="routes to ClusterIPs",
)
def routes(facts: Facts) -> Iterator[Symptom]:
    """The kernel looks up a route before translation; without one, a process of this host gets an error."""
    missing = [address for address, there in facts.routes().items() if not there]
    if missing:
        yield Symptom(
            "this host has no route to ClusterIPs",
            f'no route to {", ".join(missing)}: processes of this host get "network is unreachable"',
            "add a default route, or a route for the ranges of ClusterIPs, over any interface that has an address",
        )


@check(
    "KP041",
    "this host has the families of Services",
    group=_GROUP,
    severity=WARNING,
    looks_at="IPv6 of this host and ClusterIPs",
)
def families(facts: Facts) -> Iterator[Symptom]:
    """A Service with a ClusterIP of a family that the node lacks is served under the other one only."""
    taken = facts.snapshot()
    for family in FAMILIES:
        if taken.node(family) is not None:
            continue
        mark = "." if family == IPV4 else ":"
        lacking = [
            key
            for key, row in taken.state.services.items()
            if facts.mine(key) and any(mark in ip for ip in row.cluster_ips)
        ]
        if lacking:
            yield Symptom(
                f"{len(lacking)} Services have {family} addresses, and this node has no {family}",
                f"e.g. {'/'.join(lacking[0])}",
                f"give the node an {family} address (status.addresses of its Node, --node-ip of the kubelet)",
            )


@check(
    "KP042",
    "Pods of this node are recognised",
    group=_GROUP,
    severity=WARNING,
    looks_at="clusterCIDR, detectLocalMode and interfaces",
)
def detect_local(facts: Facts) -> Iterator[Symptom]:
    """Otherwise packets of other hosts are not masqueraded, and policies treat Pods as external clients."""
    taken = facts.snapshot()
    names = [link.name for link in facts.links()]
    for node in taken.nodes:
        local = node.local_traffic
        if local is None:
            yield Symptom(
                f"{node.family}: Pods of this node cannot be recognised",
                "clusterCIDR has no range of this family, or the Node has no podCIDR",
                "set clusterCIDR or detectLocalMode (configuration.md)",
                severity=NOTE,
            )
        elif local.by != "range" and not any(local.matches("", name) for name in names):
            yield Symptom(
                f"{node.family}: no interface of Pods exists as configured",
                f"detectLocal asks for {local.by} {local.value!r}; interfaces: {', '.join(names[:10])}",
                "correct detectLocal in the configuration; if no Pod runs here yet, this is no fault",
            )


CHECKS: Final = of_module(globals())
