"""Reads the rules of kube-proxy from the kernel, in whichever mode it wrote them. Nothing is changed.

IptablesRules of iptables mode and ipvs mode are the same for Kubernetes' kube-proxy and for this program. A
table of nftables mode that this program laid out is not the reference's, and is passed over.
"""

from collections.abc import Iterator
from socket import IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from typing import Final

from msgspec import Struct

from kubeproxy.api.addresses import IPV4, Family, unpack
from kubeproxy.backends import programs
from kubeproxy.backends.ipvs import describe
from kubeproxy.backends.ipvs import names as ipvs_names
from kubeproxy.backends.ipvs.kernel import LinuxIPVSKernel
from kubeproxy.backends.nftables import layout
from kubeproxy.insight.reference.conditions import Sets
from kubeproxy.insight.reference.route import Router, Server, Servers
from kubeproxy.insight.reference.rules import IptablesRules
from kubeproxy.insight.reference.table import NftRules
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.nft import objects
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import IP, IP6, TableName

_PROTOCOLS: Final = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp", IPPROTO_SCTP: "sctp"}


class KernelRules(Struct, frozen=True):
    """Rules of kube-proxy in the kernel.

    Attributes:
        what: which, e.g. "iptables (nf_tables)".
        router: evaluates them.
        bound: the addresses of Services that ipvs mode has on an interface.
    """

    what: str
    router: Router
    bound: tuple[str, ...] = ()


def find(machine: Machine, family: Family, local_addresses: tuple[str, ...]) -> list[KernelRules]:
    """The rules of kube-proxy of one family; empty if there are none.

    Args:
        machine: this host.
        family: the family.
        local_addresses: the addresses of the node.

    Raises:
        OSError: the kernel refused.
        SyncError: the iptables programs could not list their rules.
    """
    return [
        *_tables(machine, family, local_addresses),
        *_rules(machine, family, local_addresses),
    ]


def _tables(machine: Machine, family: Family, local_addresses: tuple[str, ...]) -> Iterator[KernelRules]:
    table = TableName(IP if family == IPV4 else IP6, layout.TABLE)
    with NftKernel(machine) as kernel:
        comment = objects.table_comment(kernel, table)
        if comment is not None and comment != layout.COMMENT:
            yield KernelRules("nftables", Router(NftRules(kernel, table, local_addresses), local_addresses))


def _rules(machine: Machine, family: Family, local_addresses: tuple[str, ...]) -> Iterator[KernelRules]:
    base = "iptables" if family == IPV4 else "ip6tables"
    for name, tables in programs.installed(machine):
        if not name.startswith(base):
            continue
        lines = list(tables.save())
        if not any(line.startswith("-A KUBE-SERVICES ") for line in lines):
            continue
        sets, servers, bound = _of_ipvs(machine, family)
        own = (*local_addresses, *bound)
        rules = IptablesRules(lines, own, sets)
        yield KernelRules(
            f"{'ipvs' if bound else 'iptables'} ({tables.variant})", Router(rules, own, servers), bound
        )


def _of_ipvs(machine: Machine, family: Family) -> tuple[Sets, Servers, tuple[str, ...]]:
    """The sets, virtual servers and addresses of ipvs mode; nothing where the kernel has no IPVS."""
    if not machine.interface(ipvs_names.INTERFACE):
        return {}, {}, ()
    try:
        kernel = LinuxIPVSKernel(machine, family)
    except OSError:
        return {}, {}, ()
    try:
        sets = {
            name: frozenset(tuple(describe.element(each).split(",")) for each in kernel.elements(name))
            for name in kernel.headers()
            if name.startswith("KUBE-")
        }
        settings = kernel.settings()
        servers = {
            (_PROTOCOLS[at.protocol], unpack(at.address), at.port): Server(
                tuple((unpack(real.address), real.port) for real, load in reals.items() if load.weight),
                settings[at].timeout if settings[at].flags & ipvs.PERSISTENT else 0,
            )
            for at, reals in kernel.servers().items()
        }
        return sets, servers, tuple(unpack(address) for address in kernel.addresses())
    finally:
        kernel.close()
