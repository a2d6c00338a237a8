"""sd_notify(3) as a service manager receives it."""

import secrets
import socket
from pathlib import Path

import pytest

from kubeproxy.notify import notify


def test_a_manager_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notify("READY=1")
        notify("STATUS=ok\nSTOPPING=1")
        assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"STATUS=ok\nSTOPPING=1"


def test_a_manager_in_the_abstract_namespace_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"kubeproxy-test-{secrets.token_hex(8)}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("value", [None, "", "/nowhere/at/all", "@nobody-listens-here", "x" * 500])
def test_without_a_manager_nothing_happens(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    notify("READY=1")


def test_a_manager_that_does_not_read_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        for _ in range(10_000):
            notify("STATUS=again")
        assert manager.recv(100) == b"STATUS=again"
