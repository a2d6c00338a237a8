"""Parts of iptables rules that several modes have, spelled as `iptables-save` prints them."""

from kubeproxy.api.addresses import IPV4, Family, is_everything
from kubeproxy.model.node import LocalTraffic


def host(family: Family) -> str:
    """The length of the prefix that is one address."""
    return "/32" if family == IPV4 else "/128"


def unreachable(family: Family) -> str:
    """The ICMP message by which packets are rejected."""
    return "icmp-port-unreachable" if family == IPV4 else "icmp6-port-unreachable"


def from_local_pod(by: LocalTraffic | None) -> str | None:
    """Matches packets of local Pods; None where it is not known which Pods are local."""
    if by is None:
        return None
    if by.by == "range":
        return "" if is_everything(by.value) else f"-s {by.value} "
    return f"-i {_interface(by)} "


def not_from_local_pod(by: LocalTraffic | None) -> tuple[str, str] | None:
    """Matches all other packets: the text before -d, and after it; None if there are none or not known."""
    if by is None or (by.by == "range" and is_everything(by.value)):
        return None
    return (f"! -s {by.value} ", "") if by.by == "range" else ("", f"! -i {_interface(by)} ")


def _interface(by: LocalTraffic) -> str:
    return f"{by.value}+" if by.by == "prefix" else by.value
