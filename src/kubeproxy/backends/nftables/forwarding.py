"""Finds chains of other programs that drop forwarded packets by default: Docker sets that policy of FORWARD.

A packet is accepted only if all chains at its hook accept it. Our table cannot accept it for the chain of
another table, so traffic to endpoints is lost unless that chain has a rule for it. The reference has the same
limitation in this mode.
"""

import struct
from collections.abc import Iterator
from socket import AF_INET, AF_INET6

from kubeproxy.api.addresses import IPV4, Family
from kubeproxy.linux import xtables
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import DROP, FORWARD, GETCHAIN, IP, IP6

_INET = 1


def dropping(machine: Machine, kernel: NftKernel, family: Family) -> Iterator[str]:
    """The chains that drop a family's forwarded packets by default.

    Raises:
        OSError: the kernel refuses.
    """
    own = IP if family == IPV4 else IP6
    for number, name in (own, "ip" if family == IPV4 else "ip6"), (_INET, "inet"):
        for body in kernel.dump_all(GETCHAIN, number):
            found = wire.attributes(body)
            if 4 not in found or 5 not in found or wire.string(found[7]) != "filter":
                continue
            (hook,) = struct.unpack(">I", wire.attributes(found[4])[1])
            if hook == FORWARD and int.from_bytes(found[5]) == DROP:
                yield f"chain {wire.string(found[3])} of nftables table {name} {wire.string(found[1])}"
    try:
        with machine.net("ip_tables_names" if family == IPV4 else "ip6_tables_names") as file:
            there = file.read().decode().split()
    except FileNotFoundError:
        return
    # A table that is not there is not asked for: that would create it.
    if "filter" in there and xtables.drops_forwarded(machine, AF_INET if family == IPV4 else AF_INET6):
        yield "chain FORWARD of the legacy iptables table filter"
