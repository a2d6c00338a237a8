"""Tries to connect to endpoints and fronts over TCP, in parallel, with limits, and closes each connection."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Final

from kubeproxy.api.addresses import IPV4, family_of
from kubeproxy.insight.doctor.facts import Probes
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import FORWARD, Front, Key, ServicePlan

MOST_ENDPOINTS: Final = 256
MOST_FRONTS: Final = 128
AT_ONCE: Final = 256
PATIENCE_SECONDS: Final = 2.0
"""For each connection, so that the second SYN, after 1 s, may be answered."""

TIMED_OUT: Final = "no answer"


async def run(machine: Machine, plans: Sequence[ServicePlan], *, fronts: bool) -> Probes:
    """Tries the endpoints of plans, a few of each Service first.

    Args:
        machine: this host.
        plans: the plans.
        fronts: try the ClusterIPs, too, of Services whose endpoints accepted connections.
    """
    services: dict[tuple[str, int], dict[Key, None]] = {}
    for plan in plans:
        for port in plan.ports:
            if port.protocol == "TCP":
                for endpoint in port.endpoints:
                    services.setdefault((endpoint.address, endpoint.port), {})[plan.key] = None
    chosen = list(_fairly(plans, MOST_ENDPOINTS))
    gate = asyncio.Semaphore(AT_ONCE)
    seen = await asyncio.gather(*(_connect(machine, gate, *place) for place in chosen))
    endpoints = dict(zip(chosen, seen, strict=True))
    failing = {key for place, error in endpoints.items() if error for key in services[place]}
    working = {key for place in endpoints for key in services[place]} - failing
    asked = [front for front in _fronts(plans) if front[0] in working][:MOST_FRONTS] if fronts else []
    answers = await asyncio.gather(*(_connect(machine, gate, front[0], front[2]) for _, front in asked))
    return Probes(
        endpoints,
        dict(zip(asked, answers, strict=True)),
        {place: tuple(keys) for place, keys in services.items()},
        len(services) - len(chosen),
    )


def _fairly(plans: Sequence[ServicePlan], most: int) -> Iterable[tuple[str, int]]:
    """The first endpoint of each Service, then the second of each, and so on."""
    queues = [
        [(e.address, e.port) for port in plan.ports if port.protocol == "TCP" for e in port.endpoints]
        for plan in plans
    ]
    found: dict[tuple[str, int], None] = {}
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue):
                found[queue[turn]] = None
                if len(found) == most:
                    return found
    return found


def _fronts(plans: Iterable[ServicePlan]) -> Iterable[tuple[Key, Front]]:
    for plan in plans:
        for port in plan.ports:
            if port.protocol == "TCP" and port.cluster_ip and port.internal_action == FORWARD:
                yield plan.key, (port.cluster_ip, port.protocol, port.port)


async def _connect(machine: Machine, gate: asyncio.Semaphore, address: str, port: int) -> str:
    """Tries a connection; returns "" if it is there, else what is wrong."""
    async with gate:
        family = socket.AF_INET if family_of(address) == IPV4 else socket.AF_INET6
        try:
            with machine.socket(family, socket.SOCK_STREAM) as client:
                client.setblocking(False)
                await asyncio.wait_for(
                    asyncio.get_running_loop().sock_connect(client, (address, port)), PATIENCE_SECONDS
                )
        except TimeoutError:
            return TIMED_OUT
        except OSError as e:
            return errno.errorcode.get(e.errno or 0, "") and os.strerror(e.errno or 0)
        return ""
