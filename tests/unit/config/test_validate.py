import json

import pytest

from kubeproxy.config.defaults import DEFAULTS, with_platform_defaults
from kubeproxy.config.durations import Duration
from kubeproxy.config.load import _set
from kubeproxy.config.types import NanosecondDuration, VModule
from kubeproxy.config.validate import validate

GOOD = with_platform_defaults(DEFAULTS, "linux")


def judge(platform="linux", **changes):
    """Validates the default configuration with some fields, named with __ for the dot, changed."""
    config = GOOD
    for name, value in changes.items():
        config = _set(config, name.replace("__", "."), value)
    errors = validate(config, platform)
    assert all(error.startswith("KubeProxyConfiguration.") and "\n" not in error for error in errors)
    return [error.removeprefix("KubeProxyConfiguration.") for error in errors]


NEGATIVE = Duration(-5)
CONNTRACK = "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration"


def test_windows_has_other_names_of_interfaces():
    assert not any(
        "Interface" in error
        for error in judge(
            "win32",
            detect_local_mode="BridgeInterface",
            detect_local__bridge_interface="vEthernet (Ethernet 2)",
        )
    )


def test_the_default_is_sound():
    assert judge() == []


@pytest.mark.parametrize(
    "changes",
    [
        *({"mode": mode} for mode in ("", "iptables", "ipvs", "nftables", "userspace")),
        {"bind_address": "fd00:192:168:59::103", "healthz_bind_address": "", "metrics_bind_address": "[::1]:10249"},
        {"bind_address": "010.001.0.1"},
        {"healthz_bind_address": "10.10.10.10:1", "metrics_bind_address": "10.10.10.10:65535"},
        {"metrics_bind_address": ""},
        {"cluster_cidr": "192.168.59.0/24"},
        {"cluster_cidr": "fd00:192:168::/64"},
        {"cluster_cidr": "192.168.59.0/24,fd00:192:168::/64"},
        {"cluster_cidr": "fd00:192:168::/64,192.168.59.0/24"},
        {"cluster_cidr": "a,b,c", "detect_local_mode": "NodeCIDR"},
        {"detect_local_mode": "InterfaceNamePrefix", "detect_local__interface_name_prefix": "veth"},
        {"detect_local_mode": "BridgeInterface", "detect_local__bridge_interface": "cbr0"},
        {"detect_local_mode": "BridgeInterface", "detect_local__bridge_interface": "fifteen-letters"},
        {"detect_local_mode": "InterfaceNamePrefix", "detect_local__interface_name_prefix": "a.b+!*-_"},
        {"oom_score_adj": -1000},
        {"oom_score_adj": 1000},
        {"iptables__masquerade_bit": 0},
        {"iptables__masquerade_bit": 31},
        {"nftables__masquerade_bit": 99},
        {"mode": "nftables", "nftables__masquerade_bit": 31},
        {"ipvs__tcp_timeout": NEGATIVE, "ipvs__exclude_cidrs": ("x",)},
        {"mode": "ipvs", "ipvs__tcp_timeout": Duration(0), "ipvs__exclude_cidrs": ("10.0.0.0/8", "2001:db8::/32")},
        {"conntrack__tcp_established_timeout": Duration(0), "conntrack__udp_timeout": Duration(0)},
        {"client_connection__burst": 0},
        {"iptables__sync_period": Duration(0.5)},
        {"iptables__sync_period": Duration(5), "iptables__min_sync_period": Duration(5)},
        {"ipvs__sync_period": NEGATIVE},
        {"show_hidden_metrics_for_version": "1.35"},
        *({"port_range": text} for text in ("", "0", "0-0", "300-2000", "300", "300+10", " 1-65535 ", "5-5")),
        *({"node_port_addresses": a} for a in ((), ("primary",), ("primary", "localhost"), ("10.0.0.0/8", "all"), ("127.0.0.0/8",), ("0.0.0.0/0", "::/0"), ("127.0.0.1/32", "1.2.3.0/24"))),
        {"logging__format": "json"},
        {"logging__vmodule": (VModule("gopher*", 100),)},
        {"feature_gates": {"LoggingAlphaOptions": True}, "logging__options__text__split_stream": True},
        {"feature_gates": {"AllAlpha": True}, "logging__options__json__info_buffer_size": "1Ki"},
        {"feature_gates": {"WinDSR": True, "SidecarContainers": False}},
    ],
)  # fmt: skip
def test_sound_configurations(changes):
    from kubeproxy.config.durations import Quantity

    if "logging__options__json__info_buffer_size" in changes:
        changes = {**changes, "logging__options__json__info_buffer_size": Quantity("1Ki")}
    assert judge(**changes) == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"bind_address": "10.10.12.11:2000"}, 'BindAddress: Invalid value: "10.10.12.11:2000": not a valid textual representation of an IP address'),
        ({"bind_address": "[::]"}, 'BindAddress: Invalid value: "[::]": not a valid textual representation of an IP address'),
        ({"healthz_bind_address": "10.10.10.10"}, 'HealthzBindAddress: Invalid value: "10.10.10.10": must be IP:port'),
        ({"healthz_bind_address": "123.456.789.10:12345"}, 'HealthzBindAddress: Invalid value: "123.456.789.10": must be a valid IP'),
        ({"healthz_bind_address": "10.10.10.10:foo"}, 'HealthzBindAddress: Invalid value: "foo": must be a valid port'),
        ({"healthz_bind_address": "10.10.10.10:0"}, 'HealthzBindAddress: Invalid value: "0": must be a valid port'),
        ({"metrics_bind_address": "10.10.10.10:65536"}, 'MetricsBindAddress: Invalid value: "65536": must be a valid port'),
        ({"metrics_bind_address": "::1"}, 'MetricsBindAddress: Invalid value: "::1": must be IP:port'),
        ({"config_sync_period": Duration(0)}, "ConfigSyncPeriod: Invalid value: 0s: must be greater than 0"),
        ({"config_sync_period": NEGATIVE}, "ConfigSyncPeriod: Invalid value: -5s: must be greater than 0"),
        ({"iptables__sync_period": Duration(1), "iptables__min_sync_period": Duration(5)},
         "SyncPeriod: Invalid value: 1s: must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod (5s)"),
        ({"iptables__min_sync_period": NEGATIVE}, "MinSyncPeriod: Invalid value: -5s: must be greater than or equal to 0"),
        ({"mode": "ipvs", "ipvs__min_sync_period": NEGATIVE}, "MinSyncPeriod: Invalid value: -5s: must be greater than or equal to 0"),
        ({"mode": "nftables", "nftables__min_sync_period": NEGATIVE}, "MinSyncPeriod: Invalid value: -5s: must be greater than or equal to 0"),
        ({"mode": "ipvs", "ipvs__tcp_timeout": NEGATIVE}, "KubeProxyIPVSConfiguration.TCPTimeout: Invalid value: -5s: must be greater than or equal to 0"),
        ({"mode": "ipvs", "ipvs__tcp_fin_timeout": NEGATIVE}, "KubeProxyIPVSConfiguration.TCPFinTimeout: Invalid value: -5s: must be greater than or equal to 0"),
        ({"mode": "ipvs", "ipvs__udp_timeout": NEGATIVE}, "KubeProxyIPVSConfiguration.UDPTimeout: Invalid value: -5s: must be greater than or equal to 0"),
        ({"mode": "ipvs", "ipvs__exclude_cidrs": ("10.0.0.0/8", "10.0.0.1")}, 'KubeProxyIPVSConfiguration.ExcludeCidrs[1]: Invalid value: "10.0.0.1": must be a valid CIDR'),
        ({"iptables__masquerade_bit": 32}, "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]"),
        ({"mode": "ipvs", "iptables__masquerade_bit": -1}, "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: -1: must be within the range [0, 31]"),
        ({"mode": "nftables", "nftables__masquerade_bit": -10}, "KubeProxyNFTablesConfiguration.MasqueradeBit: Invalid value: -10: must be within the range [0, 31]"),
        ({"conntrack__max_per_core": -1}, f"{CONNTRACK}.MaxPerCore: Invalid value: -1: must be greater than or equal to 0"),
        ({"conntrack__min": -1}, f"{CONNTRACK}.Min: Invalid value: -1: must be greater than or equal to 0"),
        ({"conntrack__tcp_established_timeout": NEGATIVE}, f"{CONNTRACK}.TCPEstablishedTimeout: Invalid value: -5s: must be greater than or equal to 0"),
        ({"conntrack__tcp_close_wait_timeout": NEGATIVE}, f"{CONNTRACK}.TCPCloseWaitTimeout: Invalid value: -5s: must be greater than or equal to 0"),
        ({"conntrack__udp_timeout": NEGATIVE}, f"{CONNTRACK}.UDPTimeout: Invalid value: -5s: must be greater than or equal to 0"),
        ({"conntrack__udp_stream_timeout": NEGATIVE}, f"{CONNTRACK}.UDPStreamTimeout: Invalid value: -5s: must be greater than or equal to 0"),
        ({"oom_score_adj": 9000}, "KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 9000: must be within the range [-1000, 1000]"),
        ({"oom_score_adj": -1001}, "KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: -1001: must be within the range [-1000, 1000]"),
        ({"mode": "non-existing"}, 'Mode.ProxyMode: Invalid value: "non-existing": must be iptables, ipvs, nftables, userspace, ebpf or blank (blank means iptables)'),
        ({"mode": "kernelspace"}, 'Mode.ProxyMode: Invalid value: "kernelspace": must be iptables, ipvs, nftables, userspace, ebpf or blank (blank means iptables)'),
        ({"mode": "IPVS"}, 'Mode.ProxyMode: Invalid value: "IPVS": must be iptables, ipvs, nftables, userspace, ebpf or blank (blank means iptables)'),
        ({"mode": "ipvs", "platform": "win32"}, 'Mode.ProxyMode: Invalid value: "ipvs": must be kernelspace or blank (blank means kernelspace)'),
        ({"client_connection__burst": -5}, "ClientConnection.Burst: Invalid value: -5: must be greater than or equal to 0"),
        ({"node_port_addresses": ("foo",)}, 'NodePortAddresses[0]: Invalid value: "foo": must be a valid CIDR'),
        ({"node_port_addresses": ("10.0.0.0/0", "1.2.3")}, 'NodePortAddresses[1]: Invalid value: "1.2.3": must be a valid CIDR'),
        ({"node_port_addresses": ("127.0.0.1/32", "10.20.30.40", "1.2.3.0/24")}, 'NodePortAddresses[1]: Invalid value: "10.20.30.40": must be a valid CIDR'),
        ({"node_port_addresses": ("primary", "everywhere")}, 'NodePortAddresses[1]: Invalid value: "everywhere": must be a valid CIDR'),
        ({"show_hidden_metrics_for_version": "1.34"}, 'ShowHiddenMetricsForVersion: Invalid value: "1.34": must be omitted or have the value 1.35; only the previous minor version is allowed'),
        ({"detect_local_mode": "magic"}, 'DetectLocalMode: Unsupported value: "magic": supported values: "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", ""'),
        ({"detect_local_mode": "BridgeInterface", "detect_local__interface_name_prefix": "eth0"}, 'DetectLocalConfiguration.InterfaceName: Invalid value: "": must not be empty'),
        ({"detect_local_mode": "InterfaceNamePrefix", "detect_local__bridge_interface": "br"}, 'DetectLocalConfiguration.InterfacePrefix: Invalid value: "": must not be empty'),
        *(
            ({"detect_local_mode": "BridgeInterface", "detect_local__bridge_interface": name},
             f"DetectLocalConfiguration.InterfaceName: Invalid value: {json.dumps(name, ensure_ascii=False)}: must be at most 15 bytes without white space, quotes, '/' and ':'")
            for name in ("sixteen-letters-", "a b", "a/b", "eth0:1", "it's", ".", "..", "\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9")
        ),
        ({"detect_local_mode": "InterfaceNamePrefix", "detect_local__interface_name_prefix": "sixteen-letters-"},
         'DetectLocalConfiguration.InterfacePrefix: Invalid value: "sixteen-letters-": must be at most 15 bytes without white space, quotes, \'/\' and \':\''),
        ({"cluster_cidr": "192.168.0.0"}, 'DetectLocalConfiguration.ClusterCIDRs[0]: Invalid value: "192.168.0.0": must be a valid CIDR (e.g. 10.100.0.0/16)'),
        ({"cluster_cidr": "fde4:8dba:82e1::/48,172.16.200.0:24"}, 'DetectLocalConfiguration.ClusterCIDRs[1]: Invalid value: "172.16.200.0:24": must be a valid CIDR (e.g. 10.100.0.0/16)'),
        ({"cluster_cidr": "10.0.0.0/8,"}, 'DetectLocalConfiguration.ClusterCIDRs[1]: Invalid value: "": must be a valid CIDR (e.g. 10.100.0.0/16)'),
        ({"cluster_cidr": "10.100.0.0/16,192.168.0.0/16"},
         'DetectLocalConfiguration.ClusterCIDRs: Invalid value: ["10.100.0.0/16","192.168.0.0/16"]: must be either a single CIDR or a dual-stack pair of CIDRs (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)'),
        ({"cluster_cidr": "fd00::/64,fd01::/64"},
         'DetectLocalConfiguration.ClusterCIDRs: Invalid value: ["fd00::/64","fd01::/64"]: must be either a single CIDR or a dual-stack pair of CIDRs (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)'),
        ({"cluster_cidr": "10.0.0.0/16,fd00::/64,fd01::/64"},
         'DetectLocalConfiguration.ClusterCIDRs: Invalid value: ["10.0.0.0/16","fd00::/64","fd01::/64"]: must be either a single CIDR or a dual-stack pair of CIDRs (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)'),
        *(({"port_range": text}, f'PortRange: Invalid value: "{text}": must be a valid port range (e.g. 300-2000)') for text in ("a", "1-", "-5", "9-5", "1-65536", "65000+1000", "1-2-3", "1+2+3", "-")),
        ({"feature_gates": {"magic": True}}, 'featureGates: Invalid value: {"magic":true}: unrecognized feature gate: magic'),
        ({"feature_gates": {"NFTablesProxyMode": False}}, 'featureGates: Invalid value: {"NFTablesProxyMode":false}: cannot set feature gate NFTablesProxyMode to false, feature is locked to true'),
        ({"logging__format": "xml"}, 'logging.format: Invalid value: "xml": Unsupported log format (text or json)'),
        ({"logging__flush_frequency": NanosecondDuration(0)}, "logging.flushFrequency: Invalid value: 0s: must be greater than 0"),
        ({"logging__flush_frequency": NanosecondDuration(-1)}, "logging.flushFrequency: Invalid value: -1s: must be greater than 0"),
        ({"logging__verbosity": 2**31}, "logging.verbosity: Invalid value: 2147483648: Must be <= 2147483647"),
        ({"logging__vmodule": (VModule("", 1),)}, "logging.vmodule[0]: Required value: File pattern must not be empty"),
        ({"logging__vmodule": (VModule("a", 1), VModule("foo,bar", 1))}, 'logging.vmodule[1]: Invalid value: "foo,bar": File pattern must not contain equal sign or comma'),
        ({"logging__vmodule": (VModule("foo=bar", 1),)}, 'logging.vmodule[0]: Invalid value: "foo=bar": File pattern must not contain equal sign or comma'),
        ({"logging__vmodule": (VModule("a", 2**31),)}, "logging.vmodule[0]: Invalid value: 2147483648: Must be <= 2147483647"),
        ({"logging__vmodule": (VModule("a", 1),), "logging__format": "json"}, "logging.vmodule: Forbidden: Only supported for text log format"),
        ({"logging__options__text__split_stream": True}, "logging.options.text.splitStream: Forbidden: Feature LoggingAlphaOptions is disabled"),
        ({"logging__options__json__split_stream": True}, "logging.options.json.splitStream: Forbidden: Feature LoggingAlphaOptions is disabled"),
    ],
)  # fmt: skip
def test_each_rule_names_its_field(changes, error):
    assert judge(**changes) == [error]


