"""Keeps the real servers of a virtual server with Maglev hashing in order, so that all nodes have one table.

The kernel fills the table of `mh` in turns, in the order of its list of real servers, the newest first: nodes
to which the same endpoints came in another order would have other tables. So they are kept sorted. A real
server that belongs before others is added, and these are deleted and added again behind it: the kernel keeps
what it knows of a deleted real server with its connections, and continues with it. Meanwhile
`net.ipv4.vs.expire_nodest_conn` is 0: a packet of such a connection is dropped, and the connection stays.

A real server that drains must not be in the table either. Weight 0 alone does not take it out, because the
table is made of the last weight that was not 0. So it is deleted and added with weight 0.

Source: ip_vs_mh_permutate, ip_vs_mh_populate of net/netfilter/ipvs/ip_vs_mh.c; __ip_vs_update_dest,
ip_vs_trash_get_dest of ip_vs_ctl.c.
"""

from collections.abc import Iterator, Mapping

from kubeproxy.backends.ipvs.compile import Target
from kubeproxy.backends.ipvs.kernel import ServerChange
from kubeproxy.backends.ipvs.schedulers import FALLBACK, MAGLEV
from kubeproxy.netlink.ipvs import Load, Real, Settings, Virtual


def is_ordered(settings: Settings) -> bool:
    """Whether the order of the real servers matters: of Services that ask for Maglev hashing."""
    return settings.scheduler == MAGLEV and bool(settings.flags & FALLBACK)


def is_sorted(there: Mapping[Real, Load], target: Target) -> bool:
    """Whether the real servers with a weight are in their order, in a list of the kernel."""
    return [real for real in reversed(list(there)) if there[real].weight] == list(target.reals)


def arranged(virtual: Virtual, there: Mapping[Real, Load], target: Target) -> Iterator[ServerChange]:
    """What brings the wanted real servers of a virtual server into their order.

    Args:
        virtual: the virtual server.
        there: its real servers in the kernel's order, the newest first.
        target: what it is to be.
    """
    wanted = target.weighted()
    held = [real for real in reversed(list(there)) if real in wanted]
    kept = 0
    for real, right in zip(held, wanted, strict=False):
        if real != right or not there[real].weight:
            break
        kept += 1
    for real in held[:kept]:
        if there[real].weight != wanted[real]:
            yield ServerChange("edit", virtual, real=real, weight=wanted[real])
    for real in held[kept:]:
        yield ServerChange("delete", virtual, real=real)
    for real in target.reals[kept:]:
        yield ServerChange("add", virtual, real=real, weight=wanted[real])
