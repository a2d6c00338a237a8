"""The host as one value: all reads and changes of the host go through a Machine.

    base     the interface of a machine
    linux    this host, in the process's network namespace or in another one
    windows  this host of Windows
    fake     a host in memory; hundreds of them can exist in one process

A machine is bound to one network namespace. Data that belongs to the namespace rather than to one object (the
number of our transactions, the programs that we run) is kept in the machine, so that two daemons in two
namespaces of one process do not affect each other.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubeproxy.machine.base import Machine


def of_this_host(cgroup: str = "", pins: str = "") -> "Machine":
    """The machine for this host and, on Linux, the network namespace of the calling thread.

    Args:
        cgroup: on Linux, the folder of the cgroup for programs of ebpf mode; "" for the usual one.
        pins: on Linux, the folder in which these are kept; "" for the usual one.

    Raises:
        OSError: a library of the system is missing.
    """
    if sys.platform == "win32":
        from kubeproxy.machine.windows import WindowsMachine

        return WindowsMachine()
    from kubeproxy.linux.bpf.host import BpfPlaces
    from kubeproxy.machine.linux import LinuxMachine

    return LinuxMachine(bpf=BpfPlaces(cgroup, pins))
