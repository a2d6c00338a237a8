"""Which node this is: its addresses and primary family, local traffic, node ports, and configurations that cannot be right."""

import errno
import logging
import socket

import pytest
from msgspec import structs

from kubeproxy import backends
from kubeproxy import host as hosts
from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.api.rows import NodeRow
from kubeproxy.config.defaults import with_defaults, with_platform_defaults
from kubeproxy.config.durations import Duration
from kubeproxy.config.types import IPVS, DetectLocal, IPTables, KubeProxyConfiguration, NFTables
from kubeproxy.host import NodeError, host, local_traffic, node_addresses, node_port_cidrs, node_port_ranges
from kubeproxy.model.node import IPVSSettings, LocalTraffic, NodeConfig
from tests.machines import MACHINE

DUAL = (IPV4, IPV6)
V4, V6 = "192.168.0.1", "fd00:168::1"


def configured(**fields):
    """The configuration with these fields, defaults filled in as at a start."""
    config = with_defaults(KubeProxyConfiguration(**fields))
    return with_platform_defaults(config, "linux")


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class TestNodeAddresses:
    @pytest.mark.parametrize(
        ("given", "bind", "primary", "v4", "v6"),
        [
            # No Node object.
            ([], "0.0.0.0", IPV4, "127.0.0.1", "::1"),
            ([], "::", IPV4, "127.0.0.1", "::1"),
            ([], "", IPV4, "127.0.0.1", "::1"),
            ([], V4, IPV4, V4, "::1"),
            ([], V6, IPV6, "127.0.0.1", V6),
            ([], "127.0.0.1", IPV4, "127.0.0.1", "::1"),
            ([], "::1", IPV6, "127.0.0.1", "::1"),
            # A Node of one family.
            ([V4], "0.0.0.0", IPV4, V4, "::1"),
            ([V4], "::", IPV4, V4, "::1"),
            ([V6], "0.0.0.0", IPV6, "127.0.0.1", V6),
            ([V6], "::", IPV6, "127.0.0.1", V6),
            ([V4], "10.9.9.9", IPV4, "10.9.9.9", "::1"),
            ([V4], "fd00:9::9", IPV6, V4, "fd00:9::9"),
            ([V6], "10.9.9.9", IPV4, "10.9.9.9", V6),
            # A Node of both; its first address decides.
            ([V4, V6], "0.0.0.0", IPV4, V4, V6),
            ([V4, V6], "::", IPV4, V4, V6),
            ([V6, V4], "0.0.0.0", IPV6, V4, V6),
            ([V4, V6], "10.9.9.9", IPV4, "10.9.9.9", V6),
            ([V4, V6], "fd00:9::9", IPV6, V4, "fd00:9::9"),
            ([V6, V4], "10.9.9.9", IPV4, "10.9.9.9", V6),
            # Other spellings.
            ([V4], "::0", IPV4, V4, "::1"),
            ([V4], "0:0:0:0:0:0:0:0", IPV4, V4, "::1"),
            ([V6], "000.0.0.0", IPV6, "127.0.0.1", V6),
            ([], "FD00:168:0::1", IPV6, "127.0.0.1", V6),
            ([], "192.168.000.001", IPV4, V4, "::1"),
        ],
    )
    def test_table(self, given, bind, primary, v4, v6):
        assert node_addresses(given, bind) == (primary, {IPV4: v4, IPV6: v6})


