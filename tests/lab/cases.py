"""The oracle's cases, opened: a configuration and objects for a proxy, the recorded answers, and what goes with them.

`write` lays a case out as a proxy is given it: a configuration file and a folder of manifests, with the Node and the
ServiceCIDR the reference saw. It knew no IPv6 address of its node.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.lab.probe import Outcome, Outcomes
from tests.lab.topology import NODE_NAME, ROOT

ORACLE = ROOT / "tests/oracle"
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
NAMES = tuple(sorted(path.stem for path in (ORACLE / "cases").glob("*.yaml")))
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": NODE_NAME,
        "labels": {"topology.kubernetes.io/zone": "z1", "kubernetes.io/hostname": NODE_NAME},
    },
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
    "status": {
        "addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "Hostname", "address": NODE_NAME},
        ]
    },
}
SERVICE_CIDR = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "ServiceCIDR",
    "metadata": {"name": "kubernetes"},
    "spec": {"cidrs": ["10.96.0.0/12", "fd00:10:96::/112"]},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}
# Answers that the recording's own rules contradict, and what those rules do.
_LIMITED = {  # the fourth front asked: six rejections at once, then one a second, is the kernel's limit towards one peer
    (client, "clusterIP-other-port 10.96.1.3:4/tcp"): "ECONNREFUSED"
    for client in ("endpoint", "outside", "pod")
}
MISRECORDED: dict[tuple[str, str], Mapping[tuple[str, str], Outcome]] = {
    ("nftables", "clusterip-no-endpoints"): _LIMITED,
    ("ipvs", "clusterip-no-endpoints"): _LIMITED,
    (
        "iptables",
        "nodeport-addresses-cidr",
    ): {  # a lost packet; same rules and same front in the other cases and modes
        ("endpoint", "clusterIP 10.96.2.1:80/tcp"): ["10.244.1.11<-10.244.1.1", "10.244.2.21<-10.244.1.11"],
    },
    (
        "iptables",
        "no-cluster-cidr",
    ): {  # half of the tries reach the node's own endpoint; so recorded for the other modes
        ("outside", "clusterIP 10.96.2.2:80/tcp"): ["10.244.1.11<-198.51.100.7", "and no answer"],
    },
}
# Rules that were recorded before the reference had received the node's zone, so that no topology hint counted; the other
# modes, which choose endpoints by the same code, were recorded after.
WITHOUT_ZONE: dict[tuple[str, str], Mapping[tuple[str, str], Outcome]] = {
    ("nftables", "topology-node-hints-elsewhere"): {
        (client, "clusterIP 10.96.8.5:80/tcp"): [f"10.244.2.22<-{source}"]
        for client, source in (
            ("endpoint", "10.244.1.11"),
            ("node", "192.0.2.1"),
            ("outside", "192.0.2.1"),
            ("pod", "10.244.1.100"),
        )
    },
}


@functools.cache
def documents(name: str) -> list[dict[str, Any]]:
    """The case's documents: first its KubeProxyConfiguration, then Services and EndpointSlices."""
    return list(yaml.safe_load_all((ORACLE / "cases" / f"{name}.yaml").read_text()))


def recorded(mode: str) -> list[str]:
    """The cases that were recorded in a mode."""
    return sorted(path.stem for path in (ORACLE / "expected" / mode).glob("*.rules"))


def endpoints(name: str) -> int:
    """How many endpoints the case has."""
    slices = (document for document in documents(name) if document["kind"] == "EndpointSlice")
    return sum(len(endpoint["addresses"]) for each in slices for endpoint in each["endpoints"])


def expected(mode: str, name: str, *, recorded_rules: bool = False) -> Outcomes:
    """Who reaches what by the reference; or by the rules it had when they were recorded."""
    outcomes: Outcomes = json.loads((ORACLE / "expected" / mode / f"{name}.json").read_text())
    corrections = [MISRECORDED] if recorded_rules else [MISRECORDED, WITHOUT_ZONE]
    for (client, front), outcome in (item for c in corrections for item in c.get((mode, name), {}).items()):
        outcomes[client][front] = outcome
    return outcomes


def rules(mode: str, name: str) -> str:
    """The rules the reference left in the kernel; those of nftables complete enough to be loaded."""
    text = (ORACLE / "expected" / mode / f"{name}.rules").read_text()
    if mode == "ipvs":
        return _without_own_service(text, name)
    return _completed(text, name) if mode == "nftables" else text


def _without_own_service(text: str, name: str) -> str:
    """Takes out what is of the cluster's own Service, 10.96.0.1, whose lines were left out of the recording.

    Where the case has no other of IPv4, rules look into a set that the recording shows empty.
    """
    services = (document["spec"] for document in documents(name) if document["kind"] == "Service")
    if any("." in ip for spec in services for ip in spec.get("clusterIPs", ())):
        return text
    return re.sub(r"^-A KUBE-SERVICES .*--match-set KUBE-CLUSTER-IP .*\n", "", text, flags=re.MULTILINE)


def _completed(text: str, name: str) -> str:
    """Puts back what the recording of nftables lacks: each line that named the cluster's own Service, 10.96.0.1.

    nft writes several elements on a line, so ClusterIPs of the case went with it, or the brace that ends a map.
    """
    services = (document for document in documents(name) if document["kind"] == "Service")
    proxied = (
        each["spec"] for each in services if PROXY_NAME_LABEL not in each["metadata"].get("labels", {})
    )
    ips = {ip for spec in proxied for ip in spec.get("clusterIPs", ()) if "." in ip}
    body = 'type ipv4_addr\n\t\tcomment "Active ClusterIPs"\n'
    elements = f"\t\telements = {{ {', '.join(sorted(ips))} }}\n" if ips else ""
    text = re.sub(
        r"(set cluster-ips \{\n\t\t).*?(?=\t\}\n)", rf"\1{body}{elements}", text, count=1, flags=re.DOTALL
    )
    return re.sub(r",\n\t\}\n", " }\n\t}\n", text)


def localhost_node_ports(name: str) -> bool:
    """Whether the reference sets route_localnet in iptables mode."""
    config = documents(name)[0]
    return not config.get("nodePortAddresses") and config.get("iptables", {}).get("localhostNodePorts", True)


def write(name: str, mode: str, folder: Path) -> tuple[Path, Path]:
    """Writes a case for a proxy.

    Returns:
        The configuration file, with the mode set, and the folder of manifests.
    """
    config, *objects = documents(name)
    return lay_out(config, objects, mode, folder)


def lay_out(
    config: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], mode: str, folder: Path
) -> tuple[Path, Path]:
    """Writes a configuration and objects for a proxy, as `write` does a case's."""
    manifests = folder / "manifests"
    manifests.mkdir(parents=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({**config, "mode": mode}))
    (manifests / "node.yaml").write_text(yaml.safe_dump_all([NODE, SERVICE_CIDR]))
    (manifests / "case.yaml").write_text(yaml.safe_dump_all(objects))
    return file, manifests
