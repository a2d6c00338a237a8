import os
import socket

import pytest

from kubeproxy.config.defaults import DEFAULTS
from kubeproxy.config.types import IPVS, KubeProxyConfiguration, parse_port_range


def test_the_defaults_are_the_references():
    config = DEFAULTS
    assert (config.bind_address, config.mode, config.detect_local_mode, config.cluster_cidr) == (
        "0.0.0.0",
        "",
        "",
        "",
    )
    assert (config.healthz_address, config.metrics_address) == (("0.0.0.0", 10256), ("127.0.0.1", 10249))
    assert (config.client_connection.qps, config.client_connection.burst) == (5, 10)
    assert (config.oom_score_adj, config.iptables.masquerade_bit) == (-999, 14)
    assert str(config.config_sync_period) == "15m0s"
    assert (config.conntrack.max_per_core, config.conntrack.min) == (32768, 131072)
    assert str(config.conntrack.tcp_established_timeout) == "24h0m0s"
    assert str(config.conntrack.tcp_close_wait_timeout) == "1h0m0s"
    assert config.iptables.localhost_node_ports is True
    assert config.logging.format == "text"
    assert str(config.logging.flush_frequency) == "5s"


def test_addresses_are_canonical():
    config = KubeProxyConfiguration(
        cluster_cidr="010.244.3.1/16,fd00:1::5/64",
        node_port_addresses=("10.1.2.3/8",),
        ipvs=IPVS(exclude_cidrs=("1.2.3.4/24",)),
    )
    assert config.cluster_cidrs == ("10.244.0.0/16", "fd00:1::/64")
    assert (config.node_port_cidrs, config.node_port_primary) == (("10.0.0.0/8",), False)
    assert config.ipvs_exclude_cidrs == ("1.2.3.0/24",)


def test_nothing_set_is_nothing():
    config = KubeProxyConfiguration()
    assert (config.cluster_cidrs, config.node_port_cidrs, config.ipvs_exclude_cidrs) == ((), (), ())
    assert (config.healthz_address, config.metrics_address, config.ports) == (None, None, None)


def test_primary_is_no_range():
    config = KubeProxyConfiguration(node_port_addresses=("primary",))
    assert (config.node_port_primary, config.node_port_cidrs) == (True, ())


@pytest.mark.parametrize(
    ("text", "span"),
    [("", (0, 0)), ("0", (0, 0)), ("0-0", (0, 0)), ("300-2000", (300, 2000)), ("300+10", (300, 310)), ("80", (80, 80)),
     (" 5-6 ", (5, 6)), ("2-1", None), ("1-70000", None), ("-1", None), ("x", None), ("1.5", None), ("²", None)],
)  # fmt: skip
def test_port_ranges(text, span):
    assert parse_port_range(text) == span
    assert KubeProxyConfiguration(port_range=text).ports == (None if span in {None, (0, 0)} else span)


def test_the_nodes_name():
    assert KubeProxyConfiguration(hostname_override=" Node-1 ").node_name == "node-1"
    assert KubeProxyConfiguration().node_name == socket.gethostname().lower() == os.uname().nodename.lower()
