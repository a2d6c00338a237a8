"""Kernel settings for connection tracking: how many connections, and how long each is remembered.

They are set once, before the first rule, in the network namespace of the program. A setting that has its
value already is not written, so a program without the permission to write works if another one, for example
`--init-only`, has set them.

All are below /proc/sys, the hash table's size included: the reference writes that one to /sys, which is
read-only in most containers. Services work without these settings, so one that cannot be written is only
logged.

Source: Documentation/networking/nf_conntrack-sysctl.rst.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Final

from kubeproxy.config.types import Conntrack
from kubeproxy.figures import Figure
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import conntrack

log = logging.getLogger(__name__)

FOLDER: Final = "net/netfilter"
MOST_BY_CORES: Final = 1 << 20
"""The limit of what maxPerCore sets, whatever the number of cores."""

_MAX: Final = "nf_conntrack_max"
_BUCKETS: Final = "nf_conntrack_buckets"
_ONLY_RAISED: Final = frozenset({_MAX, _BUCKETS})
"""Settings that are not lowered: a higher value was set on purpose (kubernetes/kubernetes#142035)."""


def wanted(settings: Conntrack, cores: int) -> Mapping[str, int]:
    """The values to set, by the setting's name below `FOLDER`; none for settings left to the kernel.

    Args:
        settings: the configuration.
        cores: how many processors the node has.
    """
    values: dict[str, int] = {}
    if settings.max_per_core > 0:
        by_cores = settings.max_per_core * cores
        most = MOST_BY_CORES if by_cores > MOST_BY_CORES else max(by_cores, settings.min)
        values[_MAX] = most
        values[_BUCKETS] = most // 4
    for name, seconds in (
        ("tcp_timeout_established", settings.tcp_established_timeout),
        ("tcp_timeout_close_wait", settings.tcp_close_wait_timeout),
        ("udp_timeout", settings.udp_timeout),
        ("udp_timeout_stream", settings.udp_stream_timeout),
    ):
        if seconds > 0:
            values[f"nf_conntrack_{name}"] = max(1, int(seconds))
    if settings.tcp_be_liberal:
        values["nf_conntrack_tcp_be_liberal"] = 1
    return values


def apply(machine: Machine, settings: Conntrack) -> list[str]:
    """Sets the values; returns and logs what could not be set and why, one text for each setting."""
    values = wanted(settings, machine.processors)
    if values:
        # The first request to connection tracking loads its modules; the settings do not exist before.
        with contextlib.suppress(OSError):
            conntrack.usage(machine)
    troubles = [trouble for name, value in values.items() if (trouble := _set(machine, name, value))]
    if troubles:
        log.warning(
            "Kernel settings stay as they are; set them on the host, or have them left alone by 0 in the configuration's"
            " section conntrack: %(err)s",
            {"err": "; ".join(troubles)},
        )
    return troubles


def figures(machine: Machine) -> Iterable[Figure]:
    """The entries and the limit of this network namespace's connection table, if there is one."""
    for name, setting, text in (
        ("kubeproxy_conntrack_entries", "nf_conntrack_count", "Connections that are tracked."),
        (
            "kubeproxy_conntrack_entries_limit",
            _MAX,
            "How many connections can be tracked; packets of further new ones are dropped.",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):
            yield Figure(name, "gauge", text, int(machine.sysctl(f"{FOLDER}/{setting}")))


def _set(machine: Machine, name: str, value: int) -> str:
    """Sets one value; returns why that is not possible, or ""."""
    path = f"{FOLDER}/{name}"
    present = ""
    try:
        present = machine.sysctl(path)
        if name in _ONLY_RAISED and int(present) >= value:
            if name == _MAX and int(present) > value:
                log.info(
                    "%(sysctl)s stays %(previous)s: only %(value)d is configured",
                    {"sysctl": path, "previous": present, "value": value},
                )
            return ""
        if machine.set_sysctl(path, value):
            log.info(
                "Set %(sysctl)s=%(value)d, it was %(previous)s",
                {"sysctl": path, "value": value, "previous": present},
            )
    except OSError as e:
        return f"{path} is {present or 'not there'}, not {value} ({e.strerror})"
    return ""