@pytest.mark.parametrize("name", ["text", "json"])
def test_buffers_need_their_gate(name):
    from kubeproxy.config.durations import Quantity

    errors = judge(**{f"logging__options__{name}__info_buffer_size": Quantity("1Ki")})
    assert errors == [
        f"logging.options.{name}.infoBufferSize: Forbidden: Feature LoggingAlphaOptions is disabled"
    ]


@pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables"])
def test_the_periods_of_the_mode_are_judged(mode):
    assert judge(
        mode=mode, **{f"{mode}__sync_period": Duration(-5), f"{mode}__min_sync_period": Duration(2)}
    ) == [
        "SyncPeriod: Invalid value: -5s: must be greater than 0",
        "SyncPeriod: Invalid value: -5s: must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod (2s)",
    ]


def test_two_bad_addresses_are_two_errors():
    assert judge(node_port_addresses=("::0", "::1", "2001:db8::/32")) == [
        'NodePortAddresses[0]: Invalid value: "::0": must be a valid CIDR',
        'NodePortAddresses[1]: Invalid value: "::1": must be a valid CIDR',
    ]


def test_every_broken_rule_is_reported():
    errors = judge(
        mode="x", oom_score_adj=5000, bind_address="y", feature_gates={"A": True, "B": True}, port_range="z"
    )
    fields = [error.split(": ")[0] for error in errors]
    assert fields == [
        "featureGates",
        "featureGates",
        "KubeProxyLinuxConfiguration.OOMScoreAdj",
        "Mode.ProxyMode",
        "BindAddress",
        "PortRange",
    ]
