"""Random cases for the lab, of the kind the oracle has: a configuration, Services and endpoints that the lab can answer for."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.lab.cases import PROXY_NAME_LABEL
from tests.lab.topology import NODE_NAME

Document = dict[str, Any]
Fronts = dict[str, list[str]]

LOCAL = {
    "IPv4": [f"10.244.1.{i}" for i in (11, 12, 13, 14)],
    "IPv6": [f"fd00:10:244:1::{i:x}" for i in (11, 12, 13)],
}
FAR = {"IPv4": [f"10.244.2.{i}" for i in (21, 22, 23)], "IPv6": [f"fd00:10:244:2::{i:x}" for i in (21, 22)]}
CLUSTER_IPS = {"IPv4": "10.96.20.{}", "IPv6": "fd00:10:96::20{}"}
EXTERNAL_IPS = {"IPv4": "203.0.113.3{}", "IPv6": "2001:db8:203::3{}"}
BALANCER_IPS = {"IPv4": "203.0.113.15{}", "IPv6": "2001:db8:203::15{}"}
SHARED_IPS = (CLUSTER_IPS, EXTERNAL_IPS, BALANCER_IPS)
MOST_SERVICES = 3
NODE_IPS = {"IPv4": ("192.0.2.1", "10.244.1.1"), "IPv6": ("2001:db8:2::1", "fd00:10:244:1::1")}
LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}
RANGES = (
    "198.51.100.0/24",
    "10.244.0.0/16",
    "192.0.2.0/24",
    "203.0.113.0/24",
    "2001:db8:198::/48",
    "0.0.0.0/0",
    "::/0",
    # nested in others, or adjacent
    "198.51.100.0/29",
    "198.51.100.8/29",
    "128.0.0.0/1",
    "10.244.1.0/24",
    "2001:db8::/32",
    "fd00:10:244:1::/64",
)
PORTS: tuple[Mapping[str, Any], ...] = (
    {"name": "http", "port": 80, "protocol": "TCP"},
    {"name": "dns", "port": 53, "protocol": "UDP"},
)
TARGETS = {"http": 8080, "dns": 5353}
DETECTION: tuple[Mapping[str, Any], ...] = (
    {"clusterCIDR": "10.244.0.0/16,fd00:10:244::/48"},
    {"detectLocalMode": "NodeCIDR"},
    {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}},
    {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "cn"}},
    {},
)


@st.composite
def configurations(draw: st.DrawFn) -> Document:
    """A configuration, without the mode."""
    masquerade_all = draw(st.booleans())
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        **draw(st.sampled_from(DETECTION)),
        "nodePortAddresses": draw(
            st.sampled_from(
                [
                    None,
                    ["primary"],
                    ["192.0.2.0/24", "2001:db8:2::/64"],
                    ["10.244.1.0/24"],
                    ["0.0.0.0/0", "::/0"],
                ]
            )
        ),
        "iptables": {"masqueradeAll": masquerade_all, "localhostNodePorts": draw(st.booleans())},
        "nftables": {"masqueradeAll": masquerade_all},
    }


@st.composite
def _external_ips(draw: st.DrawFn, i: int, families: list[str]) -> list[str]:
    """Addresses of a Service's own, or some that another one may have, too: its ClusterIP, its other addresses."""
    if draw(st.booleans()):
        return [EXTERNAL_IPS[family].format(i) for family in families]
    pool = [ips[f].format(j) for f in families for ips in SHARED_IPS for j in range(MOST_SERVICES)]
    return draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True))