class TestHost:
    @pytest.mark.parametrize(
        ("row", "found", "families", "addresses"),
        [
            (None, (), DUAL, ["127.0.0.1", "::1"]),
            (NodeRow("n", addresses=(V6, V4)), (), (IPV6, IPV4), [V6, V4]),
            (NodeRow("n", addresses=(V4,)), ("10.9.9.9", "fd00:9::9"), DUAL, [V4, "::1"]),
            (NodeRow("n"), ("10.9.9.9", "fd00:9::9"), DUAL, ["10.9.9.9", "fd00:9::9"]),
            (None, ("fd00:9::9",), (IPV6, IPV4), ["fd00:9::9", "127.0.0.1"]),
        ],
    )
    def test_where_addresses_come_from(self, row, found, families, addresses):
        made = host(configured(), "n", row, supported=DUAL, found=found)
        assert tuple(node.family for node in made.nodes) == families
        assert [node.address for node in made.nodes] == addresses
        assert made.primary is made.nodes[0]

    def test_what_the_families_share_and_what_not(self):
        config = configured(
            mode="nftables",
            nftables=NFTables(masquerade_all=True, masquerade_bit=15),
            cluster_cidr="10.244.0.0/16,fd00:10::/56",
            node_port_addresses=("192.168.0.0/16",),
            feature_gates={"AllowServiceExternalIPs": False},
        )
        row = NodeRow("n", addresses=(V4, V6), zone="zone-a")
        v4 = NodeConfig(
            name="n",
            zone="zone-a",
            address=V4,
            masquerade_all=True,
            masquerade_mark=0x8000,
            external_ips=False,
            local_traffic=LocalTraffic("range", "10.244.0.0/16"),
            node_port_ranges=("192.168.0.0/16",),
            balancing=backends.mode("nftables").balancing,
        )
        v6 = structs.replace(
            v4,
            family=IPV6,
            address=V6,
            local_traffic=LocalTraffic("range", "fd00:10::/56"),
            node_port_ranges=(),
            primary=False,
        )
        assert host(config, "n", row, supported=DUAL).nodes == (v4, v6)

    def test_a_host_of_one_family(self):
        made = host(configured(), "n", NodeRow("n", addresses=(V4, V6)), supported=(IPV4,))
        assert [node.family for node in made.nodes] == [IPV4]

    def test_the_primary_family_must_be_supported(self):
        with pytest.raises(NodeError, match=r"^no support for primary IP family IPv6$"):
            host(configured(), "n", NodeRow("n", addresses=(V6, V4)), supported=(IPV4,))

    @pytest.mark.parametrize(("addresses", "told"), [((), True), ((V4,), False)])
    def test_a_node_of_unknown_address_is_told(self, caplog, addresses, told):
        host(configured(), "n", NodeRow("n", addresses=addresses), supported=DUAL)
        assert any("assuming loopback" in message for message in warnings(caplog)) == told


class TestLocalTraffic:
    @pytest.mark.parametrize(
        ("fields", "v4", "v6"),
        [
            ({}, None, None),
            ({"cluster_cidr": "10.244.0.0/16"}, LocalTraffic("range", "10.244.0.0/16"), None),
            ({"cluster_cidr": "fd00:10::/56"}, None, LocalTraffic("range", "fd00:10::/56")),
            (
                {"cluster_cidr": "fd00:10::1/56,10.244.0.0/16"},
                LocalTraffic("range", "10.244.0.0/16"),
                LocalTraffic("range", "fd00:10::/56"),
            ),
            (
                {"detect_local_mode": "NodeCIDR", "cluster_cidr": "10.244.0.0/16"},
                LocalTraffic("range", "10.244.1.0/24"),
                LocalTraffic("range", "fd00:10:1::/64"),
            ),
            (
                {
                    "detect_local_mode": "BridgeInterface",
                    "detect_local": DetectLocal(bridge_interface="cni0", interface_name_prefix="veth"),
                },
                LocalTraffic("interface", "cni0"),
                LocalTraffic("interface", "cni0"),
            ),
            (
                {
                    "detect_local_mode": "InterfaceNamePrefix",
                    "detect_local": DetectLocal(bridge_interface="cni0", interface_name_prefix="veth"),
                },
                LocalTraffic("prefix", "veth"),
                LocalTraffic("prefix", "veth"),
            ),
            (
                {
                    "detect_local_mode": "InterfaceNamePrefix",
                    "detect_local": DetectLocal(interface_name_prefix="fifteen-letters"),
                },
                LocalTraffic("interface", "fifteen-letters"),
                LocalTraffic("interface", "fifteen-letters"),
            ),
        ],
    )
    def test_table(self, fields, v4, v6):
        config = configured(**fields)
        cidrs = ("fd00:10:1::/64", "10.244.1.0/24", "10.244.2.0/24")
        assert local_traffic(config, IPV4, cidrs) == v4
        assert local_traffic(config, IPV6, cidrs) == v6

    @pytest.mark.parametrize("mode", ["ClusterCIDR", "NodeCIDR"])
    def test_it_is_told_when_a_family_has_no_range(self, caplog, mode):
        caplog.set_level(logging.INFO)
        assert local_traffic(configured(detect_local_mode=mode), IPV6, ()) is None
        (message,) = caplog.messages
        assert message.startswith("IPv6: ")
        assert mode in message


