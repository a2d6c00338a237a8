"""Services to rows: what is taken, and what is refused at which field without harm to the rest."""

import pytest

from kubeproxy.api.rows import IgnoredAnnotation, PortRow, ServiceRow
from tests.unit.api.flat import flat, ingress, row, service


class TestWhichServices:
    @pytest.mark.parametrize(
        ("spec", "labels", "ours"),
        [
            ({}, {}, True),
            ({"type": "ClusterIP"}, {"app": "x"}, True),
            ({"type": "NodePort"}, {}, True),
            ({"type": "LoadBalancer"}, {}, True),
            ({"type": "ExternalName"}, {}, False),
            ({"type": "ExternalName", "clusterIP": ""}, {}, False),
            ({"clusterIP": "None"}, {}, False),
            ({"clusterIP": "None", "clusterIPs": ["None"]}, {}, False),
            ({"clusterIP": "", "clusterIPs": ["None"]}, {}, False),
            ({}, {"service.kubernetes.io/service-proxy-name": "other"}, False),
            ({}, {"service.kubernetes.io/service-proxy-name": ""}, False),
            (
                {},
                {"service.kubernetes.io/headless": ""},
                True,
            ),  # a label of its EndpointSlices, not of a Service
        ],
    )
    def test_ours(self, spec, labels, ours):
        found, complaints = service(spec, labels=labels)
        assert (found is not None) == ours
        assert not complaints

    @pytest.mark.parametrize(
        "spec", [{"clusterIP": ""}, {"clusterIP": None}, {"clusterIP": "", "clusterIPs": []}]
    )
    def test_without_address_it_is_skipped(self, spec):
        found, complaints = service(spec)
        assert found is None
        assert list(complaints) == ["spec.clusterIP"]


