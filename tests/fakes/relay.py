"""A relay that starts no process and carries nothing: it records the calls."""

import socket
from collections.abc import Mapping
from typing import Any

from kubeproxy.machine.fake import FakeMachine
from kubeproxy.relay.control import Relay
from kubeproxy.relay.values import Listener


class FakeRelay(Relay):
    """See `Relay`.

    Attributes:
        open_now: what listens now, by address, port and whether it is UDP.
        accepts: whether it accepts connections.
        settled: how often it was waited for, each with how many listeners there were.
    """

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        super().__init__(FakeMachine(), "fake", labels=labels)
        self._held: dict[int, tuple[Any, Listener]] = {}
        self._number = 0
        self.accepts = True
        self.settled: list[int] = []

    @property
    def open_now(self) -> dict[tuple[str, int, bool], Listener]:
        return {
            (*sock.getsockname()[:2], sock.type == socket.SOCK_DGRAM): listener
            for sock, listener in self._held.values()
        }

    def open(self, sock: Any, listener: Listener) -> int:
        self._number += 1
        self._held[self._number] = sock, listener
        return self._number

    def change(self, number: int, listener: Listener) -> None:
        self._held[number] = self._held[number][0], listener

    def close(self, number: int) -> None:
        self._held.pop(number)[0].close()

    def settle(self, seconds: float) -> bool:
        self.settled.append(len(self._held))
        return self.accepts

    def stop(self) -> None:
        for number in list(self._held):
            self.close(number)

    def join(self) -> None:
        pass
