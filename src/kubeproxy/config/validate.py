"""Every rule a configuration must meet. All violations are reported, each in a line that names its field.

The field paths and the form of the messages are the reference's, because operators know them and search for
them: `KubeProxyConfiguration.BindAddress: Invalid value: "x": ...`. Its paths name the sections of its
internal form (`KubeProxyLinuxConfiguration.OOMScoreAdj`); the last part is the field's name in the file.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from kubeproxy import backends
from kubeproxy.config import PREVIOUS, checks
from kubeproxy.config.checks import CIDR, NOT_NEGATIVE, POSITIVE, Problem
from kubeproxy.config.durations import Duration
from kubeproxy.config.gates import problems, resolve
from kubeproxy.config.netparse import parse_cidr, parse_ip, split_host_port
from kubeproxy.config.types import (
    KIND,
    LINUX_MODES,
    LOCAL_MODES,
    LONGEST_INTERFACE,
    NODE_PORT_WORDS,
    WINDOWS_MODES,
    KubeProxyConfiguration,
    Logging,
    parse_port_range,
)

_INTERFACE = re.compile(r"(?!\.{1,2}$)[^\s/:\"'\\]+")

_PAIR = "must be either a single CIDR or a dual-stack pair of CIDRs (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)"


def validate(config: KubeProxyConfiguration, platform: str) -> list[str]:
    """Validates a configuration that has its defaults; the result is empty if it is valid.

    Args:
        config: the configuration.
        platform: `sys.platform`, which decides the modes there are.
    """
    found = _Findings()
    for problem in problems(config.feature_gates):
        found.invalid("featureGates", config.feature_gates, problem)
    _sections(config, found)
    _mode(config.mode, platform, found)
    found.at_least_0("ClientConnection.Burst", config.client_connection.burst)
    found.require(config.config_sync_period > 0, "ConfigSyncPeriod", config.config_sync_period, POSITIVE)
    mode = backends.mode(config.mode)
    period, least = mode.sync_period(config), mode.min_sync_period(config) or Duration(0)
    found.require(period > 0, "SyncPeriod", period, POSITIVE)
    found.at_least_0("MinSyncPeriod", least)
    found.require(
        least <= period,
        "SyncPeriod",
        period,
        f"must be greater than or equal to {KIND}.MinSyncPeriod ({least})",
    )
    found.require(
        parse_ip(config.bind_address) is not None,
        "BindAddress",
        config.bind_address,
        "not a valid textual representation of an IP address",
    )
    _host_port("HealthzBindAddress", config.healthz_bind_address, found)
    _host_port("MetricsBindAddress", config.metrics_bind_address, found)
    found.at_least_0("ConnectionMetrics", config.connection_metrics)
    if parse_port_range(config.port_range) is None:
        found.invalid("PortRange", config.port_range, "must be a valid port range (e.g. 300-2000)")
    _node_ports(config.node_port_addresses or (), found)
    version = config.show_hidden_metrics_for_version
    found.require(
        version in {"", PREVIOUS},
        "ShowHiddenMetricsForVersion",
        version,
        f"must be omitted or have the value {PREVIOUS}; only the previous minor version is allowed",
    )
    _detect_local(config, platform, found)
    _logging(config.logging, alpha=resolve(config.feature_gates)["LoggingAlphaOptions"], found=found)
    return found.errors


class _Findings:
    """Collects error lines."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def invalid(self, path: str, value: Any, why: str) -> None:
        shown = str(value) if isinstance(value, int | float) else msgspec.json.encode(value).decode()
        self.errors.append(f"{KIND}.{path}: Invalid value: {shown}: {why}")

    def add(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.invalid(problem.path, problem.value, problem.why)

    def forbidden(self, path: str, why: str) -> None:
        self.errors.append(f"{KIND}.{path}: Forbidden: {why}")

    def require(self, holds: bool, path: str, value: Any, why: str) -> None:  # noqa: FBT001 - reads as a sentence
        if not holds:
            self.invalid(path, value, why)

    def at_least_0(self, path: str, value: float) -> None:
        self.require(value >= 0, path, value, NOT_NEGATIVE)


def _sections(config: KubeProxyConfiguration, found: _Findings) -> None:
    """The rules of the modes' sections and of the process."""
    bit = config.iptables.masquerade_bit
    found.add(checks.bit("KubeProxyIPTablesConfiguration.MasqueradeBit", bit))
    found.add(backends.mode(config.mode).problems(config))
    conntrack, section = config.conntrack, "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration"
    found.at_least_0(f"{section}.MaxPerCore", conntrack.max_per_core)
    found.at_least_0(f"{section}.Min", conntrack.min)
    found.at_least_0(f"{section}.TCPEstablishedTimeout", conntrack.tcp_established_timeout)
    found.at_least_0(f"{section}.TCPCloseWaitTimeout", conntrack.tcp_close_wait_timeout)
    found.at_least_0(f"{section}.UDPTimeout", conntrack.udp_timeout)
    found.at_least_0(f"{section}.UDPStreamTimeout", conntrack.udp_stream_timeout)
    score = config.oom_score_adj
    found.require(
        -1000 <= score <= 1000,
        "KubeProxyLinuxConfiguration.OOMScoreAdj",
        score,
        "must be within the range [-1000, 1000]",
    )


def _mode(mode: str, platform: str, found: _Findings) -> None:
    modes = WINDOWS_MODES if platform == "win32" else LINUX_MODES
    found.require(
        mode in {"", *modes},
        "Mode.ProxyMode",
        mode,
        f"must be {', '.join(modes)} or blank (blank means {modes[0]})",
    )


def _host_port(path: str, address: str, found: _Findings) -> None:
    if not address:
        return
    parts = split_host_port(address)
    if parts is None:
        found.invalid(path, address, "must be IP:port")
        return
    host, port = parts
    found.require(parse_ip(host) is not None, path, host, "must be a valid IP")
    sound = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535
    found.require(sound, path, port, "must be a valid port")


def _node_ports(addresses: tuple[str, ...], found: _Findings) -> None:
    for i, address in enumerate(addresses):
        sound = address in NODE_PORT_WORDS or parse_cidr(address) is not None
        found.require(sound, f"NodePortAddresses[{i}]", address, CIDR)


def _detect_local(config: KubeProxyConfiguration, platform: str, found: _Findings) -> None:
    mode, local = config.detect_local_mode, config.detect_local
    if mode not in {"", *LOCAL_MODES}:
        modes = ", ".join(f'"{known}"' for known in (*LOCAL_MODES, ""))
        found.errors.append(f'{KIND}.DetectLocalMode: Unsupported value: "{mode}": supported values: {modes}')
    elif mode == "BridgeInterface":
        _interface("DetectLocalConfiguration.InterfaceName", local.bridge_interface, platform, found)
    elif mode == "InterfaceNamePrefix":
        _interface("DetectLocalConfiguration.InterfacePrefix", local.interface_name_prefix, platform, found)
    elif mode == "ClusterCIDR" and config.cluster_cidr:
        path, cidrs = "DetectLocalConfiguration.ClusterCIDRs", config.cluster_cidr.split(",")
        if len(cidrs) > 2:
            found.invalid(path, cidrs, _PAIR)
            return
        parsed = [parse_cidr(cidr) for cidr in cidrs]
        for i, cidr in enumerate(parsed):
            found.require(cidr is not None, f"{path}[{i}]", cidrs[i], f"{CIDR} (e.g. 10.100.0.0/16)")
        if len(cidrs) == 2 and len({":" in cidr for cidr in parsed if cidr}) == 1 and None not in parsed:
            found.invalid(path, cidrs, _PAIR)


def _interface(path: str, name: str, platform: str, found: _Findings) -> None:
    """The name of an interface or its prefix: valid in Linux, and in a rule without quotes.

    The reference accepts any; iptables and nft then refuse all its rules.
    """
    if not name:
        found.invalid(path, name, "must not be empty")
    elif platform != "win32" and (
        len(name.encode(errors="replace")) > LONGEST_INTERFACE or not _INTERFACE.fullmatch(name)
    ):
        found.invalid(
            path, name, f"must be at most {LONGEST_INTERFACE} bytes without white space, quotes, '/' and ':'"
        )


def _logging(logging: Logging, *, alpha: bool, found: _Findings) -> None:
    """The rules of the logging section. `alpha`: whether LoggingAlphaOptions is on."""
    if logging.format not in {"text", "json"}:
        found.invalid("logging.format", logging.format, "Unsupported log format (text or json)")
    found.require(logging.flush_frequency > 0, "logging.flushFrequency", logging.flush_frequency, POSITIVE)
    most = 2**31 - 1
    found.require(logging.verbosity <= most, "logging.verbosity", logging.verbosity, f"Must be <= {most}")
    if logging.vmodule and logging.format != "text":
        found.forbidden("logging.vmodule", "Only supported for text log format")
    for i, item in enumerate(logging.vmodule):
        path = f"logging.vmodule[{i}]"
        if not item.file_pattern:
            found.errors.append(f"{KIND}.{path}: Required value: File pattern must not be empty")
        if set("=,") & set(item.file_pattern):
            found.invalid(path, item.file_pattern, "File pattern must not contain equal sign or comma")
        found.require(item.verbosity <= most, path, item.verbosity, f"Must be <= {most}")
    if alpha:
        return
    for name, routing in (("json", logging.options.json), ("text", logging.options.text)):
        if routing.split_stream:
            found.forbidden(f"logging.options.{name}.splitStream", "Feature LoggingAlphaOptions is disabled")
        if routing.info_buffer_size.bytes:
            found.forbidden(
                f"logging.options.{name}.infoBufferSize", "Feature LoggingAlphaOptions is disabled"
            )