class TestService:
    def test_every_field(self):
        found, complaints = service(
            {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10", "FD00::10"],
                "externalIPs": ["192.0.2.10", "2001:db8::10", "192.0.2.10"],
                "ports": [
                    {"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080, "targetPort": "web"},
                    {"name": "dns", "protocol": "UDP", "port": 53},
                    {"name": "sig", "protocol": "SCTP", "port": 80},
                ],
                "loadBalancerSourceRanges": [" 203.0.113.000/025 ", "2001:db8:1::/48"],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}},
                "externalTrafficPolicy": "Local",
                "internalTrafficPolicy": "Local",
                "healthCheckNodePort": 32000,
            },
            ingress({"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "2001:db8:5::1"}),
        )
        assert not complaints
        assert found == ServiceRow(
            namespace="shop",
            name="web",
            cluster_ips=("10.96.0.10", "fd00::10"),
            ports=(
                PortRow("http", "TCP", 80, 30080),
                PortRow("dns", "UDP", 53),
                PortRow("sig", "SCTP", 80),
            ),
            external_ips=("192.0.2.10", "2001:db8::10"),
            load_balancer_ips=("198.51.100.1", "2001:db8:5::1"),
            source_ranges=("203.0.113.0/25", "2001:db8:1::/48"),
            affinity=100,
            internal_local=True,
            external_local=True,
            health_check_port=32000,
        )

    def test_the_least(self):
        assert service({}) == (row(), {})

    def test_no_namespace_is_the_default(self):
        found, _ = flat("Service", {"metadata": {"name": "web"}, "spec": {"clusterIP": "10.0.0.1"}})
        assert found.namespace == "default"

    def test_nulls(self):
        spec = dict.fromkeys(
            [
                "ports",
                "clusterIPs",
                "ipFamilies",
                "externalIPs",
                "loadBalancerSourceRanges",
                "sessionAffinityConfig",
            ]
        )
        assert service(spec, {"loadBalancer": {"ingress": None}}) == (row(), {})

    @pytest.mark.parametrize(
        ("spec", "cluster_ips", "refused"),
        [
            ({"clusterIP": "172.30.0.041"}, ("172.30.0.41",), []),
            ({"clusterIPs": ["10.96.0.11", "fd00::10"]}, ("10.96.0.11", "fd00::10"), []),
            ({"clusterIPs": ["fd00::10", "10.96.0.11"]}, ("fd00::10", "10.96.0.11"), []),
            ({"clusterIPs": ["10.96.0.300", "fd00::10"]}, ("fd00::10",), ["spec.clusterIPs[0]"]),
            ({"clusterIPs": ["10.96.0.11", ""]}, ("10.96.0.11",), ["spec.clusterIPs[1]"]),
            (
                {"clusterIPs": ["10.96.0.11", "10.96.0.12", "fd00::1"]},
                ("10.96.0.11", "fd00::1"),
                ["spec.clusterIPs"],
            ),
            ({"clusterIPs": ["fd00::1", "fd00::2"]}, ("fd00::1",), ["spec.clusterIPs"]),
            ({"clusterIPs": ["10.96.0.11", "::ffff:10.96.0.11"]}, ("10.96.0.11",), []),
            ({"clusterIP": "auto"}, (), ["spec.clusterIP"]),
            ({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.11"]}, ("10.96.0.11",), ["spec.clusterIP"]),
            ({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}, ("10.96.0.9",), []),
            ({"clusterIP": "x\n", "clusterIPs": ["fd00::9"]}, ("fd00::9",), ["spec.clusterIP"]),
        ],
    )
    def test_cluster_ips(self, spec, cluster_ips, refused):
        found, complaints = service({"clusterIP": None, **spec})
        assert found == row(cluster_ips=cluster_ips)
        assert list(complaints) == refused

    @pytest.mark.parametrize(
        ("spec", "affinity", "refused"),
        [
            ({"sessionAffinity": "None"}, 0, []),
            ({"sessionAffinity": ""}, 0, []),
            ({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, 0, []),
            ({"sessionAffinity": "ClientIP"}, 10800, []),
            ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {}}, 10800, []),
            ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}, 10800, []),
            ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}, 1, []),
            ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}, 86400, []),
            *(
                (
                    {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}},
                    0,
                    ["spec.sessionAffinityConfig.clientIP.timeoutSeconds"],
                )
                for seconds in (0, -1, 86401, 2**31 - 1)
            ),
            ({"sessionAffinity": "clientIP"}, 0, ["spec.sessionAffinity"]),
        ],
    )  # fmt: skip
    def test_affinity(self, spec, affinity, refused):
        found, complaints = service(spec)
        assert found == row(affinity=affinity)
        assert list(complaints) == refused

    @pytest.mark.parametrize("given", [None, "", "Cluster", "Local", "local", "Global"])
    def test_traffic_policies(self, given):
        found, complaints = service({"internalTrafficPolicy": given, "externalTrafficPolicy": given})
        assert found == row(internal_local=given == "Local", external_local=given == "Local")
        unknown = given in {"local", "Global"}
        assert list(complaints) == ["spec.externalTrafficPolicy", "spec.internalTrafficPolicy"] * unknown

    @pytest.mark.parametrize(
        ("type_", "policy", "port", "expected", "refused"),
        [
            ("LoadBalancer", "Local", 32000, 32000, []),
            ("LoadBalancer", "Local", 0, 0, []),
            ("LoadBalancer", "Cluster", 32000, 0, []),
            ("NodePort", "Local", 32000, 0, []),
            ("ClusterIP", "Local", 32000, 0, []),
            ("LoadBalancer", "Local", 65536, 0, ["spec.healthCheckNodePort"]),
            ("LoadBalancer", "Local", -1, 0, ["spec.healthCheckNodePort"]),
        ],
    )
    def test_health_check_port(self, type_, policy, port, expected, refused):
        found, complaints = service(
            {"type": type_, "externalTrafficPolicy": policy, "healthCheckNodePort": port}
        )
        assert found.health_check_port == expected
        assert list(complaints) == refused

    @pytest.mark.parametrize("unset", ["", None])
    def test_an_empty_text_is_what_an_api_server_would_set(self, unset):
        spec = dict.fromkeys(
            ["type", "sessionAffinity", "externalTrafficPolicy", "internalTrafficPolicy", "ipFamilyPolicy"],
            unset,
        )
        assert service(spec | {"ports": [{"port": 80, "protocol": unset, "name": unset}]}) == (
            row(ports=(PortRow("", "TCP", 80),)),
            {},
        )

    def test_an_unknown_type_is_told(self):
        found, complaints = service({"type": "Loadbalancer"})
        assert found == row()
        assert list(complaints) == ["spec.type"]

    def test_bad_external_ips_harm_no_other(self):
        found, complaints = service(
            {"externalIPs": ["", "192.168.099.022", "1.2.3", "host", "::1%lo", "fd00::1"]}
        )
        assert found == row(external_ips=("192.168.99.22", "fd00::1"))
        assert list(complaints) == [f"spec.externalIPs[{i}]" for i in (0, 2, 3, 4)]


