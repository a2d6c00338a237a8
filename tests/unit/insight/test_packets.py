"""Packets as people name them."""

import asyncio
import json

import msgspec
import pytest
import yaml

from kubeproxy.answers.packets import PacketError, packet, pod_path
from kubeproxy.config.commandline import parse
from kubeproxy.config.load import load
from kubeproxy.insight.origin import Origin
from kubeproxy.insight.snapshot import take
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.verdict import Packet

POD = "/api/v1/namespaces/shop/pods/web-0"
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "n1"},
    "status": {
        "addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        ]
    },
}


def service(name, ips, ports, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": ips[0], "clusterIPs": ips, "ports": ports, **spec},
    }


@pytest.fixture
def machine():
    return FakeMachine(["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"])


@pytest.fixture
def snapshot(machine, tmp_path):
    objects = [
        NODE,
        service("api", ["10.96.0.1", "fd00::1"], [{"name": "http", "port": 80}]),
        service(
            "dns",
            ["10.96.0.2"],
            [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}],
        ),
        service("none", ["None"], [{"port": 80}]),
    ]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(objects))
    options = load(parse([f"--manifests={tmp_path}", "--hostname-override=n1"], "linux"), "linux")
    taken = asyncio.run(take(Origin(options), machine))
    pod = json.dumps(
        {"status": {"podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00:1::5"}]}}
    )
    return msgspec.structs.replace(taken, objects={POD: pod.encode()})


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        ("10.244.1.2", "10.96.0.1:80", Packet("10.244.1.2", "10.96.0.1", 80, "TCP", "eth0")),
        ("10.244.1.2", "10.96.0.2:53/udp", Packet("10.244.1.2", "10.96.0.2", 53, "UDP", "eth0")),
        ("10.244.1.2", "api.shop", Packet("10.244.1.2", "10.96.0.1", 80, "TCP", "eth0")),
        ("10.244.1.2", "api.shop.svc.cluster.local:http", Packet("10.244.1.2", "10.96.0.1", 80, "TCP", "eth0")),
        ("10.244.1.2", "shop/api:http/tcp", Packet("10.244.1.2", "10.96.0.1", 80, "TCP", "eth0")),
        ("10.244.1.2", "shop/api", Packet("10.244.1.2", "10.96.0.1", 80, "TCP", "eth0")),
        ("10.244.1.2", "dns.shop:dns", Packet("10.244.1.2", "10.96.0.2", 53, "UDP", "eth0")),
        ("10.244.1.2", "dns.shop:53/tcp", Packet("10.244.1.2", "10.96.0.2", 53, "TCP", "eth0")),
        ("2001:db8::9", "api.shop:80", Packet("2001:db8::9", "fd00::1", 80, "TCP", "eth0")),
        ("2001:DB8::9", "[fd00::1]:80", Packet("2001:db8::9", "fd00::1", 80, "TCP", "eth0")),
        ("203.0.113.7", ":30080", Packet("203.0.113.7", "192.0.2.1", 30080, "TCP", "eth0")),
        ("node", "10.96.0.1:80", Packet("192.0.2.1", "10.96.0.1", 80)),
        ("node", "127.0.0.1:30080", Packet("127.0.0.1", "127.0.0.1", 30080)),
        ("192.0.2.1", "10.96.0.1:80", Packet("192.0.2.1", "10.96.0.1", 80)),
        ("pod/shop/web-0", "api.shop", Packet("10.244.1.5", "10.96.0.1", 80, "TCP", "eth0")),
        ("pod/shop/web-0", "[fd00::1]:80", Packet("fd00:1::5", "fd00::1", 80, "TCP", "eth0")),
    ],
)  # fmt: skip
def test_what_is_meant(snapshot, machine, source, destination, expected):
    assert packet(snapshot, machine, source, destination) == expected


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ("web", "10.96.0.1:80", "--from web: a source is an address, `node`, or pod/NAMESPACE/NAME"),
        ("10.244.1.2", "10.96.0.1", "an address needs a port"),
        ("10.244.1.2", "10.96.0.1:0", "an address needs a port"),
        ("10.244.1.2", "10.96.0.1:65536", "an address needs a port"),
        ("10.244.1.2", "fd00::1", "an address needs a port"),
        ("10.244.1.2", ":http", "a node port is written as :PORT"),
        ("10.244.1.2", "10.96.0.1:80/icmp", "'icmp' is not a protocol; use tcp, udp or sctp"),
        ("10.244.1.2", "api", "a destination is ADDRESS:PORT"),
        ("10.244.1.2", "apu.shop", r"there is no Service shop/apu; did you mean shop/api\?"),
        ("10.244.1.2", "API.SHOP", r"there is no Service SHOP/API; did you mean shop/api\?"),
        ("10.244.1.2", "api.default", r"there is no Service default/api; did you mean shop/api\?"),
        ("10.244.1.2", "api.shop:81", r"the Service has no such port; it has http \(80/tcp\)"),
        ("10.244.1.2", "api.shop:80/udp", r"the Service has no such port; it has http \(80/tcp\)"),
        ("10.244.1.2", "dns.shop", r"several ports, add one of them: dns \(53/udp\), dns-tcp \(53/tcp\)"),
        ("10.244.1.2", "api", r"--to api: did you mean api.shop\?"),
        ("10.244.1.2", "10.96.0.1:80:80", "a destination is ADDRESS:PORT"),
        ("10.244.1.2", "10.96.0:80", "a destination is ADDRESS:PORT"),
        ("10.244.1.2", "http://api.shop", "'api.shop' is not a protocol"),
        ("10.244.1.2", ":", "--to :: a destination is ADDRESS:PORT"),
        ("0.0.0.0", "api.shop", "a source is an address"),
        ("10.244.1.2", "none.shop", "not served by kube-proxy: it is headless"),
        ("10.244.1.2", "[fd00::1]:80", "--from 10.244.1.2 is IPv4, --to .* is IPv6"),
        ("pod/other/web-0", "api.shop", "it was not read; use its address instead"),
        ("", "api.shop", "a source is an address"),
        ("10.244.1.2", "", "--to '': a destination is ADDRESS:PORT"),
    ],
)
def test_what_cannot_be_meant(snapshot, machine, source, destination, message):
    with pytest.raises(PacketError, match=message):
        packet(snapshot, machine, source, destination)


def test_an_interface_that_does_not_exist(snapshot, machine):
    with pytest.raises(PacketError, match="--interface eth9: this host has no such interface"):
        packet(snapshot, machine, "10.244.1.2", "api.shop", "eth9")


def test_a_pod_is_named_with_its_namespace():
    assert pod_path("pod/shop/web-0") == POD
    assert pod_path("10.0.0.1") == ""
    for wrong in ("pod/web-0", "pod//web-0", "pod/shop/", "pod/shop/web/0"):
        with pytest.raises(PacketError, match="pod/NAMESPACE/NAME"):
            pod_path(wrong)
