"""The pieces a Service consists of in the kernel, each of which the kernel can refuse by itself."""

import contextlib
import errno
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from kubeproxy import protocols
from kubeproxy.api.addresses import join, unpack
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.compile import ServiceServers
from kubeproxy.backends.ipvs.frame import OUT
from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange
from kubeproxy.backends.ipvs.order import is_ordered
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Real, Virtual

_GONE = frozenset({errno.ESRCH, errno.ENOENT})


class Behind(NamedTuple):
    """A real server of a virtual server."""

    virtual: Virtual
    real: Real


Piece = Virtual | Behind | tuple[str, Element] | bytes | str
"""A virtual server, a real server, an element of a set by the set's short name, an address of kube-ipvs0, or
a rule of KUBE-IPVS-OUT-FILTER."""

Refusals = Mapping[Piece, Exception]
"""Pieces that the kernel refused, each with its error."""


def change_servers(kernel: IPVSKernel, changes: Sequence[ServerChange]) -> dict[Piece, Exception]:
    """Makes changes; returns what was refused.

    What is to be deleted and does not exist is not an error; the real servers of a virtual server that was
    refused are not listed.
    """
    found: dict[Piece, Exception] = {}
    if any(c.settings is not None and is_ordered(c.settings) for c in changes):
        kernel.continue_moved()
    deleted = {(c.virtual, c.real) for c in changes if c.verb == "delete" and c.real is not None}
    again = any(c.verb == "add" and (c.virtual, c.real) in deleted for c in changes)
    with kernel.keeping_connections() if again else contextlib.nullcontext():
        refused = kernel.change_servers(changes)
    for at, error in refused.items():
        verb, virtual, settings, real, *_ = changes[at]
        if virtual in found or (verb == "delete" and error.errno in _GONE):
            continue
        if settings is not None and error.errno == errno.ENOENT:
            name = settings.scheduler
            found[virtual] = OSError(error.errno, f"the kernel has no scheduler {name} (module ip_vs_{name})")
        else:
            found[virtual if real is None else Behind(virtual, real)] = error
    return found


def refused_of(compiled: ServiceServers, refused: Refusals) -> list[str]:
    """The messages for what was refused of a Service; none if nothing was."""
    servers = (
        Behind(virtual, real) for virtual, target in compiled.virtuals.items() for real in target.reals
    )
    addresses = (element.address for name, element in compiled.entries if name == names.ADDRESSES)
    pieces: Iterable[Piece] = chain(compiled.virtuals, servers, compiled.entries, addresses, compiled.drops)
    return [f"{described(piece)}: {refused[piece]}" for piece in pieces if piece in refused]


def described(piece: Piece) -> str:
    """A piece as text for messages."""
    match piece:
        case Virtual():
            return (
                f"virtual server {protocols.NAMES[piece.protocol]} {join(unpack(piece.address), piece.port)}"
            )
        case Behind(virtual, real):
            return f"real server {join(unpack(real.address), real.port)} of {described(virtual)}"
        case bytes():
            return f"address {unpack(piece)} of {names.INTERFACE}"
        case str():
            return f"rule {piece} of chain {OUT[1]}"
    name, element = piece
    parts: Iterable[str] = (
        *([unpack(element.address)] if element.address else []),
        *([str(element.port)] if element.port else []),
        *([unpack(element.other)] if element.other else []),
    )
    return f"element {','.join(parts)} of set {name}"