class TestPorts:
    @pytest.mark.parametrize(
        ("ports", "rows", "refused"),
        [
            ([{"port": 80}], [PortRow("", "TCP", 80)], []),
            ([{"port": 1}, {"port": 65535, "name": "b"}], [PortRow("", "TCP", 1), PortRow("b", "TCP", 65535)], []),
            (
                [{"port": 0}, {"port": 65536}, {"port": -80}, {"port": 2**31 - 1}, {"port": 80}],
                [PortRow("", "TCP", 80)],
                [f"spec.ports[{i}].port" for i in range(4)],
            ),
            (
                [{"port": 80, "protocol": p} for p in ("tcp", "ICMP", "TCP ", "UDP", "")],
                [PortRow("", "UDP", 80), PortRow("", "TCP", 80)],
                [f"spec.ports[{i}].protocol" for i in range(3)],
            ),
            (
                [{"port": 80, "nodePort": -1}, {"port": 81, "nodePort": 65536, "name": "b"}],
                [PortRow("", "TCP", 80), PortRow("b", "TCP", 81)],
                ["spec.ports[0].nodePort", "spec.ports[1].nodePort"],
            ),
            # One number or one name twice with one protocol; another protocol is another port.
            (
                [{"port": 53, "name": "a"}, {"port": 53, "name": "b"}, {"port": 54, "name": "a"}, {"port": 55, "name": "c"}],
                [PortRow("a", "TCP", 53), PortRow("c", "TCP", 55)],
                ["spec.ports[1]", "spec.ports[2]"],
            ),
            (
                [{"port": 53, "name": "a", "protocol": p} for p in ("TCP", "UDP", "SCTP", "UDP")],
                [PortRow("a", "TCP", 53), PortRow("a", "UDP", 53), PortRow("a", "SCTP", 53)],
                ["spec.ports[3]"],
            ),
            (
                [
                    {"port": 1, "name": "a", "nodePort": 30000},
                    {"port": 2, "name": "b", "nodePort": 30000},
                    {"port": 1, "name": "a", "nodePort": 30000, "protocol": "UDP"},
                ],
                [PortRow("a", "TCP", 1, 30000), PortRow("b", "TCP", 2), PortRow("a", "UDP", 1, 30000)],
                ["spec.ports[1].nodePort"],
            ),
            # A port that was refused takes nobody's place.
            ([{"port": 80, "name": "a", "protocol": "x"}, {"port": 80, "name": "a"}], [PortRow("a", "TCP", 80)],
             ["spec.ports[0].protocol"]),
        ],
    )  # fmt: skip
    def test_ports(self, ports, rows, refused):
        found, complaints = service({"ports": ports})
        assert found == row(ports=tuple(rows))
        assert list(complaints) == refused

    @pytest.mark.parametrize("name", ["a", "http", "a-b", "0", "web.1", "A", "a" * 63])
    def test_names(self, name):
        assert service({"ports": [{"port": 80, "name": name}]}) == (
            row(ports=(PortRow(name, "TCP", 80),)),
            {},
        )

    @pytest.mark.parametrize(
        "name",
        [
            " ", "a b", "a\n", "a\n-A KUBE-SERVICES -j ACCEPT", 'a" -j ACCEPT', "a'b", "a;b", "a/b", "a:b", "a\\b", "a\0", "\x1b[2J",
            "-a", "a-", ".a", "a.", "é", "٣", "a" * 64, "*", "%s", "{}", "$(x)", "`x`",
        ],
    )  # fmt: skip
    def test_names_that_could_do_harm_in_a_rule(self, name):
        found, complaints = service({"ports": [{"port": 80, "name": name}, {"port": 81}]})
        assert found == row(ports=(PortRow("", "TCP", 81),))
        assert list(complaints) == ["spec.ports[0].name"]
        assert complaints["spec.ports[0].name"].isprintable()

    def test_ten_thousand(self):
        ports = [{"port": i + 1, "name": f"p{i}"} for i in range(10_000)]
        found, complaints = service({"ports": [*ports, *ports]})
        assert found == row(ports=tuple(PortRow(f"p{i}", "TCP", i + 1) for i in range(10_000)))
        assert len(complaints) == 10_000


