"""How a plan is made real: one package a proxy mode, each imported only when it is chosen."""

import logging
from collections.abc import Iterable
from importlib import import_module
from typing import Protocol

from kubeproxy.backends.base import ByPrograms, Driver, SyncError, UnsupportedError
from kubeproxy.backends.programs import VARIANTS
from kubeproxy.backends.variants import OtherVariant
from kubeproxy.model.node import NodeConfig

log = logging.getLogger(__name__)

_MODES = {
    "iptables": "kubeproxy.backends.iptables.mode",
    "nftables": "kubeproxy.backends.nftables.mode",
    "ipvs": "kubeproxy.backends.ipvs.mode",
    "userspace": "kubeproxy.backends.userspace.mode",
    "userspace-listen": "kubeproxy.backends.userspace.unprivileged",
}
_CLEANUPS = {
    "ipvs": "kubeproxy.backends.ipvs.cleanup",  # first: what it leaves of the chains it shares is iptables mode's
    "iptables": "kubeproxy.backends.iptables.cleanup",
    "nftables": "kubeproxy.backends.nftables.cleanup",
}
_REPLACES = {
    "iptables": ("nftables", "ipvs"),
    "nftables": ("ipvs", "iptables"),
    "ipvs": ("nftables", "iptables"),
    "userspace": ("ipvs", "iptables"),
}

_END_WITH_THE_PROCESS = {"userspace", "userspace-listen"}
"""Modes that carry connections themselves: what they left in the kernel serves nobody."""


class Mode(Protocol):
    """What a mode's module offers."""

    def open_driver(self, node: NodeConfig) -> Driver:
        """Makes the driver of a node's family and prepares the kernel for it.

        Raises:
            UnsupportedError: it cannot run here.
            SyncError: it cannot run now.
        """


def load(mode: str) -> Mode:
    """The module of a proxy mode.

    Raises:
        UnsupportedError: there is none.
    """
    if mode not in _MODES:
        raise UnsupportedError(f"proxy mode {mode} is not available; available: {', '.join(_MODES)}")
    return import_module(_MODES[mode])


def cleanup(*modes: str) -> None:
    """Removes what modes left in the kernel; all of them if none is named.

    Raises:
        SyncError: something was refused; all else is removed.
    """
    troubles = []
    for mode in modes or _CLEANUPS:
        try:
            import_module(_CLEANUPS[mode]).cleanup()
        except (OSError, SyncError) as e:
            troubles.append(f"rules of {mode} mode stay: {e}")
    if troubles:
        raise SyncError("; ".join(troubles))


def other_variants(mode: str, opened: Iterable[Driver]) -> list[OtherVariant]:
    """The variants of iptables that a mode's rules are not in; none for a mode that has no rules.

    Args:
        mode: the mode.
        opened: its backends.
    """
    if mode not in _REPLACES:
        return []
    used = {backend.variant for backend in opened if isinstance(backend, ByPrograms)}
    cleaners = [import_module(_CLEANUPS[each]).clean for each in ("ipvs", "iptables")]
    return [OtherVariant(variant, cleaners) for variant in VARIANTS if variant not in used]


def serves(mode: str) -> bool:
    """Whether the kernel serves Services by what an earlier run left, of this mode or of those it replaces.

    If the kernel does not tell, it does.
    """
    if mode in _END_WITH_THE_PROCESS:
        return False
    for name in (mode, *replaced_by(mode)):
        try:
            if import_module(_CLEANUPS[name]).serves():
                return True
        except (OSError, SyncError) as e:
            log.warning(
                "Cannot read whether rules of %s mode are in the kernel, assuming that they are: %s", name, e
            )
            return True
    return False


def replaced_by(mode: str) -> tuple[str, ...]:
    """The modes whose leftovers a mode cleans up when it works, as the reference does."""
    return _REPLACES.get(mode, ())
