"""The programs, one file for each kind.

    connect    connect4, connect6, sendmsg4, sendmsg6: from a front to an endpoint
    restore    recvmsg4, recvmsg6, getpeername4, getpeername6: from an endpoint back to the front
    context    what they have in common: the address in the context, for each family

IPv4 addresses reach sockets of IPv6 as ::ffff:a.b.c.d. The programs of IPv4 are therefore attached to hooks
of IPv6, too, in a form that passes all other addresses. So the two families need nothing of each other.
"""

from collections.abc import Mapping

from msgspec import Struct

from kubeproxy.api.addresses import IPV4, Family
from kubeproxy.backends.ebpf.programs import connect, restore
from kubeproxy.backends.ebpf.programs.context import MAPPED, NATIVE4, NATIVE6, Options
from kubeproxy.linux.bpf.assembler import Assembled
from kubeproxy.linux.bpf.programs import Attach


class Hooked(Struct, frozen=True, gc=False):
    """A program and the hook it is for."""

    attach: Attach
    program: Assembled


def of_family(family: Family, options: Options) -> Mapping[str, Hooked]:
    """The programs of a family, by name."""
    if family == IPV4:
        made = [
            Hooked("connect4", connect.program("connect4", NATIVE4, options)),
            Hooked("sendmsg4", connect.program("sendmsg4", NATIVE4, options, datagrams=True)),
            Hooked("recvmsg4", restore.program("recvmsg4", NATIVE4, options)),
            Hooked("getpeername4", restore.program("getpeer4", NATIVE4, options, connected=True)),
            Hooked("connect6", connect.program("connect4in6", MAPPED, options)),
            Hooked("recvmsg6", restore.program("recvmsg4in6", MAPPED, options)),
            Hooked("getpeername6", restore.program("getpeer4in6", MAPPED, options, connected=True)),
        ]
    else:
        made = [
            Hooked("connect6", connect.program("connect6", NATIVE6, options)),
            Hooked("sendmsg6", connect.program("sendmsg6", NATIVE6, options, datagrams=True)),
            Hooked("recvmsg6", restore.program("recvmsg6", NATIVE6, options)),
            Hooked("getpeername6", restore.program("getpeer6", NATIVE6, options, connected=True)),
        ]
    return {each.program.name.removeprefix("kp_"): each for each in made}