class TestNodePorts:
    def ranges(self, given, **addresses):
        known = {IPV4: addresses.get("v4", "127.0.0.1"), IPV6: addresses.get("v6", "::1")}
        config = configured(node_port_addresses=given)
        ranges = node_port_ranges(node_port_cidrs(config, known))
        return ranges[IPV4], ranges[IPV6]

    @pytest.mark.parametrize(
        ("given", "v4", "v6"),
        [
            (None, (), ()),
            ((), (), ()),
            (("0.0.0.0/0",), (), ()),
            (("0.0.0.0/0", "10.0.0.0/8"), (), ()),
            (("::/0",), (), ()),
            (("10.0.0.0/8",), ("10.0.0.0/8",), ()),
            (("fd00::/8",), (), ("fd00::/8",)),
            (("10.0.0.0/8", "fd00::/8", "192.168.0.9/24"), ("10.0.0.0/8", "192.168.0.0/24"), ("fd00::/8",)),
            (("10.0.0.0/8", "::/0"), ("10.0.0.0/8",), ()),
            (("127.0.0.0/8",), ("127.0.0.0/8",), ()),
        ],
    )
    def test_ranges(self, given, v4, v6):
        assert self.ranges(given) == (v4, v6)

    @pytest.mark.parametrize(
        ("addresses", "v4", "v6"),
        [
            ({"v4": V4}, (f"{V4}/32",), ()),
            ({"v6": V6}, (), (f"{V6}/128",)),
            ({"v4": V4, "v6": V6}, (f"{V4}/32",), (f"{V6}/128",)),
            ({}, (), ()),
        ],
    )
    def test_primary(self, addresses, v4, v6):
        assert self.ranges(("primary",), **addresses) == (v4, v6)

    @pytest.mark.parametrize(
        ("given", "v4", "v6"),
        [
            (("primary", "10.0.0.0/8"), (f"{V4}/32", "10.0.0.0/8"), (f"{V6}/128",)),
            (("localhost",), ("127.0.0.0/8",), ("::1/128",)),
            (("10.0.0.0/8", "localhost", "primary"), (f"{V4}/32", "10.0.0.0/8", "127.0.0.0/8"), (f"{V6}/128", "::1/128")),
            (("all",), (), ()),
            (("primary", "all", "localhost"), (), ()),
        ],
    )  # fmt: skip
    def test_words_are_combined(self, given, v4, v6):
        assert self.ranges(given, v4=V4, v6=V6) == (v4, v6)

    @pytest.mark.parametrize(
        ("fields", "v4"),
        [
            ({}, True),
            ({"iptables": IPTables(localhost_node_ports=False)}, False),
            ({"mode": "nftables"}, False),
            ({"mode": "ipvs"}, False),
            ({"node_port_addresses": ("0.0.0.0/0",)}, True),
            ({"node_port_addresses": ("::/0",)}, True),
            ({"node_port_addresses": ("::1/128",)}, True),
            ({"node_port_addresses": ("127.0.0.0/8",)}, True),
            ({"node_port_addresses": ("127.0.0.1/32",)}, True),
            ({"node_port_addresses": ("127.0.2.0/28",)}, True),
            ({"node_port_addresses": ("112.0.0.0/4",)}, True),
            ({"node_port_addresses": ("192.168.0.0/16",)}, False),
            ({"node_port_addresses": ("192.168.0.0/16", "127.0.0.0/8")}, True),
            ({"node_port_addresses": ("192.168.0.0/16", "::1/128")}, False),
            ({"node_port_addresses": ("primary",)}, False),
            ({"node_port_addresses": ("primary", "localhost")}, True),
            ({"node_port_addresses": ("all",)}, True),
        ],
    )
    def test_localhost(self, fields, v4):
        row = NodeRow("n", addresses=(V4, V6))
        made = host(configured(**fields), "n", row, supported=DUAL)
        assert [node.localhost_node_ports for node in made.nodes] == [v4, False]

    @pytest.mark.parametrize(
        ("mode", "ranges", "expected"),
        [
            ("iptables", None, [False, False]),
            ("nftables", ("primary",), [False, False]),
            ("nftables", ("0.0.0.0/0", "::/0"), [False, False]),
            ("nftables", ("127.0.0.0/8",), [True, False]),
            ("nftables", ("192.168.0.0/16", "127.0.0.2/32", "::1/128"), [True, True]),
            ("nftables", ("primary", "localhost"), [True, True]),
            ("nftables", ("all",), [False, False]),
            ("nftables", ("all", "localhost"), [True, True]),
            ("nftables", ("0.0.0.0/0", "127.0.0.1/32"), [True, False]),
            ("userspace", None, [True, True]),
            ("userspace", ("::1/128",), [True, True]),
            ("userspace", ("primary",), [False, False]),
            ("ipvs", ("127.0.0.0/8",), [False, False]),
        ],
    )
    def test_who_relays_localhost(self, mode, ranges, expected):
        row = NodeRow("n", addresses=(V4, V6))
        made = host(configured(mode=mode, node_port_addresses=ranges), "n", row, supported=DUAL)
        assert [node.localhost_relay for node in made.nodes] == expected

    @pytest.mark.parametrize(
        ("gates", "relay", "policy"),
        [
            ({}, True, False),
            ({"KubeProxyNFTablesLocalhostNodePorts": True}, True, True),
            ({"KubeProxyNFTablesLocalhostNodePorts": False}, False, False),
            ({"AllBeta": False}, False, False),
        ],
    )
    def test_the_gate_of_localhost(self, gates, relay, policy):
        config = configured(mode="nftables", node_port_addresses=("localhost",), feature_gates=gates)
        made = host(config, "n", NodeRow("n", addresses=(V4, V6)), supported=DUAL)
        assert {(node.localhost_relay, node.localhost_policy) for node in made.nodes} == {(relay, policy)}


