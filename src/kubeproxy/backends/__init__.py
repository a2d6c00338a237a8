"""How plans are programmed: one package for each proxy mode, imported only when it is chosen."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from kubeproxy.backends.base import ByPrograms, Driver, SyncError
from kubeproxy.backends.mode import Mode, unavailable

if TYPE_CHECKING:
    from kubeproxy.backends.programs import Tables, Variant
    from kubeproxy.backends.variants import OtherVariant
    from kubeproxy.config.types import KubeProxyConfiguration
    from kubeproxy.machine.base import Machine

log = logging.getLogger(__name__)

_MODULES = {
    "ebpf": "kubeproxy.backends.ebpf.mode",  # cleaned up first, before the rules that it is in front of
    "ipvs": "kubeproxy.backends.ipvs.mode",  # cleaned up before iptables mode, which owns the chains both have
    "iptables": "kubeproxy.backends.iptables.mode",
    "nftables": "kubeproxy.backends.nftables.mode",
    "userspace": "kubeproxy.backends.userspace.mode",
    "kernelspace": "kubeproxy.backends.kernelspace.mode",
    "userspace-listen": "kubeproxy.backends.userspace.unprivileged_mode",
}


def mode(name: str) -> Mode:
    """The mode of a name. If the name is not known, the value has the same methods, but cannot be opened."""
    if name not in _MODULES:
        return unavailable(name, _MODULES)
    found: Mode = import_module(_MODULES[name]).MODE
    return found


def cleanup(
    machine: "Machine",
    *names: str,
    config: "KubeProxyConfiguration | None" = None,
    platform: str = sys.platform,
) -> None:
    """Removes what modes left in the kernel; all of them if none is named.

    Args:
        machine: the host.
        names: the modes.
        config: the configuration, on which it depends what some modes left.
        platform: `sys.platform`; what modes of other platforms left is not there.

    Raises:
        SyncError: something was refused; all else is removed.
    """
    troubles = []
    for each in map(mode, names) if names else _modes():
        if platform not in each.platforms:
            continue
        try:
            if each.cleanup is not None:
                each.cleanup(machine)
            if each.clean_configured is not None and config is not None:
                each.clean_configured(machine, config)
        except (OSError, SyncError) as e:
            troubles.append(f"rules of {each.name} mode stay: {e}")
    if troubles:
        raise SyncError("; ".join(troubles))


def cleanup_variant(machine: "Machine", variant: "Variant") -> None:
    """Removes the rules that kube-proxies left in the tables of one variant of iptables, and nothing else.

    Raises:
        SyncError: something was refused, or the programs of the variant are missing; all else is removed.
    """
    from kubeproxy.backends.variants import OtherVariant

    OtherVariant(machine, variant, _cleaners()).cleanup()


def other_variants(machine: "Machine", chosen: Mode, opened: Iterable[Driver]) -> "list[OtherVariant]":
    """The variants of iptables that a mode's rules are not in; none for a mode that replaces no other.

    Args:
        machine: the host.
        chosen: the mode.
        opened: its drivers.
    """
    if not chosen.replaces:
        return []
    from kubeproxy.backends.programs import VARIANTS
    from kubeproxy.backends.variants import OtherVariant

    used = {driver.variant for driver in opened if isinstance(driver, ByPrograms)}
    return [OtherVariant(machine, variant, _cleaners()) for variant in VARIANTS if variant not in used]


def serves(machine: "Machine", chosen: Mode) -> bool:
    """Whether the kernel serves Services by what an earlier run left, of this mode or of those it replaces.

    If this cannot be determined, the result is True.
    """
    if not chosen.lasting:
        return False
    for each in (chosen, *map(mode, chosen.replaces)):
        try:
            if each.serves is not None and each.serves(machine):
                return True
        except (OSError, SyncError) as e:
            log.warning(
                "Cannot read whether rules of %(mode)s mode are in the kernel, assuming that they are: %(err)s",
                {"mode": each.name, "err": e},
            )
            return True
    return False


def _cleaners() -> "list[Callable[[Tables], int]]":
    """What removes the rules of each mode from tables of iptables."""
    return [each.clean_tables for each in _modes() if each.clean_tables is not None]


def _modes() -> Iterator[Mode]:
    """The modes of this platform."""
    return (found for found in map(mode, _MODULES) if sys.platform in found.platforms)