@st.composite
def _services(draw: st.DrawFn, i: int, families: list[str]) -> Document:
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]))
    outward = kind != "ClusterIP"
    ports = [dict(port) for port in draw(st.sampled_from([PORTS, PORTS[:1], PORTS[1:]]))]
    for number, port in enumerate(ports):
        port["targetPort"] = TARGETS[port["name"]]
        if outward and draw(st.integers(0, 3)):
            port["nodePort"] = 31000 + 10 * draw(st.sampled_from([i, i, 0])) + number
    spec: Document = {
        "type": kind,
        "ports": ports,
        "clusterIPs": [CLUSTER_IPS[family].format(i) for family in families],
        "clusterIP": CLUSTER_IPS[families[0]].format(i),
        "ipFamilies": families,
        "internalTrafficPolicy": draw(st.sampled_from(["Cluster", "Local"])),
        "sessionAffinity": draw(st.sampled_from(["None", "None", "ClientIP"])),
    }
    if draw(st.booleans()):
        spec["externalIPs"] = draw(_external_ips(i, families))
    if outward or "externalIPs" in spec:
        spec["externalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
    status: Document = {}
    if kind == "LoadBalancer":
        spec["loadBalancerSourceRanges"] = draw(st.lists(st.sampled_from(RANGES), max_size=4))
        mode = draw(st.sampled_from([{}, {"ipMode": "VIP"}, {"ipMode": "Proxy"}]))
        status = {"loadBalancer": {"ingress": [{"ip": BALANCER_IPS[f].format(i), **mode} for f in families]}}
        if "externalIPs" in spec and draw(st.integers(0, 3)) == 0:
            spec["externalIPs"] += [BALANCER_IPS[f].format(i) for f in families]
    label = draw(st.sampled_from([None] * 9 + [PROXY_NAME_LABEL, "service.kubernetes.io/headless"]))
    metadata = {"name": f"s{i}", "namespace": "default", "labels": {label: "x"} if label else {}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}


@st.composite
def _endpoints(draw: st.DrawFn, address: str, *, here: bool, hinted: bool) -> Document:
    state = draw(st.sampled_from(["ready", "ready", "ready", "unready", "serving", "ending", "unknown"]))
    conditions = {
        "ready": {"ready": True},
        "unready": {"ready": False},
        "serving": {"ready": False, "serving": True, "terminating": True},
        "ending": {"ready": False, "serving": False, "terminating": True},
        "unknown": {},
    }[state]
    endpoint = {
        "addresses": [address],
        "nodeName": NODE_NAME if here else "bench-other",
        "zone": "z1" if here else "z2",
        "conditions": conditions,
    }
    if hinted:
        endpoint["hints"] = draw(
            st.sampled_from(
                [
                    {"forZones": [{"name": "z1"}]},
                    {"forZones": [{"name": "z2"}]},
                    {"forNodes": [{"name": NODE_NAME}], "forZones": [{"name": "z1"}]},
                    {"forNodes": [{"name": "bench-other"}], "forZones": [{"name": "z2"}]},
                ]
            )
        )
    return endpoint


@st.composite
def _slices(draw: st.DrawFn, i: int, part: int, family: str, ports: list[Document]) -> Document:
    hinted = draw(st.integers(0, 3)) == 0
    addresses = draw(st.lists(st.sampled_from([*LOCAL[family], *FAR[family]]), max_size=4, unique=True))
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": family,
        "metadata": {
            "name": f"s{i}-{family.lower()}-{part}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": f"s{i}"},
        },
        "endpoints": [
            draw(_endpoints(address, here=address in LOCAL[family], hinted=hinted)) for address in addresses
        ],
        "ports": [
            {"name": port["name"], "port": port["targetPort"], "protocol": port["protocol"]} for port in ports
        ],
    }


@st.composite
def objects(draw: st.DrawFn) -> list[Document]:
    """Services, and EndpointSlices of them."""
    found: list[Document] = []
    for i in range(draw(st.integers(1, MOST_SERVICES))):
        families = draw(st.sampled_from([["IPv4"], ["IPv4"], ["IPv4", "IPv6"]]))
        service = draw(_services(i, families))
        found.append(service)
        for family in families:
            parts = range(draw(st.sampled_from([1, 1, 2])))
            found += [draw(_slices(i, part, family, service["spec"]["ports"])) for part in parts]
    _leave_out_uncontested([each["spec"] for each in found if each["kind"] == "Service"])
    return found


def _leave_out_uncontested(specs: list[Document]) -> None:
    """Removes external IPs that are ClusterIPs of a Service that does not have all of the ports.

    nftables mode recognises traffic to ClusterIPs by the address alone: what is sent to another port is masqueraded like it.
    """
    owned = {ip: _fronts(spec) for spec in specs for ip in spec["clusterIPs"]}
    for spec in specs:
        if "externalIPs" in spec:
            ips = spec["externalIPs"]
            spec["externalIPs"] = [ip for ip in ips if _fronts(spec) <= owned.get(ip, _fronts(spec))]


def _fronts(spec: Document) -> set[tuple[str, int]]:
    return {(port["protocol"], port["port"]) for port in spec["ports"]}


def fronts(services: list[Document]) -> Fronts:
    """What each client is to try, in the oracle's words."""
    asked: list[str] = []
    on_nodes: list[str] = []
    on_loopback: list[str] = []
    for service in services:
        spec = service["spec"]
        balancers = [each["ip"] for each in service["status"].get("loadBalancer", {}).get("ingress", ())]
        kinds = {
            "clusterIP": spec["clusterIPs"],
            "externalIP": spec.get("externalIPs", ()),
            "loadBalancer": balancers,
        }
        for port in spec["ports"]:
            protocol = port["protocol"].lower()
            asked += [f"{k} {ip}:{port['port']}/{protocol}" for k, ips in kinds.items() for ip in ips]
            if "nodePort" in port:
                at = f"{port['nodePort']}/{protocol}"
                on_nodes += [f"nodePort {ip}:{at}" for f in spec["ipFamilies"] for ip in NODE_IPS[f]]
                on_loopback += [f"nodePort {LOOPBACK[f]}:{at}" for f in spec["ipFamilies"]]
        asked += [f"clusterIP-other-port {ip}:4/tcp" for ip in spec["clusterIPs"] if "." in ip]
    everywhere = sorted({*asked, *on_nodes})
    return {
        "pod": everywhere,
        "endpoint": everywhere,
        "node": sorted({*everywhere, *on_loopback}),
        "remote-pod": sorted(on_nodes),
        "outside": everywhere,
    }
