"""The open connections of a flow with their endpoints, from connection tracking or from a relay."""

import socket
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from kubeproxy import protocols
from kubeproxy.answers.answer import Answer
from kubeproxy.answers.reasons import why
from kubeproxy.answers.seen import Followed, OpenFlow
from kubeproxy.api.addresses import IPV4, family_of, join, pack, unpack
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import conntrack
from kubeproxy.relay.values import CarriedFlow

MOST: Final = 10_000
"""So many connections are listed."""

_OVER: Final = frozenset({"TIME_WAIT", "CLOSE"})


def follow(machine: Machine, answer: Answer, local_addresses: Collection[str] = ()) -> Followed:
    """Lists the open connections of the flow of an answered question.

    Args:
        machine: this host.
        answer: the answer; its source is a client, or this host.
        local_addresses: the addresses of this host, any of which its own processes may use.
    """
    try:
        return _followed(answer, _tracked(machine, answer, sources(answer, local_addresses)))
    except OSError as e:
        return Followed(cannot=f"connection tracking cannot be read: {why(machine, e)}")


def of_relay(answer: Answer, carried: Iterable[CarriedFlow]) -> Followed:
    """The same from what a relay carries.

    Args:
        answer: the answer.
        carried: the clients of its destination, one more than `MOST` at most.
    """
    tcp = answer.protocol == "TCP"
    return _followed(
        answer,
        (
            (join(*each.client), join(*each.target), ("ESTABLISHED" if each.connected else "SYN_SENT") * tcp)
            for each in carried
        ),
    )


def sources(answer: Answer, local_addresses: Collection[str]) -> set[str]:
    """The addresses that clients of an answered question may have."""
    return {answer.source} if answer.interface else {answer.source, *local_addresses}


def _tracked(machine: Machine, answer: Answer, sources: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Client, endpoint and state of each connection that is tracked."""
    family = socket.AF_INET if family_of(answer.destination) == IPV4 else socket.AF_INET6
    place = pack(answer.destination) + answer.port.to_bytes(2)
    clients = {pack(address) for address in sources}
    for flow in conntrack.flows(machine, family, protocols.NUMBERS[answer.protocol], destination=place):
        client = flow.client
        if flow.destination == place and client[:-2] in clients and flow.state not in _OVER:
            yield _shown(client), _shown(flow.source), flow.state


def _followed(answer: Answer, flows: Iterable[tuple[str, str, str]]) -> Followed:
    reached = {join(each.address, each.port) for each in answer.endpoints}
    found: list[OpenFlow] = []
    count: Counter[str] = Counter()
    for client, endpoint, state in flows:
        count[endpoint] += 1
        if len(found) < MOST:
            found.append(OpenFlow(client, endpoint, state, endpoint in reached))
    return Followed(tuple(found), dict(count.most_common()), count.total() > len(found))


def _shown(place: bytes) -> str:
    return join(unpack(place[:-2]), int.from_bytes(place[-2:]))
