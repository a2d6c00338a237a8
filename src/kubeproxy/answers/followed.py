"""The open connections of a flow, from connection tracking, with their endpoints."""

import socket
from collections import Counter
from collections.abc import Collection
from typing import Final

from kubeproxy import protocols
from kubeproxy.answers.answer import Answer
from kubeproxy.answers.reasons import why
from kubeproxy.answers.seen import Followed, OpenFlow
from kubeproxy.api.addresses import IPV4, family_of, join, pack, unpack
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import conntrack

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
    family = socket.AF_INET if family_of(answer.destination) == IPV4 else socket.AF_INET6
    place = pack(answer.destination) + answer.port.to_bytes(2)
    sources = {answer.source} if answer.interface else {answer.source, *local_addresses}
    clients = {pack(address) for address in sources}
    reached = {join(each.address, each.port) for each in answer.endpoints}
    found: list[OpenFlow] = []
    count: Counter[str] = Counter()
    more = False
    try:
        for flow in conntrack.flows(machine, family, protocols.NUMBERS[answer.protocol], destination=place):
            client = flow.client
            if flow.destination != place or client[:-2] not in clients or flow.state in _OVER:
                continue
            endpoint = _shown(flow.source)
            count[endpoint] += 1
            if len(found) < MOST:
                found.append(OpenFlow(_shown(client), endpoint, flow.state, endpoint in reached))
            else:
                more = True
    except OSError as e:
        return Followed(cannot=f"connection tracking cannot be read: {why(machine, e)}")
    return Followed(tuple(found), dict(count.most_common()), more)


def _shown(place: bytes) -> str:
    return join(unpack(place[:-2]), int.from_bytes(place[-2:]))
