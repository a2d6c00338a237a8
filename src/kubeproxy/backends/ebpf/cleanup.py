"""Removes programs, maps and links of ebpf mode; detects whether they serve Services.

The table is that of nftables mode, which removes it.
"""

import contextlib
import logging

from kubeproxy.api.addresses import FAMILIES, Family
from kubeproxy.backends.ebpf import names
from kubeproxy.linux.bpf.host import BpfHost
from kubeproxy.linux.bpf.maps import HashMap
from kubeproxy.machine.base import Machine

log = logging.getLogger(__name__)


def serves(machine: Machine) -> bool:
    """Whether the programs of ebpf mode know the address of a Service.

    Raises:
        OSError: that cannot be read.
    """
    where = _host(machine)
    if where is None:
        return False
    folder = where.folder(names.VERSION)
    there = folder.names()
    for family in FAMILIES:
        name = f"fronts{names.digit(family)}"
        found = folder.get(name) if name in there else None
        if found is not None and any(True for _ in HashMap(found.release()).items()):
            return True
    return False


def _host(machine: Machine) -> BpfHost | None:
    """The BPF of a host; None if it has none."""
    try:
        return machine.bpf()
    except OSError:
        return None


def cleanup(machine: Machine) -> None:
    """Removes everything of this mode that is not the table of nftables mode.

    Raises:
        OSError: something may not be removed.
    """
    where = _host(machine)
    if where is None:
        return
    for family in FAMILIES:
        if remove(where, family):
            log.info("Removed the connect-time programs of ebpf mode for %(ipFamily)s", {"ipFamily": family})
    folder = where.folder(names.VERSION)
    if not folder.names():
        folder.clear()
        with contextlib.suppress(OSError):
            folder.path.parent.rmdir()


def remove(where: BpfHost, family: Family) -> bool:
    """Removes what there is of a family, first the links; returns whether there was anything.

    Raises:
        OSError: something may not be removed.
    """
    folder = where.folder(names.VERSION)
    mine = [name for name in folder.names() if names.family_of(name) == family]
    mine.sort(key=lambda name: not name.startswith(names.link("")))
    for name in mine:
        folder.remove(name)
    return bool(mine)