class TestLoadBalancer:
    def test_addresses(self):
        entries = [
            {"ip": "198.51.100.1"},
            {"hostname": "lb.example.com"},
            {"ip": "198.51.100.2", "ipMode": "Proxy"},
            {"ip": "198.51.100.3", "ipMode": "VIP"},
            {"ip": "2001:db8::4", "ipMode": None},
            {"ip": "198.51.100.1", "ipMode": "VIP"},
            {},
            {"ip": "lb.example.com"},
            {"ip": "198.51.100.5", "ipMode": "vip"},
            {"ip": "198.51.100.6", "ipMode": ""},
            {"ip": "198.51.100.007"},
        ]
        found, complaints = service({}, ingress(*entries))
        assert found == row(load_balancer_ips=("198.51.100.1", "198.51.100.3", "2001:db8::4", "198.51.100.7"))
        assert list(complaints) == [
            "status.loadBalancer.ingress[7].ip",
            "status.loadBalancer.ingress[8].ipMode",
            "status.loadBalancer.ingress[9].ipMode",
        ]

    @pytest.mark.parametrize("status", [None, {}, {"loadBalancer": None}, {"loadBalancer": {}}, ingress()])
    def test_none(self, status):
        assert service({}, status) == (row(), {})

    @pytest.mark.parametrize(
        ("given", "ranges"),
        [
            ([], ()),
            (["203.0.113.0/25"], ("203.0.113.0/25",)),
            ([" 203.0.113.0/25\t", "203.0.113.000/025"], ("203.0.113.0/25",)),
            (["203.0.113.77/25"], ("203.0.113.0/25",)),
            # A range of everything lifts the limit of its family alone.
            (["203.0.113.0/25", "0.0.0.0/0"], ()),
            (["0.0.0.0/0", "2001:db8::/32"], ("2001:db8::/32",)),
            (["203.0.113.0/25", "::/0"], ("203.0.113.0/25",)),
            (["0.0.0.0/0", "::/0"], ()),
            # Ranges of one family do not limit the other.
            (["2001:db8::/32"], ("2001:db8::/32",)),
        ],
    )
    def test_ranges(self, given, ranges):
        found, complaints = service({"loadBalancerSourceRanges": given}, ingress({"ip": "198.51.100.1"}))
        assert found == row(load_balancer_ips=("198.51.100.1",), source_ranges=ranges)
        assert not complaints

    @pytest.mark.parametrize(
        ("given", "served", "ranges", "refused"),
        [
            # Wrong ranges must not open an address to all.
            (["203.0.113.0"], (), (), [0]),
            (["0.0.0.0/33", "", "all", "10.0.0.0/8/8"], (), (), [0, 1, 2, 3]),
            (["203.0.113.0/40", "2001:db8:1::/48"], ("2001:db8::1",), ("2001:db8:1::/48",), [0]),
            (["203.0.113.0/25", "2001:db8:1::/129"], ("198.51.100.1",), ("203.0.113.0/25",), [1]),
            (["nonsense", "0.0.0.0/0"], ("198.51.100.1",), (), [0]),
            # One range is wrong, another limits: no harm.
            (["203.0.113.0/25", "x", "2001:db8:1::/48"], ("198.51.100.1", "2001:db8::1"),
             ("203.0.113.0/25", "2001:db8:1::/48"), [1]),
        ],
    )  # fmt: skip
    def test_wrong_ranges(self, given, served, ranges, refused):
        spec = {"loadBalancerSourceRanges": given, "ports": [{"port": 80, "nodePort": 30080}]}
        found, complaints = service(spec, ingress({"ip": "198.51.100.1"}, {"ip": "2001:db8::1"}))
        assert found == row(
            ports=(PortRow("", "TCP", 80, 30080),), load_balancer_ips=served, source_ranges=ranges
        )
        fields = [f"spec.loadBalancerSourceRanges[{i}]" for i in refused]
        assert list(complaints) == [*fields, *["spec.loadBalancerSourceRanges"] * (len(served) < 2)]

    def test_wrong_ranges_without_addresses(self):
        found, complaints = service({"loadBalancerSourceRanges": ["x"]})
        assert found == row()
        assert list(complaints) == ["spec.loadBalancerSourceRanges[0]"]


