"""Delays new TCP connections to virtual servers while these are deleted.

When IPVS forgets a connection, it deletes the conntrack entry of that client port and front, even if it is of
a newer connection. IPVS remembers a connection for two minutes after its end, a client reuses its port after
one: what was opened through the rules of another mode meanwhile would be interrupted. So virtual servers are
deleted while there is no young connection. Clients that connect at that time send their SYN again after a
second.

The rules are a table of nf_tables that belongs to our socket: the kernel deletes it with the socket, however
this process ends.

Source: ip_vs_conn_drop_conntrack of net/netfilter/ipvs/ip_vs_nfct.c.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator
from typing import Final

from kubeproxy.machine.base import Machine
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Virtual
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.types import ADDRESS4, ADDRESS6, SERVICE
from kubeproxy.netlink.wire import attribute, nested

log = logging.getLogger(__name__)

TABLE: Final = "kube-proxy-hold"

_YOUNG_SECONDS = 0.5
"""Most young connections have ended by then."""

_FORGET_SECONDS = 1.0
"""The maximum time to wait: the kernel forgets connections gradually, and some not at all."""

_POLL_SECONDS = 0.02
_SET = "virtual-servers"
_RAW = -300
_TCP = bytes((ipvs.TCP,))
_FLAGS_OFFSET, _SYN, _SYN_FIN_RST_ACK = 13, b"\x02", b"\x17"
_DESTINATIONS = {4: (m.IP, ADDRESS4, 16), 16: (m.IP6, ADDRESS6, 24)}
"""By the length of addresses: family, type, offset in the header."""


@contextlib.contextmanager
def hold(machine: Machine, servers: Collection[Virtual]) -> Iterator[None]:
    """Drops SYN packets to these virtual servers until they have been deleted and forgotten.

    If the kernel cannot do that, nothing is done: young connections may be interrupted.

    Raises:
        OSError: the kernel has no nfnetlink, which IP sets need, too.
    """
    with NftKernel(machine) as kernel:
        known = frozenset(servers)
        held = _begin(kernel, known)
        if held:
            time.sleep(_YOUNG_SECONDS)
        yield
        deadline = time.monotonic() + _FORGET_SECONDS
        while held and time.monotonic() < deadline and ipvs.remembers(machine, known):
            time.sleep(_POLL_SECONDS)


def _begin(kernel: NftKernel, servers: Collection[Virtual]) -> bool:
    """Writes the rules; returns whether connections are delayed."""
    messages = [message for size in _DESTINATIONS for message in _table(servers, size)]
    try:
        kernel.commit(messages)
    except OSError as e:
        log.debug("New connections are not delayed while virtual servers are deleted: %(err)s", {"err": e})
        return False
    return bool(messages)


def _table(servers: Collection[Virtual], size: int) -> list[m.NftMessage]:
    """The rules for the virtual servers whose addresses have this length."""
    family, kind, offset = _DESTINATIONS[size]
    keys = [
        server.address + server.port.to_bytes(2) + bytes(2)
        for server in servers
        if server.protocol == ipvs.TCP and len(server.address) == size
    ]
    if not keys:
        return []
    table = m.TableName(family, TABLE)
    rule = (
        x.meta(0, x.META_L4PROTO),
        x.compare(0, _TCP),
        x.payload(0, x.TRANSPORT_HEADER, _FLAGS_OFFSET, 1),
        x.bitwise(0, _SYN_FIN_RST_ACK, b"\0"),
        x.compare(0, _SYN),
        x.payload(0, x.NETWORK_HEADER, offset, size),
        x.payload(size // 4, x.TRANSPORT_HEADER, 2, 2),
        x.lookup(_SET, 0),
        x.verdict(m.verdict(m.DROP)),
    )
    found = [
        m.add_table(table, "new connections wait while virtual servers are deleted", flags=m.OWNER),
        m.add_set(table, _SET, (kind, SERVICE)),
        *m.add_elements(table, _SET, [nested(1, nested(1, attribute(1, key))) for key in keys]),
    ]
    for name, hook in (("prerouting", m.PREROUTING), ("output", m.OUTPUT)):
        found += [
            m.add_chain(table, name, m.Hook("filter", hook, _RAW)),
            m.add_rule(table, name, *rule),
        ]
    return found
