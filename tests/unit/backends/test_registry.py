"""Modes by name."""

from types import ModuleType

import pytest

from kubeproxy import backends
from kubeproxy.backends.base import UnsupportedError


def test_a_mode_there_is() -> None:
    mode = backends.load("iptables")
    assert isinstance(mode, ModuleType)
    assert callable(mode.open_driver)


def test_a_mode_there_is_not_is_told_with_those_there_are() -> None:
    with pytest.raises(
        UnsupportedError, match=r"proxy mode carrier-pigeon is not available; available: .*iptables"
    ):
        backends.load("carrier-pigeon")


def test_no_mode_replaces_itself() -> None:
    assert "nftables" in backends.replaced_by("iptables")
    assert backends.replaced_by("carrier-pigeon") == ()


def test_what_the_kernel_does_not_tell_may_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from kubeproxy.backends.nftables import cleanup

    def fails() -> bool:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(cleanup, "serves", fails)
    assert backends.serves("nftables")
    assert "Cannot read whether rules of nftables mode are in the kernel" in caplog.text
