"""The defaults of a configuration.

Plain defaults are given at the fields (`types`). Here are the ones that depend on other fields or on the
platform, and the rule that an empty value in the file means "not set": Go cannot distinguish the two, and
files written by kubeadm or by --write-config-to have many empty strings and zeros that must become defaults.
So a file has no way to turn a listener off as --healthz-port=0 does; here an address with port 0 turns it
off.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from kubeproxy import backends
from kubeproxy.api.addresses import IPV4, family_of, join
from kubeproxy.config.netparse import parse_ip, split_host_port
from kubeproxy.config.types import (
    IPVS,
    LINUX_MODES,
    WINDOWS_MODES,
    ClientConnection,
    IPTables,
    KubeProxyConfiguration,
    Logging,
    NFTables,
)

HEALTHZ_PORT: Final = 10256
METRICS_PORT: Final = 10249
NETWORK_VARIABLE: Final = "KUBE_NETWORK"
"""The environment variable that names the HNS network."""


def with_defaults(config: KubeProxyConfiguration) -> KubeProxyConfiguration:
    """Fills in what the file left empty, as the reference's v1alpha1 defaults do."""
    standard = KubeProxyConfiguration()
    bind = config.bind_address or standard.bind_address
    ipv4 = family_of(parse_ip(bind) or bind) == IPV4
    any_address, loopback = ("0.0.0.0", "127.0.0.1") if ipv4 else ("::", "::1")
    return without_zeros(
        replace(
            config,
            bind_address=bind,
            healthz_bind_address=_listener(config.healthz_bind_address or any_address, HEALTHZ_PORT),
            metrics_bind_address=_listener(config.metrics_bind_address or loopback, METRICS_PORT),
            config_sync_period=config.config_sync_period or standard.config_sync_period,
            logging=_filled(config.logging, Logging(), "format", "flush_frequency"),
            iptables=_filled(config.iptables, IPTables(), "sync_period"),
            ipvs=_filled(config.ipvs, IPVS(), "sync_period"),
            nftables=_filled(config.nftables, NFTables(), "sync_period"),
        )
    )


def without_zeros(config: KubeProxyConfiguration) -> KubeProxyConfiguration:
    """Fills in the fields whose zero means the default, in a file as well as by a flag."""
    return replace(
        config,
        client_connection=_filled(
            config.client_connection, ClientConnection(), "content_type", "qps", "burst"
        ),
        iptables=_filled(config.iptables, IPTables(), "min_sync_period"),
        ipvs=_filled(config.ipvs, IPVS(), "min_sync_period"),
        nftables=_filled(config.nftables, NFTables(), "min_sync_period"),
    )


def with_platform_defaults(
    config: KubeProxyConfiguration, platform: str, environment: Mapping[str, str] = os.environ
) -> KubeProxyConfiguration:
    """Sets what is not set: mode, way to detect local traffic, NodePort addresses, HNS network.

    Args:
        config: the configuration after flags.
        platform: `sys.platform`.
        environment: the environment, which may name the HNS network as the reference allows.
    """
    if platform == "win32":
        winkernel = replace(
            config.winkernel,
            network_name=config.winkernel.network_name or environment.get(NETWORK_VARIABLE, ""),
            root_hns_endpoint_name=config.winkernel.root_hns_endpoint_name or "cbr0",
        )
        return replace(config, mode=config.mode or WINDOWS_MODES[0], winkernel=winkernel)
    mode = config.mode or LINUX_MODES[0]
    addresses = config.node_port_addresses
    addresses = addresses or backends.mode(mode).node_port_addresses or addresses
    return replace(
        config,
        mode=mode,
        detect_local_mode=config.detect_local_mode or "ClusterCIDR",
        node_port_addresses=addresses,
    )


def with_port(address: str, port: int) -> str:
    """Adds a port to an address that has none. What is no address stays as it is, for `validate` to name."""
    if split_host_port(address) or parse_ip(address) is None:
        return address
    return join(address, port)


def _listener(address: str, port: int) -> str:
    """The address of a listener in a file: port 0 turns it off, since an empty text means the default."""
    parts = split_host_port(address)
    return "" if parts and parts[1] == "0" else with_port(address, port)


def _filled(section: Any, standard: Any, *names: str) -> Any:
    """Replaces the empty ones of the named fields by their defaults."""
    empty = {name: getattr(standard, name) for name in names if not getattr(section, name)}
    return replace(section, **empty) if empty else section


DEFAULTS: Final = with_defaults(KubeProxyConfiguration())
"""The configuration without any flag or file, before the platform's defaults."""
