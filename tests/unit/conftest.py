"""Whole daemons run in unit tests, too, with backends that are none: what else of them would touch this machine is kept off."""

import pytest

from kubeproxy import sysctls
from kubeproxy.netlink import conntrack


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel settings stay as they are, and the table of tracked flows looks empty; tests of these bring their own."""
    monkeypatch.setattr(sysctls, "apply", lambda *_: [])
    monkeypatch.setattr(conntrack, "flows", lambda *_, **__: iter(()))
