"""Who holds a network namespace, told by the kernel; with a name of the test's own."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kubeproxy.linux import instance
from kubeproxy.linux.instance import HeldError, Holder, Instance, acquire
from tests.machines import MACHINE

_HOLD = """
import socket, sys
held = socket.socket(socket.AF_UNIX)
held.bind(chr(0) + sys.argv[1])
held.listen(0)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"kube-proxy/test/{os.getpid()}"
    monkeypatch.setattr(instance, "NAME", f"\0{name}")
    return name


@pytest.fixture
def held() -> Iterator[Instance]:
    mine = acquire(MACHINE.socket, 0)
    yield mine
    mine.release()


def other(name: str) -> subprocess.Popen[str]:
    """A process that holds the name."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_who_holds_it_is_named(held: Instance) -> None:
    with pytest.raises(
        HeldError, match=rf"another kube-proxy \(process {os.getpid()}\) runs in this network"
    ):
        acquire(MACHINE.socket, 0)
    assert held.fileno() >= 0


def test_it_is_released_by_whoever_held_it(held: Instance) -> None:
    held.release()
    acquire(MACHINE.socket, 0).release()


def test_however_the_process_ends_it_is_released(name: str) -> None:
    with other(name) as process:
        with pytest.raises(HeldError) as caught:
            acquire(MACHINE.socket, 0)
        assert caught.value.holder == Holder(process.pid, os.geteuid())
        process.kill()
        process.wait()
        acquire(MACHINE.socket, 0).release()


def test_one_that_is_ending_is_waited_for(held: Instance) -> None:
    told: list[Holder] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 3:
            held.release()

    mine = acquire(MACHINE.socket, 10, waiting=told.append, clock=lambda: now, sleep=sleep)
    mine.release()
    assert told == [Holder(os.getpid(), os.geteuid())], "once"
    assert 3 < now < 4


def test_the_wait_has_an_end(held: Instance) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    with pytest.raises(HeldError):
        acquire(MACHINE.socket, 10, clock=lambda: now, sleep=sleep)
    assert 9.5 < now < 11
    assert held.fileno() >= 0


def test_a_thousand_questions_are_answered(held: Instance) -> None:
    for _ in range(10_000):
        with pytest.raises(HeldError, match=f"process {os.getpid()}"):
            acquire(MACHINE.socket, 0)
        held.answer()


def test_who_never_answers_is_no_kube_proxy(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its queue is full, so that not even the kernel answers for it."""
    with other(name) as process:
        with pytest.raises(HeldError):
            acquire(MACHINE.socket, 0)
        assert acquire(MACHINE.socket, 0).fileno() == -1
        assert "of user unknown, which cannot be a kube-proxy" in caplog.text
        process.kill()


def test_another_user_cannot_keep_it_from_starting(
    monkeypatch: pytest.MonkeyPatch, held: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    assert held.fileno() >= 0
    monkeypatch.setattr(instance, "holder", lambda _: Holder(5, 65534))
    assert acquire(MACHINE.socket, 0).fileno() == -1
    assert "is held by process 5 of user 65534, which cannot be a kube-proxy" in caplog.text


def test_where_there_are_no_such_sockets_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance, "NAME", "/nowhere/at/all")
    mine = acquire(MACHINE.socket, 0)
    assert mine.fileno() == -1
    assert "another kube-proxy would not be detected: [Errno 2]" in caplog.text
