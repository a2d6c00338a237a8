"""Opens what compares the kernel of a snapshot's node with plans.

It is the mode's own driver, and changes nothing.
"""

import asyncio

from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.backends.base import Comparable
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig


def unreadable(snapshot: Snapshot) -> str:
    """Why the kernel cannot be compared with plans of a snapshot; "" if it can."""
    if not snapshot.own:
        return f"node {snapshot.name} is not this host"
    if snapshot.mode.reader is None:
        return (
            f"what {snapshot.mode.name} mode has in the kernel is known only to the process that programs it"
        )
    if not snapshot.mode.forwards and snapshot.sockets is None:
        return "the kube-proxy that runs here does not answer which sockets its relay has"
    return ""


async def open_reader(snapshot: Snapshot, machine: Machine, node: NodeConfig) -> Comparable:
    """Opens the driver of a family.

    Args:
        snapshot: the cluster; its kernel must be readable.
        machine: this host.
        node: the node under the family.

    Raises:
        OSError, SyncError, UnsupportedError: the kernel cannot be read.
    """
    assert snapshot.mode.reader is not None
    return await asyncio.to_thread(snapshot.mode.reader, machine, node, snapshot.sockets_of(node.family))
