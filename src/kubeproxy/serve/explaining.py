"""Answers questions of commands from what the daemon knows and has observed: no list is read for it.

/explain: the verdict on a packet. /observed: what the daemon has measured. /sockets: those of the relay under
each IP family; only this process knows which of them is for which Service port. /traffic: what the relay of
an IP family has counted since the answer whose token is given. /flows: the clients of a front that have an
endpoint now, from that relay.

The server listens on a Unix socket with an abstract name, which belongs to the network namespace as the
rules do. It answers processes that run as root or as the user of the daemon, and no other.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import msgspec

from kubeproxy.backends.relayed import Counting
from kubeproxy.linux.instance import ANSWERS, is_trusted, listen_for_questions
from kubeproxy.machine.base import Machine
from kubeproxy.serve.http import Door
from kubeproxy.serve.message import HTTPRequest, HTTPResponse, router, text

if TYPE_CHECKING:
    from kubeproxy.answers.observed import Observed
    from kubeproxy.answers.snapshot import Snapshot

log = logging.getLogger(__name__)

_NO_RELAY: Final = text("no relay carries connections of this family", 404)

MOST_ASKING: Final = 16
"""So many commands may ask at a time."""


async def serve(
    machine: Machine, snapshot: Callable[[], "Snapshot"], observed: Callable[[], "Observed"]
) -> None:
    """Serves until it is cancelled.

    Args:
        machine: the host.
        snapshot: what is known of the cluster now.
        observed: what the daemon has observed so far.
    """
    try:
        listening = listen_for_questions(machine.socket)
    except OSError as e:
        log.info(
            "Commands read the cluster themselves: cannot listen on @%(socket)s: %(err)s",
            {"socket": ANSWERS[1:], "err": e},
        )
        return

    async def explain(request: HTTPRequest) -> HTTPResponse:
        return await _explain(request, snapshot(), machine)

    def observations(_: HTTPRequest) -> HTTPResponse:
        return _json(observed())

    async def sockets(_: HTTPRequest) -> HTTPResponse:
        known = snapshot()
        return _json({node.family: known.sockets_of(node.family) for node in known.nodes})

    async def traffic(request: HTTPRequest) -> HTTPResponse:
        asked = _asked(request)
        driver = _counting(snapshot(), asked)
        if driver is None:
            return _NO_RELAY
        return _json(await asyncio.to_thread(driver.traffic, asked.get("token", "")))

    async def flows(request: HTTPRequest) -> HTTPResponse:
        asked = _asked(request)
        driver = _counting(snapshot(), asked)
        if driver is None:
            return _NO_RELAY
        try:
            front, most = (asked["address"], int(asked["port"])), int(asked["most"])
            clients = tuple(filter(None, asked.get("clients", "").split(",")))
            group = asked["group"]
        except (KeyError, ValueError) as e:
            return text(f"group, address, port and most are needed: {e}", 400)
        return _json(await asyncio.to_thread(driver.flows, group, front, clients, most))

    routes = router(
        {
            "GET /explain": explain,
            "GET /observed": observations,
            "GET /sockets": sockets,
            "GET /traffic": traffic,
            "GET /flows": flows,
        }
    )
    listener = await Door(MOST_ASKING).open(routes, listening, admits=is_trusted)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        listener.close()


async def _explain(request: HTTPRequest, snapshot: "Snapshot", machine: Machine) -> HTTPResponse:
    from kubeproxy.answers.asking import QuestionError, ask

    asked = _asked(request)
    try:
        found = await ask(
            snapshot,
            machine,
            asked.get("from", ""),
            asked.get("to", ""),
            asked.get("interface", ""),
            addresses=asked["addresses"].split(",") if "addresses" in asked else (),
        )
    except QuestionError as e:
        return text(str(e), 400)
    return _json(found)


def _asked(request: HTTPRequest) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.query).items()}


def _counting(snapshot: "Snapshot", asked: Mapping[str, str]) -> Counting | None:
    """The driver of a family, if its relay counts."""
    family = asked.get("family")
    return next(
        (each for name, each in snapshot.drivers.items() if name == family and isinstance(each, Counting)),
        None,
    )


def _json(found: object) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(found), content_type="application/json")
