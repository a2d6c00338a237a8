"""Asks the kube-proxy that runs here: it answers from what it knows, without reading the cluster again."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar
from urllib.parse import urlencode

import msgspec

from kubeproxy.answers.answer import Answer
from kubeproxy.answers.observed import Observed
from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.relayed import RelaySocket
from kubeproxy.linux.instance import connect_to_ask
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key
from kubeproxy.model.silence import Address
from kubeproxy.relay.traffic import TrafficReport
from kubeproxy.relay.values import CarriedFlow, Target

SECONDS: Final = 5.0
"""So long an answer is waited for."""

_ANSWERED, _WRONG = 200, 400
_PART_BYTES: Final = 1 << 16

_T = TypeVar("_T")


class RefusedQuestionError(Exception):
    """The daemon refused the question; the message has the reason."""


def ask(
    machine: Machine, source: str, destination: str, interface: str, addresses: Sequence[str] = ()
) -> Answer | None:
    """Asks the daemon for the verdict on a packet; None if no daemon answers.

    Args:
        machine: this host.
        source: who sends it, as it was asked.
        destination: where to.
        interface: the interface it comes in by; "" to look it up.
        addresses: the addresses of the source, if it is a Pod.

    Raises:
        RefusedQuestionError: the question cannot be answered.
    """
    asked = {"from": source, "to": destination, "interface": interface}
    query = urlencode({**asked, "addresses": ",".join(addresses)} if addresses else asked)
    return _ask(machine, f"/explain?{query}", Answer)


def observed(machine: Machine) -> Observed | None:
    """What the daemon on this host has observed; None if no daemon answers."""
    return _ask(machine, "/observed", Observed)


def silent(machine: Machine) -> dict[Key, tuple[Address, ...]]:
    """The endpoints of each Service that the daemon has left out because they do not answer."""
    found = observed(machine)
    left_out: dict[Key, list[Address]] = {}
    for each in sorted(found.silent if found is not None else (), key=lambda each: -each.seconds):
        if not each.on_trial:
            left_out.setdefault((each.namespace, each.name), []).append((each.address, each.endpoint_port))
    return {key: tuple(dict.fromkeys(addresses)) for key, addresses in left_out.items()}


def full(machine: Machine) -> dict[Key, frozenset[tuple[str, Address]]]:
    """The near endpoints of each Service that are full for the daemon, each with the name of the port."""
    found = observed(machine)
    result: dict[Key, set[tuple[str, Address]]] = {}
    for each in found.full if found is not None else ():
        base = f"{each.namespace}/{each.name}"
        port = f"{base}:{each.port}" if each.port else base
        at = each.address, each.endpoint_port
        result.setdefault((each.namespace, each.name), set()).add((port, at))
    return {key: frozenset(endpoints) for key, endpoints in result.items()}


def sockets(machine: Machine) -> Mapping[Family, Sequence[RelaySocket]] | None:
    """The sockets of the daemon's relay under each IP family; None if it does not say.

    There are none where no daemon runs.
    """
    if machine.holder() is None:
        return {}
    return _ask(machine, "/sockets", dict[Family, list[RelaySocket]])


def traffic(machine: Machine, family: Family, token: str) -> TrafficReport:
    """What the daemon's relay of a family has counted since its report with a token.

    Raises:
        SyncError: no daemon answers, or it has no relay that counts.
    """
    found = _ask(machine, f"/traffic?{urlencode({'family': family, 'token': token})}", TrafficReport)
    if found is None:
        raise SyncError("the kube-proxy whose relay counts them does not answer")
    return found


def flows(
    machine: Machine, family: Family, group: str, front: Target, clients: Sequence[str], most: int
) -> list[CarriedFlow]:
    """The clients of a front that the daemon's relay of a family has connected to an endpoint.

    Args:
        machine: this host.
        family: the family.
        group: the Service port, see `relayed.group_of`.
        front: the address and port that they connected to.
        clients: their addresses.
        most: so many are listed.

    Raises:
        SyncError: no daemon answers, or it has no relay.
    """
    query = urlencode(
        {
            "family": family,
            "group": group,
            "address": front[0],
            "port": front[1],
            "clients": ",".join(clients),
            "most": most,
        }
    )
    found = _ask(machine, f"/flows?{query}", list[CarriedFlow])
    if found is None:
        raise SyncError("the kube-proxy whose relay has them does not answer")
    return found


def _ask(machine: Machine, path: str, kind: type[_T]) -> _T | None:
    """What the daemon answers; None if there is none, or it is of a version that answers otherwise.

    Raises:
        RefusedQuestionError: the question cannot be answered.
    """
    try:
        status, body = _get(machine, path)
    except (OSError, ValueError, IndexError):
        return None
    if status == _WRONG:
        raise RefusedQuestionError(body.decode(errors="replace"))
    if status != _ANSWERED:
        return None
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError:
        return None


def _get(machine: Machine, path: str) -> tuple[int, bytes]:
    """The status and body of an HTTP response.

    The client of Python's library is not used, because its import takes longer than the answer.

    Raises:
        OSError: there is no daemon, or it does not answer.
        ValueError, IndexError: what it answers is not HTTP.
    """
    received = bytearray()
    with connect_to_ask(machine.socket, SECONDS) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        while part := connection.recv(_PART_BYTES):
            received += part
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body
