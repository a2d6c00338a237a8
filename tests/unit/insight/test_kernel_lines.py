"""What lines of the system's own tools are about: the object that holds them, their front, Service and endpoint."""

import pytest

from kubeproxy.insight.kernel_lines import LineParts, parts

ENDPOINT = "add element ip kube-proxy endpoints-2 { 10.96.0.10 . tcp . 80 . 0 : 10.244.9.9 . 8080 }"
SERVICE_CHAIN = "service-ABCDEFGH-default/web/tcp/http"


@pytest.mark.parametrize(
    ("line", "holder", "front"),
    [
        (ENDPOINT, "map endpoints-2 of table ip kube-proxy", ("10.96.0.10", "TCP", 80)),
        ("add element ip6 kube-proxy reject-services { fd00::1 . udp . 53 }",
         "set reject-services of table ip6 kube-proxy", ("fd00::1", "UDP", 53)),
        ("add element ip kube-proxy service-nodeports { tcp . 30080 : goto x }",
         "map service-nodeports of table ip kube-proxy", ("", "TCP", 30080)),
        ("add element ip kube-proxy cluster-ips { 10.96.0.10 }",
         "set cluster-ips of table ip kube-proxy", ("10.96.0.10", "TCP", 0)),
        ("-t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A",
         "chain KUBE-SERVICES of table nat", ("10.96.0.10", "TCP", 80)),
        ("-t nat -A KUBE-NODEPORTS -p udp -m udp --dport 30053 -j KUBE-EXT-A",
         "chain KUBE-NODEPORTS of table nat", ("", "UDP", 30053)),
        ("-t nat -A KUBE-SVC-A -p udp -m udp --dport 30053 -j RETURN", "chain KUBE-SVC-A of table nat", None),
        ("-A -u [fd00::1]:53 -s rr", "virtual server [fd00::1]:53/UDP", ("fd00::1", "UDP", 53)),
        ("-a -t 10.96.0.10:80 -r 10.244.1.11:8080 -m -w 1",
         "virtual server 10.96.0.10:80/TCP", ("10.96.0.10", "TCP", 80)),
        ("add KUBE-CLUSTER-IP 10.96.0.10,sctp:80", "set KUBE-CLUSTER-IP", ("10.96.0.10", "SCTP", 80)),
        ("add KUBE-NODE-PORT-TCP 30080", "set KUBE-NODE-PORT-TCP", ("", "TCP", 30080)),
        ("create KUBE-CLUSTER-IP hash:ip,port", "set KUBE-CLUSTER-IP", None),
        ("ip address add 10.96.0.10/32 dev kube-ipvs0", "interface kube-ipvs0", ("10.96.0.10", "TCP", 0)),
        ('tcp LISTEN 192.0.2.1:41000 comment "shop/api:http" -> 10.0.0.1:80', "socket tcp 192.0.2.1:41000", None),
        ("what no tool prints", "", None),
    ],
)  # fmt: skip
def test_what_holds_a_line_and_its_front(line: str, holder: str, front: object) -> None:
    assert (parts(line).holder, parts(line).front) == (holder, front)


@pytest.mark.parametrize(
    ("line", "service"),
    [
        (f"add rule ip kube-proxy {SERVICE_CHAIN} drop", "default/web"),
        (f"add element ip kube-proxy service-ips {{ 10.96.0.10 . tcp . 80 : goto {SERVICE_CHAIN} }}", "default/web"),
        ('-t nat -A KUBE-SEP-A -m comment --comment "shop/api:http" -j KUBE-MARK-MASQ', "shop/api"),
        ("-t nat -A KUBE-SEP-A -m comment --comment shop/api -j KUBE-MARK-MASQ", "shop/api"),
        ('-t nat -A KUBE-EXT-A -m comment --comment "masquerade traffic for shop/api" -j X', ""),
        ('tcp LISTEN 192.0.2.1:41000 comment "shop/api:http" -> 10.0.0.1:80', "shop/api"),
        (ENDPOINT, ""),
    ],
)  # fmt: skip
def test_the_service_that_a_line_names(line: str, service: str) -> None:
    assert parts(line).service == service


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        (ENDPOINT, "10.244.9.9:8080"),
        ("add element ip6 kube-proxy endpoints-1 { fd00::1 . udp . 53 . 0 : fd00:1::5 . 5353 }", "[fd00:1::5]:5353"),
        ("add element ip kube-proxy hairpins { 10.0.0.1 . 10.0.0.1 . tcp . 8080 }", "10.0.0.1:8080"),
        ("-t nat -A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:8080", "10.0.0.1:8080"),
        ("-t nat -A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination [fd00:1::5]:80", "[fd00:1::5]:80"),
        ("-a -t 10.96.0.10:80 -r 10.0.0.1:8080 -m -w 1", "10.0.0.1:8080"),
        ("add KUBE-LOOP-BACK 10.0.0.1,tcp:8080,10.0.0.1", "10.0.0.1:8080"),
        ("-A -t 10.96.0.10:80 -s rr", ""),
    ],
)  # fmt: skip
def test_the_endpoint_that_a_line_leads_to(line: str, endpoint: str) -> None:
    assert parts(line).endpoint == endpoint


def test_versions_of_one_thing_have_one_key() -> None:
    other = ENDPOINT.replace("10.244.9.9", "10.244.1.11")
    assert parts(ENDPOINT).key == parts(other).key
    assert parts(ENDPOINT).key != parts(ENDPOINT.replace(". 0 :", ". 1 :")).key
    added, deleted = (f"-t nat -{verb} KUBE-SERVICES -j RETURN" for verb in "AD")
    assert parts(added).key == parts(deleted).key
    assert isinstance(parts(added), LineParts)


@pytest.mark.parametrize(
    ("line", "holder", "front", "endpoint"),
    [
        ("New-HnsLoadBalancer -Vip 10.96.0.10 -Protocol tcp -ExternalPort 80 -InternalPort 8080 -DSR",
         "load balancer 10.96.0.10:80/TCP", ("10.96.0.10", "TCP", 80), ""),
        ("New-HnsLoadBalancer -IPv6 -Protocol udp -ExternalPort 30053 -Endpoint [fd00::1]:53",
         "load balancer of node port 30053/UDP", ("", "UDP", 30053), "[fd00::1]:53"),
        ("front 10.96.0.10:80 TCP -> 10.244.1.11:8080", "maps of ebpf mode", ("10.96.0.10", "TCP", 80), ""),
        ("front node port 30080 TCP -> nftables", "maps of ebpf mode", ("", "TCP", 30080), ""),
    ],
)  # fmt: skip
def test_lines_of_hns_and_of_ebpf_mode(line: str, holder: str, front: object, endpoint: str) -> None:
    found = parts(line)
    assert (found.holder, found.front, found.endpoint) == (holder, front, endpoint)