class TestWhatCannotBeRight:
    def check(self, caplog, addresses=(V4,), supported=DUAL, pod_cidrs=(), **fields):
        """The warnings of a node, without those of its address and, where ranges are not at issue, of them."""
        caplog.clear()
        host(
            configured(**{"node_port_addresses": ("0.0.0.0/0", "::/0"), **fields}),
            "n",
            NodeRow("n", addresses=addresses, pod_cidrs=pod_cidrs),
            supported=supported,
        )
        return warnings(caplog)

    @pytest.mark.parametrize("given", [None, ()])
    def test_node_ports_everywhere(self, caplog, given):
        (message,) = self.check(caplog, node_port_addresses=given)
        assert message.startswith("nodePortAddresses is unset")

    @pytest.mark.parametrize(
        ("fields", "missing"),
        [
            ({"node_port_addresses": ("10.0.0.0/8",)}, None),
            ({"node_port_addresses": ("10.0.0.0/8",), "addresses": (V6,)}, IPV6),
            ({"node_port_addresses": ("fd00::/8",)}, IPV4),
            ({"node_port_addresses": ("fd00::/8",), "addresses": (V6,)}, None),
            ({"node_port_addresses": ("10.0.0.0/8", "fd00::/8")}, None),
            ({"node_port_addresses": ("0.0.0.0/0", "fd00::/8")}, None),
            # The cluster looks dual-stack.
            ({"node_port_addresses": ("10.0.0.0/8",), "cluster_cidr": "10.0.0.0/8,fd00::/8"}, IPV6),
            ({"node_port_addresses": ("10.0.0.0/8",), "pod_cidrs": ("10.0.0.0/8", "fd00::/8")}, IPV6),
            ({"node_port_addresses": ("10.0.0.0/8", "::/0"), "cluster_cidr": "10.0.0.0/8,fd00::/8"}, None),
            ({"node_port_addresses": ("10.0.0.0/8",), "cluster_cidr": "10.0.0.0/8,fd00::/8", "supported": (IPV4,)}, None),
            ({"node_port_addresses": ("primary",)}, None),
            ({"node_port_addresses": ("primary",), "cluster_cidr": "10.0.0.0/8,fd00::/8"}, IPV6),
            ({"node_port_addresses": ("primary",), "cluster_cidr": "10.0.0.0/8,fd00::/8", "addresses": (V4, V6)}, None),
        ],
    )  # fmt: skip
    def test_node_ports_of_one_family(self, caplog, fields, missing):
        expected = f"nodePortAddresses has no {missing} range; node ports are on all local {missing} IPs"
        assert self.check(caplog, **fields) == ([expected] if missing else [])

    @pytest.mark.parametrize(
        ("fields", "fatal"),
        [
            ({"addresses": (V4,), "cluster_cidr": "fd00::/8"}, False),
            ({"addresses": (V4,), "cluster_cidr": "fd00::/8", "supported": (IPV4,)}, True),
            ({"addresses": (V6,), "cluster_cidr": "10.0.0.0/8"}, False),
            ({"addresses": (V6,), "cluster_cidr": "10.0.0.0/8", "supported": (IPV6,)}, True),
            (
                {
                    "addresses": (V4,),
                    "cluster_cidr": "fd00::/8",
                    "supported": (IPV4,),
                    "detect_local_mode": "BridgeInterface",
                    "detect_local": DetectLocal(bridge_interface="cni0"),
                },
                False,
            ),
        ],
    )
    def test_cluster_cidr_of_the_other_family(self, caplog, fields, fatal):
        if fatal:
            with pytest.raises(NodeError, match=r"^clusterCIDR has only IPv"):
                self.check(caplog, **fields)
        else:
            (message,) = self.check(caplog, **fields)
            assert message.startswith("clusterCIDR has only IPv")

    @pytest.mark.parametrize("cluster_cidr", ["10.0.0.0/8", "10.0.0.0/8,fd00::/8", "fd00::/8,10.0.0.0/8", ""])
    def test_cluster_cidr_that_fits(self, caplog, cluster_cidr):
        assert self.check(caplog, cluster_cidr=cluster_cidr, supported=(IPV4,)) == []

    @pytest.mark.parametrize("supported", [DUAL, (IPV4,)])
    def test_pod_cidrs_of_the_other_family(self, caplog, supported):
        (message,) = self.check(caplog, pod_cidrs=("fd00:1::/64",), supported=supported)
        assert message.startswith("the Node's podCIDRs are only IPv6")
        with pytest.raises(NodeError, match=r"^the Node's podCIDRs are only IPv6"):
            self.check(caplog, pod_cidrs=("fd00:1::/64",), supported=supported, detect_local_mode="NodeCIDR")
        assert not self.check(caplog, pod_cidrs=("fd00:1::/64", "10.1.0.0/24"), detect_local_mode="NodeCIDR")

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"healthz_bind_address": "[2001:db8::1]:10256"}, "healthzBindAddress"),
            ({"metrics_bind_address": "[2001:db8::1]:10249"}, "metricsBindAddress"),
            ({"mode": "ipvs", "ipvs": IPVS(exclude_cidrs=("fd00::/8",))}, "ipvs.excludeCIDRs"),
            ({"mode": "ipvs", "ipvs": IPVS(exclude_cidrs=("fd00::/8", "10.0.0.0/8"))}, None),
            ({"healthz_bind_address": "192.168.0.1:10256"}, None),
            ({"healthz_bind_address": "[::]:10256", "metrics_bind_address": "[::1]:10249"}, None),
        ],
    )
    def test_what_a_host_of_one_family_cannot_serve(self, caplog, fields, field):
        told = self.check(caplog, supported=(IPV4,), **fields)
        assert [message.split(" ")[0] for message in told] == ([field] if field else [])
        assert not self.check(caplog, supported=DUAL, **fields)


def test_addresses_this_host_speaks_from_are_its_own():
    found = hosts.own_addresses(MACHINE)
    assert len({":" in address for address in found}) == len(found), "one a family"
    for address in found:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
            listener.bind((address, 0))


def test_a_host_without_routes_speaks_from_nowhere(monkeypatch):
    def unreachable(*_):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", unreachable)
    assert hosts.own_addresses(MACHINE) == ()


def test_every_host_speaks_ipv4():
    assert hosts.supported_families(MACHINE)[0] == IPV4


def test_settings_of_ipvs_mode_are_known_in_ipvs_mode():
    given = IPVS(scheduler="lc", exclude_cidrs=("203.0.113.9/24",), strict_arp=True, udp_timeout=Duration(5))
    (node, *_) = host(configured(mode="ipvs", ipvs=given), "n", None, supported=[IPV4]).nodes
    assert node.ipvs == IPVSSettings("lc", ("203.0.113.0/24",), True, (0, 0, 5))
    (node, *_) = host(configured(mode="iptables", ipvs=given), "n", None, supported=[IPV4]).nodes
    assert node.ipvs is None
