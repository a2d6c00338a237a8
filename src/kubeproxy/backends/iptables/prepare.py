"""Starts iptables mode: what must be there before the first rule, and how changes of rules are detected."""

import logging

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends import programs
from kubeproxy.backends.base import Driver
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.programs import FILTER, MANGLE, InputRefusedError, Tables
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink import nfacct

log = logging.getLogger(__name__)

_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
_ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"


def open_driver(machine: Machine, node: NodeConfig) -> Driver:
    """Makes the driver of a node's family and prepares the kernel for it.

    Raises:
        UnsupportedError: it cannot run here.
        SyncError: it cannot run now.
    """
    tables = programs.find(machine, node.family)
    log.info(
        "%(ipFamily)s: iptables mode through the %(variant)s programs",
        {"ipFamily": node.family, "variant": tables.variant},
    )
    if node.family == IPV4 and node.localhost_node_ports:
        route_localnet(machine)
    return IPTablesDriver(
        tables, counters=make_counters(machine, tables), drop_invalid=drops_invalid(machine)
    )


def open_reader(machine: Machine, node: NodeConfig) -> IPTablesDriver:
    """Makes a driver that is only to read.

    Raises:
        UnsupportedError: the programs are missing.
        SyncError: the tables cannot be read.
    """
    tables = programs.find(machine, node.family, attempt=False)
    return IPTablesDriver(tables, counters=_counts(machine, tables), drop_invalid=drops_invalid(machine))


def route_localnet(machine: Machine) -> None:
    """Lets the kernel route packets from 127.0.0.1 to endpoints; rules prevent abuse by other hosts."""
    try:
        if machine.set_sysctl(_ROUTE_LOCALNET, 1):
            log.info(
                "Set %(sysctl)s=1 so that node ports work on localhost; iptables.localhostNodePorts=false or node port"
                " addresses without loopback prevent it",
                {"sysctl": _ROUTE_LOCALNET},
            )
    except OSError as e:
        log.warning(
            "Node ports will not work on localhost: cannot set %(sysctl)s: %(err)s",
            {"sysctl": _ROUTE_LOCALNET, "err": e},
        )


def make_counters(machine: Machine, tables: Tables) -> bool:
    """Makes the nfacct counters; returns whether the kernel has them and rules can count into them."""
    probe = f"{names.CANARY}-{names.INVALID_COUNTER[:8]}"
    match = f"-m nfacct --nfacct-name {names.INVALID_COUNTER}"
    try:
        for counter in (names.INVALID_COUNTER, names.LOCALHOST_COUNTER):
            nfacct.ensure(machine, counter)
        # The chain is made and deleted in one input, so it never exists; but the rule is checked.
        tables.restore(
            MANGLE,
            [
                f":{probe} - [0:0]\n",
                f"-A {probe} {match} -j RETURN\n",
                f"-D {probe} {match} -j RETURN\n",
                f"-X {probe}\n",
            ],
        )
    except (OSError, InputRefusedError) as e:
        log.info(
            "Dropped and localhost packets are not counted, the kernel has no nfacct: %(err)s", {"err": e}
        )
        return False
    return True


def _counts(machine: Machine, tables: Tables) -> bool:
    """Whether rules count into the nfacct counters: those that are there, or the next ones."""
    rules = tables.chain(FILTER, names.FORWARD)
    if rules:
        return any("--nfacct-name" in rule for rule in rules)
    try:
        nfacct.packets(machine, names.INVALID_COUNTER)
    except OSError:
        return False
    return True


def drops_invalid(machine: Machine) -> bool:
    """Packets in state INVALID are dropped unless conntrack is configured to accept them."""
    try:
        return machine.sysctl(_BE_LIBERAL) == "0"
    except OSError:
        return True
