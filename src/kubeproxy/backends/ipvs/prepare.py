"""Starts ipvs mode: what must be there before the first virtual server."""

import errno
import logging
import re
from typing import Final

from kubeproxy.api.addresses import IPV4, pack
from kubeproxy.backends import programs
from kubeproxy.backends.base import Driver, UnsupportedError
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.compile import ServerContext
from kubeproxy.backends.ipvs.driver import IPVSDriver
from kubeproxy.backends.ipvs.kernel import EXPIRE, LinuxIPVSKernel, ServerChange
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.netlink import ipvs, route
from kubeproxy.netlink.ipvs import Settings, Timeouts, Virtual

log = logging.getLogger(__name__)

PROBE: Final = {True: "198.51.100.0", False: "2001:db8:198:51::"}
"""Addresses for documentation, which no host has: a virtual server there tests for the scheduler."""

_PROBE_PORT = 20000
_SYSCTLS: Final = {
    "net/ipv4/vs/conntrack": 1,  # masquerading needs it
    EXPIRE: 1,  # a connection to a deleted real server is reset, it does not time out
    "net/ipv4/vs/expire_quiescent_template": 1,  # a real server that drains gets no clients by session affinity
    "net/ipv4/ip_forward": 1,
}
_REUSE: Final = "net/ipv4/vs/conn_reuse_mode"
_STRICT_ARP: Final = {"net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2}


def open_driver(machine: Machine, node: NodeConfig) -> Driver:
    """Makes the driver of a node's family and prepares the kernel for it.

    Raises:
        UnsupportedError: it cannot run here.
        SyncError: it cannot run now.
    """
    settings = node.ipvs or IPVSSettings()
    tables = programs.find(machine, node.family)
    try:
        kernel = LinuxIPVSKernel(machine, node.family)
    except OSError as e:
        raise lacking("IPVS", "ip_vs", e) from e
    try:
        kernel.headers()
    except OSError as e:
        raise lacking("IP sets", "ip_set", e) from e
    try:
        route.ensure_dummy(machine, names.INTERFACE)
    except OSError as e:
        raise lacking("dummy interfaces", "dummy", e) from e
    for name, value in sysctls(settings, machine.release).items():
        set_sysctl(machine, name, value)
    try_scheduler(kernel, node)
    if any(settings.timeouts):
        with ipvs.IPVSSocket(machine) as kept:
            kept.set_timeouts(Timeouts(*settings.timeouts))
    log.info(
        "%(ipFamily)s: ipvs mode with scheduler %(scheduler)s, and the %(variant)s programs",
        {"ipFamily": node.family, "scheduler": ServerContext(node).scheduler, "variant": tables.variant},
    )
    return IPVSDriver(kernel, tables, node)


def open_reader(machine: Machine, node: NodeConfig) -> IPVSDriver:
    """Makes a driver that is only to read.

    Raises:
        OSError: the kernel has no sets, or we may not ask it.
        UnsupportedError: the iptables programs are missing, or the kernel has no IPVS.
    """
    tables = programs.find(machine, node.family, attempt=False)
    try:
        kernel = LinuxIPVSKernel(machine, node.family)
    except OSError as e:
        if e.errno != errno.ENOENT:
            raise
        raise UnsupportedError(
            f"ipvs mode cannot run for {node.family}: the kernel has no IPVS, module ip_vs"
        ) from e
    return IPVSDriver(kernel, tables, node)


def sysctls(settings: IPVSSettings, release: str) -> dict[str, int]:
    """The sysctls, for a kernel release."""
    wanted = dict(_SYSCTLS)
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if version < (5, 9):
        # Until then a client that comes with a port it had before waits a second for its connection.
        wanted[_REUSE] = 0
    return {**wanted, **(_STRICT_ARP if settings.strict_arp else {})}


def set_sysctl(machine: Machine, name: str, value: int) -> None:
    """Sets a sysctl that the mode needs.

    Raises:
        UnsupportedError: the kernel does not have it, or it cannot be set.
    """
    try:
        if machine.set_sysctl(name, value):
            log.info("Set %(sysctl)s=%(value)d", {"sysctl": name, "value": value})
    except FileNotFoundError as e:
        raise UnsupportedError(f"ipvs mode cannot run: the kernel has no {name}") from e
    except OSError as e:
        raise UnsupportedError(
            f"ipvs mode cannot run: {name} must be {value} and cannot be set: {e.strerror};"
            " set it, or run kube-proxy --init-only with the right to, first"
        ) from e


def try_scheduler(kernel: LinuxIPVSKernel, node: NodeConfig) -> None:
    """Fails where the kernel does not have the scheduler."""
    dialect = ServerContext(node)
    probe = Virtual(ipvs.TCP, pack(PROBE[node.family == IPV4]), _PROBE_PORT)
    settings = Settings(dialect.scheduler, dialect.flags)
    refused = kernel.change_servers(
        [ServerChange("delete", probe), ServerChange("add", probe, settings), ServerChange("delete", probe)]
    )
    if 1 not in refused:
        return
    error = refused[1]
    if error.errno == errno.ENOENT:
        raise UnsupportedError(
            f"ipvs mode cannot run: the kernel has no scheduler {dialect.scheduler!r} (module ip_vs_{dialect.scheduler});"
            " set --ipvs-scheduler to one it has, or to nothing for rr"
        )
    raise UnsupportedError(f"ipvs mode cannot run for {node.family}: a virtual server is refused: {error}")


def lacking(what: str, module: str, error: OSError) -> UnsupportedError:
    """The error for a part of the kernel that is missing or not permitted."""
    if error.errno in {errno.EPERM, errno.EACCES}:
        return UnsupportedError("ipvs mode cannot run: CAP_NET_ADMIN is missing")
    return UnsupportedError(
        f"ipvs mode cannot run: the kernel has no {what} (module {module}): {error.strerror}"
    )
