"""Asks the kube-proxy that runs here: it answers from what it knows, without reading the cluster again."""

from http.client import HTTPConnection, HTTPException
from typing import Final
from urllib.parse import urlencode

import msgspec

from kubeproxy.answers.answer import Answer
from kubeproxy.linux.instance import connect_to_ask
from kubeproxy.machine.base import Machine

SECONDS: Final = 5.0
"""So long an answer is waited for."""


class RefusedQuestionError(Exception):
    """The daemon says what is wrong with the question."""


class _DaemonConnection(HTTPConnection):
    """A connection to the daemon's socket."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._machine = machine

    def connect(self) -> None:
        self.sock = connect_to_ask(self._machine.socket, SECONDS)


def ask(machine: Machine, source: str, destination: str, interface: str) -> Answer | None:
    """Asks what becomes of a packet; None if nobody answers.

    Args:
        machine: this host.
        source: who sends it, as it was asked.
        destination: where to.
        interface: the interface it comes in by; "" to look it up.

    Raises:
        RefusedQuestionError: the question cannot be answered.
    """
    query = urlencode({"from": source, "to": destination, "interface": interface})
    connection = _DaemonConnection(machine)
    try:
        connection.request("GET", f"/explain?{query}")
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()
    if response.status == 400:
        raise RefusedQuestionError(body.decode(errors="replace"))
    if response.status != 200:
        return None
    try:
        return msgspec.json.decode(body, type=Answer)
    except msgspec.DecodeError:  # it is of another version
        return None