class TestAtConnect:
    ANNOTATION = "kube-proxy/at-connect"

    @pytest.mark.parametrize(
        ("annotations", "wanted"),
        [(None, True), ({}, True), ({ANNOTATION: "on"}, True), ({ANNOTATION: "off"}, False)],
    )
    def test_the_annotation(self, annotations, wanted):
        found, complaints = service({}, annotations=annotations)
        assert found.at_connect is wanted
        assert not complaints

    def test_another_value_is_refused_and_the_service_stands(self):
        found, complaints = service({}, annotations={self.ANNOTATION: "no"})
        assert found == row(ignored=(IgnoredAnnotation(self.ANNOTATION, "'no' is not on or off"),))
        assert not complaints


class TestProxyProtocol:
    ANNOTATION = "kube-proxy/proxy-protocol"

    @pytest.mark.parametrize(
        ("annotations", "wanted"), [(None, False), ({}, False), ({ANNOTATION: "v2"}, True)]
    )
    def test_the_annotation(self, annotations, wanted):
        found, complaints = service({}, annotations=annotations)
        assert found.proxy_protocol is wanted
        assert not complaints

    @pytest.mark.parametrize("version", ["v1", "", "true"])
    def test_another_version_is_refused_and_the_service_stands(self, version):
        found, complaints = service({}, annotations={self.ANNOTATION: version})
        assert found == row(ignored=(IgnoredAnnotation(self.ANNOTATION, f"{version!r} is not v2"),))
        assert not complaints


@pytest.mark.parametrize(
    ("field", "annotation", "value", "default"),
    [
        ("ends_connections", "kube-proxy/removed-endpoints", "end-connections", "keep-connections"),
        ("skips_silent", "kube-proxy/silent-endpoints", "skip", "use"),
    ],
)
def test_annotations_that_switch_something_on(field, annotation, value, default):
    for text, wanted in ((None, False), (value, True), (default, False)):
        found, complaints = service({}, annotations={annotation: text} if text else {})
        assert found == row(**{field: wanted})
        assert not complaints
    for wrong in ("", "true", value.upper(), f" {value}"):
        found, _ = service({}, annotations={annotation: wrong})
        assert found == row(
            ignored=(IgnoredAnnotation(annotation, f"{wrong!r} is not {value} or {default}"),)
        )
