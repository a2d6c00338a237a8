"""Starts ebpf mode: the driver of nftables mode, and the programs, where the kernel can run them."""

import errno
import logging
import os
import re
import sys
from typing import Any, Final

from msgspec.structs import replace

from kubeproxy.backends.base import Comparable, Driver, UnsupportedError
from kubeproxy.backends.ebpf import cleanup, names
from kubeproxy.backends.ebpf.compile import IN_KERNEL_CLIENTS
from kubeproxy.backends.ebpf.driver import ConnectDriver, LeftDriver
from kubeproxy.backends.ebpf.front import LEAST, RIGHTLESS, ConnectFront
from kubeproxy.backends.ebpf.install import Installation
from kubeproxy.backends.ebpf.layout import Capacity
from kubeproxy.backends.ebpf.programs.context import Options
from kubeproxy.backends.ebpf.tables import KernelMaps
from kubeproxy.backends.nftables import prepare as nftables
from kubeproxy.linux.bpf import pins
from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import ConnectSettings, NodeConfig

log = logging.getLogger(__name__)

RETVAL_RELEASE: Final = (5, 18)
"""bpf_set_retval; without it a program can only refuse with EPERM."""

KEPT_ADDRESS_RELEASE: Final = (6, 6)
"""Clients in the kernel connect again to the Service, not to the endpoint; see `compile`."""

INSTALLED: Final = Capacity(fronts=1 << 16, ports=1 << 14, slots=1 << 18, members=1 << 14, hosts=1 << 10)
"""What `--init-only` makes, because the daemon may not make larger maps afterwards."""


def open_driver(machine: Machine, node: NodeConfig) -> Driver:
    """Makes the driver of a node's family.

    Raises:
        UnsupportedError: it cannot run here.
        SyncError: it cannot run now.
    """
    assert node.connects is not None
    try:
        front = open_front(machine, node)
    except OSError as e:
        why = f"ebpf mode cannot run its programs for {node.family}: {_reason(e)}"
        if node.connects.strict:
            raise UnsupportedError(why) from e
        log.warning("%(reason)s; nftables rules serve alone", {"reason": why})
        _remove(machine, node)
        return nftables.open_driver(machine, replace(node, localhost_relay=node.names_loopback))
    return ConnectDriver(nftables.open_driver(machine, replace(node, localhost_relay=False)), front)


def install(machine: Machine, node: NodeConfig) -> None:
    """Makes and attaches everything that needs more rights than the daemon has, for `--init-only`.

    Raises:
        UnsupportedError: it cannot run here.
    """
    try:
        installation = _installation(machine, node)
        _alone(host(machine, node), installation)
        if not (installation.adopt() and installation.active):
            installation.make(INSTALLED)
            installation.activate()
        installation.close()
    except OSError as e:
        raise UnsupportedError(f"ebpf mode cannot run its programs for {node.family}: {_reason(e)}") from e


def open_reader(machine: Machine, node: NodeConfig) -> Comparable:
    """Makes a driver that is only to read; for another mode's node, only what is left of the programs.

    Raises:
        UnsupportedError: there cannot be programs.
        OSError: the kernel refused.
    """
    foreign = node.connects is None
    try:
        installation = _installation(machine, replace(node, connects=ConnectSettings()) if foreign else node)
    except OSError as e:
        raise UnsupportedError(f"ebpf mode cannot run its programs here: {e}") from e
    installation.adopt(writable=False)
    front = ConnectFront(installation, machine.clock, left_ports(machine.release))
    if foreign:
        return LeftDriver(front)
    rules: Any = nftables.open_reader(machine, node)  # it has what a reader needs
    return ConnectDriver(rules, front)


def pinned(machine: Machine, node: NodeConfig) -> KernelMaps | None:
    """The maps that are pinned, to be read; None if there are none that this version would make.

    Raises:
        OSError: they may not be opened.
    """
    installation = _installation(machine, node)
    return installation.take_maps() if installation.adopt(writable=False) else None


def host(machine: Machine, node: NodeConfig) -> BpfHost:
    """Where the programs of a node are.

    Raises:
        OSError: the machine has no BPF.
    """
    settings = node.connects
    if settings is not None and (settings.cgroup or settings.pins):
        return machine.bpf(BpfPlaces(settings.cgroup, settings.pins))
    return machine.bpf()


def left_ports(release: str) -> frozenset[int]:
    """The ports that are left to nftables mode with a version of the kernel."""
    return IN_KERNEL_CLIENTS if version(release) < KEPT_ADDRESS_RELEASE else frozenset()


def version(release: str) -> tuple[int, int]:
    """Major and minor version of a kernel, e.g. of "6.1.0-30-amd64"."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _installation(machine: Machine, node: NodeConfig) -> Installation:
    if sys.byteorder != "little":
        raise OSError(errno.ENOTSUP, "this processor is big-endian")
    assert node.connects is not None
    where = host(machine, node)
    options = Options(
        where.cookie(),
        refuses=version(machine.release) >= RETVAL_RELEASE,
        peers=node.connects.peer_names,
    )
    return Installation(where, node.family, options)


def open_front(machine: Machine, node: NodeConfig) -> ConnectFront:
    """The programs: those that are pinned if possible, otherwise new ones, attached.

    Raises:
        UnsupportedError: another program connects sockets to endpoints.
        OSError: the kernel refused.
    """
    installation = _installation(machine, node)
    _alone(host(machine, node), installation)
    if not installation.adopt():
        installation.make(LEAST)
        if not installation.attached():
            # With empty maps they pass everything. Whether the kernel can run them is to be known now.
            installation.activate()
    return ConnectFront(installation, machine.clock, left_ports(machine.release))


def _alone(where: BpfHost, installation: Installation) -> None:
    """Refuses to run beside other programs with the same purpose."""
    cgroup = where.open_cgroup()
    try:
        found = pins.others(cgroup, installation.hooks())
    finally:
        os.close(cgroup)
    if strangers := names.translators(found.values()):
        raise UnsupportedError(
            f"ebpf mode cannot run beside other programs that connect sockets to endpoints of Services: {', '.join(strangers)};"
            " turn off the socket load balancer of the network plugin, or choose nftables mode"
        )


def _remove(machine: Machine, node: NodeConfig) -> None:
    """What an earlier run attached must not continue without updates."""
    try:
        cleanup.remove(host(machine, node), node.family)
    except OSError as e:
        log.warning(
            "Cannot remove the programs of an earlier run, which keep connecting sockets to the endpoints of that time: %(err)s",
            {"err": e},
        )


def _reason(error: OSError) -> str:
    if error.errno in RIGHTLESS:
        return (
            f"{error.strerror or error}; loading needs CAP_BPF and CAP_NET_ADMIN (before Linux 5.8 CAP_SYS_ADMIN),"
            " or 'kube-proxy --init-only' once at each start of the host"
        )
    return str(error)
