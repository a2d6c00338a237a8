"""The small parts: descriptors, timers, headers, ports."""

import errno
import logging
import socket

import pytest

from kubeproxy.relay import sockets
from kubeproxy.relay.header import header
from kubeproxy.relay.loop import PollLoop
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.slots import Slots
from tests.machines import MACHINE


def test_slots_are_counted_and_those_who_wait_are_called_once() -> None:
    slots = Slots(10)
    called: list[str] = []
    assert slots.take(8)
    assert not slots.take(3)
    slots.when_free(lambda: called.append("one"))
    assert slots.wanted
    slots.give_back(2)
    slots.give_back(2)
    assert called == ["one"]
    assert not slots.wanted
    slots.reserve(7)
    assert not slots.take(1)


def test_timers_are_called_in_their_order_and_cancelled_ones_are_not() -> None:
    loop = PollLoop()
    called: list[int] = []
    loop.after(0.02, lambda: called.append(2))
    loop.after(0, lambda: called.append(1))
    loop.after(0.01, lambda: called.append(99)).cancel()
    while len(called) < 2:
        loop.turn()
    assert called == [1, 2]


def test_a_handler_that_fails_is_reported_and_the_others_go_on() -> None:
    failures: list[str] = []
    loop = PollLoop(lambda: failures.append("failed"))

    def fail() -> None:
        raise RuntimeError

    called: list[int] = []
    loop.after(0, fail)
    loop.after(0, lambda: called.append(1))
    while not called:
        loop.turn()
    assert failures == ["failed"]


def test_a_message_about_the_same_subject_is_not_repeated() -> None:
    said: list[str] = []
    shared = Shared(PollLoop(), lambda _, text: said.append(text), limit=1)
    for about in ("a", "a", "b", "a"):
        shared.report(logging.INFO, f"about {about}", about)
    assert said == ["about a", "about b"]
    assert shared.admit(1)
    assert not shared.admit(1)
    assert not shared.admit(1)
    shared.short(OSError(errno.EMFILE, "too many"))
    shared.short(OSError(errno.ECONNABORTED, "not of interest"))
    assert said[2:] == [
        "the limit of 1 descriptors is reached: new connections wait until others end",
        "new connections wait, retrying every second: the system lacks descriptors or memory: too many",
    ]


def test_the_header_of_ipv6_has_all_in_its_place() -> None:
    made = header(("2001:db8::1", 1), ("fd00::2", 2))
    assert made[:16] == b"\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24"
    assert made[16:48] == socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(
        socket.AF_INET6, "fd00::2"
    )
    assert made[48:] == b"\x00\x01\x00\x02"


@pytest.mark.parametrize("udp", [False, True])
def test_every_free_port_of_a_span_is_found(udp: bool) -> None:
    with sockets.bind(MACHINE, "127.0.0.1", (0, 0), udp=udp) as taken:
        port = taken.getsockname()[1]
        span = (port, port + 3 if port < 65530 else port)
        found = []
        refused = None
        while refused is None:
            try:
                found.append(sockets.bind(MACHINE, "127.0.0.1", span, udp=udp))
            except OSError as e:
                refused = e.errno
        ports = {sock.getsockname()[1] for sock in found}
        for sock in found:
            sock.close()
    assert refused == errno.EADDRINUSE
    assert port not in ports
    assert len(ports) == len(found) <= 3
