"""EndpointSlices and Endpoints to rows: what is taken, and what is refused at which field without harm to the rest."""

import pytest

from kubeproxy.api.rows import EndpointPortRow, EndpointRow, SliceRow
from tests.unit.api.flat import ALL, endpoint_slice, flat


class TestEndpointSlice:
    def test_every_field(self):
        found, complaints = endpoint_slice(
            {
                "addressType": "IPv4",
                "endpoints": [
                    {
                        "addresses": ["10.180.00.001", "10.180.0.99"],
                        "conditions": {"ready": True, "serving": True, "terminating": False},
                        "nodeName": "node-1",
                        "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "node-1"}]},
                    },
                    {"addresses": ["10.180.0.2"]},
                ],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "", "port": 53, "protocol": "UDP"}],
            }
        )  # fmt: skip
        assert not complaints
        assert found == SliceRow(
            "shop",
            "web",
            "IPv4",
            (EndpointPortRow("http", "TCP", 8080), EndpointPortRow("", "UDP", 53)),
            (
                EndpointRow("10.180.0.1", ALL, "node-1", ("a", "b"), ("node-1",)),
                EndpointRow("10.180.0.2", ALL),
            ),
        )

    @pytest.mark.parametrize("spec", [{}, {"endpoints": None, "ports": None}, {"endpoints": [], "ports": []}])
    def test_empty(self, spec):
        assert endpoint_slice(spec) == (SliceRow("shop", "web", "IPv4", (), ()), {})

    @pytest.mark.parametrize(
        ("labels", "address_type"),
        [
            (None, "IPv4"),
            ({}, "IPv4"),
            ({"app": "web"}, "IPv4"),
            ({"kubernetes.io/service-name": ""}, "IPv4"),
            ({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}, "IPv4"),
            ({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "x"}, "IPv6"),
            ({"kubernetes.io/service-name": "web"}, "FQDN"),
        ],
    )
    def test_not_ours(self, labels, address_type):
        spec = {"addressType": address_type, "endpoints": [{"addresses": ["example.com"]}]}
        assert endpoint_slice(spec, labels=labels) == (None, {})

    @pytest.mark.parametrize("address_type", ["", "ipv4", "IPv5", "\n" * 1000])
    def test_unknown_address_type(self, address_type):
        with pytest.raises(ValueError, match=r"^addressType: ") as caught:
            endpoint_slice({"addressType": address_type})
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize(
        ("ready", "serving", "terminating", "conditions"),
        [
            (None, None, None, 3),
            (True, True, False, 3),
            (False, None, None, 2),
            (False, False, None, 0),
            (None, False, None, 1),
            (False, True, True, 6),
            (False, False, True, 4),
            (True, True, True, 7),
            (None, None, True, 7),
        ],
    )
    def test_conditions(self, ready, serving, terminating, conditions):
        given = {"ready": ready, "serving": serving, "terminating": terminating}
        found, _ = endpoint_slice({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": given}]})
        assert found.endpoints[0].conditions == conditions

    @pytest.mark.parametrize(
        ("address_type", "addresses"),
        [
            ("IPv4", ["fd00::1"]),
            ("IPv6", ["10.0.0.1"]),
            ("IPv6", ["::ffff:10.0.0.1"]),
            ("IPv4", []),
            ("IPv4", None),
            ("IPv4", [""]),
            ("IPv4", ["10.0.0.256", "10.0.0.1"]),
            ("IPv4", ["pod.example.com"]),
            ("IPv6", ["fe80::1%eth0"]),
            ("IPv4", ["10.0.0.1\n"]),
            ("IPv4", ["1" * 100_000]),
        ],
        ids=range(11),
    )
    def test_a_bad_endpoint_harms_no_other(self, address_type, addresses):
        good = {"IPv4": "10.0.0.9", "IPv6": "fd00::9"}[address_type]
        endpoints = [{"addresses": [good], "nodeName": "a"}, {"addresses": addresses}, {"addresses": [good]}]
        found, complaints = endpoint_slice({"addressType": address_type, "endpoints": endpoints})
        assert found.endpoints == (EndpointRow(good, ALL, "a"), EndpointRow(good, ALL))
        assert [field.split(".")[0] for field in complaints] == ["endpoints[1]"]
        assert all(len(message) < 200 and message.isprintable() for message in complaints.values())

    @pytest.mark.parametrize(
        ("port", "rows", "refused"),
        [
            ({"name": "a", "port": 80}, [EndpointPortRow("a", "TCP", 80)], []),
            ({"name": "a", "port": 80, "protocol": "SCTP"}, [EndpointPortRow("a", "SCTP", 80)], []),
            ({"name": "", "port": 80, "protocol": ""}, [EndpointPortRow("", "TCP", 80)], []),
            ({"port": 80}, [EndpointPortRow("", "TCP", 80)], []),
            ({"name": None, "port": 80, "protocol": None}, [EndpointPortRow("", "TCP", 80)], []),
            ({"port": 80, "protocol": "UDP"}, [EndpointPortRow("", "UDP", 80)], []),
            ({"name": "a"}, [], ["ports[0].port"]),
            ({"name": "a", "port": None}, [], ["ports[0].port"]),
            ({"name": "a", "port": 0}, [], ["ports[0].port"]),
            ({"name": "a", "port": -1}, [], ["ports[0].port"]),
            ({"name": "a", "port": 65536}, [], ["ports[0].port"]),
            ({"name": "a", "port": 80, "protocol": "tcp"}, [], ["ports[0].protocol"]),
        ],
    )
    def test_ports(self, port, rows, refused):
        found, complaints = endpoint_slice({"ports": [port, {"name": "z", "port": 9}]})
        assert found.ports == (*rows, EndpointPortRow("z", "TCP", 9))
        assert list(complaints) == refused

    def test_hints_without_a_name_are_none(self):
        hints = {"forZones": [{"name": ""}, {}], "forNodes": [{}, {"name": "n"}]}
        found, _ = endpoint_slice({"endpoints": [{"addresses": ["10.0.0.1"], "hints": hints}]})
        assert found.endpoints == (EndpointRow("10.0.0.1", ALL, node_hints=("n",)),)

    def test_ten_thousand_bad_endpoints_and_ports(self):
        spec = {
            "endpoints": [{"addresses": ["x"]}, {"addresses": ["10.0.0.1"]}] * 5000,
            "ports": [{"name": "a", "port": -1}, {"name": "a", "port": 80}] * 5000,
        }
        found, complaints = endpoint_slice(spec)
        assert (len(found.endpoints), len(found.ports), len(complaints)) == (5000, 5000, 10_000)


class TestEndpoints:
    def endpoints(self, subsets, **metadata):
        return flat(
            "Endpoints", {"metadata": {"name": "web", "namespace": "shop", **metadata}, "subsets": subsets}
        )

    def test_every_field(self):
        found, complaints = self.endpoints(
            [
                {
                    "addresses": [{"ip": "10.0.0.1", "nodeName": "n1"}, {"ip": "fd00::1"}, {"ip": "10.0.0.002"}],
                    "notReadyAddresses": [{"ip": "10.0.0.3"}, {"ip": "fd00::3", "nodeName": "n1"}],
                    "ports": [{"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
                },
                {"notReadyAddresses": [{"ip": "10.0.0.4"}], "ports": [{"name": "late", "port": 1}]},
                {"addresses": [{"ip": "10.0.0.5"}]},
            ]
        )  # fmt: skip
        assert not complaints
        ports = (EndpointPortRow("", "TCP", 80), EndpointPortRow("dns", "UDP", 53))
        assert found == (
            SliceRow("shop", "web", "IPv4", ports, (
                EndpointRow("10.0.0.1", ALL, "n1"), EndpointRow("10.0.0.2", ALL), EndpointRow("10.0.0.3", 0)
            )),
            SliceRow("shop", "web", "IPv6", ports, (EndpointRow("fd00::1", ALL), EndpointRow("fd00::3", 0, "n1"))),
            SliceRow("shop", "web", "IPv4", (EndpointPortRow("late", "TCP", 1),), (EndpointRow("10.0.0.4", 0),)),
            SliceRow("shop", "web", "IPv4", (), (EndpointRow("10.0.0.5", ALL),)),
        )  # fmt: skip

    @pytest.mark.parametrize(
        "subsets", [None, [], [{}], [{"addresses": None, "notReadyAddresses": None, "ports": None}]]
    )
    def test_empty(self, subsets):
        assert self.endpoints(subsets) == ((), {})

    def test_headless(self):
        subsets = [{"addresses": [{"ip": "10.0.0.1"}]}]
        assert self.endpoints(subsets, labels={"service.kubernetes.io/headless": ""}) == ((), {})

    def test_refusals(self):
        found, complaints = self.endpoints(
            [
                {"addresses": [{"ip": "x"}, {"ip": "10.0.0.1"}], "ports": [{"port": 70000}, {"port": 80}]},
                {
                    "addresses": [{"ip": "10.0.0.2"}],
                    "notReadyAddresses": [{}],
                    "ports": [{"port": 1, "protocol": "X"}],
                },
            ]
        )
        assert found == (
            SliceRow(
                "shop", "web", "IPv4", (EndpointPortRow("", "TCP", 80),), (EndpointRow("10.0.0.1", ALL),)
            ),
            SliceRow("shop", "web", "IPv4", (), (EndpointRow("10.0.0.2", ALL),)),
        )
        assert list(complaints) == [
            "subsets[0].ports[0].port",
            "subsets[0].addresses[0].ip",
            "subsets[1].ports[0].protocol",
            "subsets[1].notReadyAddresses[0].ip",
        ]

    def test_a_bad_name(self):
        with pytest.raises(ValueError, match=r"^metadata\.name: "):
            self.endpoints([], name="a b")
