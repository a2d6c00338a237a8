"""Modes whose drivers are a test's own."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from kubeproxy import backends
from kubeproxy.backends.base import Driver
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig


def open_by(patch: pytest.MonkeyPatch, driver: Callable[[Machine, NodeConfig], Driver]) -> None:
    """Every mode has drivers made by a function; all else about it stays."""
    real = backends.mode
    patch.setattr(backends, "mode", lambda name: replace(real(name), open=driver))
