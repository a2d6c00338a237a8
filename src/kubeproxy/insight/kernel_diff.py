"""The kernel of this node, compared with the plans of all Services, in each IP family; nothing is changed."""

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from kubeproxy.answers.reader import open_reader
from kubeproxy.answers.reasons import kernel_unread
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import Comparable, HeldState, SyncError, UnsupportedError
from kubeproxy.insight.changes import Owners, Piece, pieces
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan


class FamilyDiff(Struct, frozen=True, rename="camel"):
    """One IP family, compared.

    Attributes:
        family: the family.
        services: the number of Services that have a plan.
        endpoints: the number of endpoints of their ports.
        pieces: in what kernel and plans differ, sorted by Service.
        writes: the number of transactions, inputs of a program or calls that correct it.
        empty: the kernel holds nothing of the mode.
        unread: why it was not compared, "" if it was.
    """

    family: str
    services: int = 0
    endpoints: int = 0
    pieces: Sequence[Piece] = ()
    writes: int = 0
    empty: bool = False
    unread: str = ""


async def diff(
    snapshot: Snapshot, machine: Machine, read: dict[Family, HeldState] | None = None
) -> list[FamilyDiff]:
    """Compares each family of the node.

    Args:
        snapshot: the cluster.
        machine: this host.
        read: is filled with what was read of the kernel.
    """
    read = {} if read is None else read
    return [await _family(snapshot, machine, node, read) for node in snapshot.nodes]


async def _family(
    snapshot: Snapshot, machine: Machine, node: NodeConfig, read: dict[Family, HeldState]
) -> FamilyDiff:
    plans = snapshot.plans(node.family)
    made = FamilyDiff(node.family, len(plans), sum(len(p.endpoints) for s in plans.values() for p in s.ports))
    try:
        driver = await open_reader(snapshot, machine, node)
    except (OSError, SyncError, UnsupportedError) as e:
        return replace(made, unread=kernel_unread(machine, e))
    try:
        held = read[node.family] = await driver.read()
        return compared(made, driver, held, node, plans)
    except (OSError, SyncError) as e:
        return replace(made, unread=kernel_unread(machine, e))
    finally:
        await driver.close()


def compared(
    made: FamilyDiff,
    driver: Comparable,
    held: HeldState,
    node: NodeConfig,
    plans: Mapping[Key, ServicePlan],
) -> FamilyDiff:
    """Compares by a driver.

    Args:
        made: the family.
        driver: compares.
        held: what it read.
        node: the node.
        plans: the plans of all Services.

    Raises:
        SyncError: what would change cannot be worked out.
    """
    found = driver.compare(held, node, plans)
    if not found:
        return made
    owners = Owners(plans.values(), lambda plan: driver.describe(node, plan))
    parts = pieces(found, owners)
    wanted = {"/".join(plan.key) for plan in plans.values() if plan.ports}
    empty = all(piece.kind == "missing" for piece in parts) and wanted <= {piece.service for piece in parts}
    return replace(made, pieces=parts, writes=found.writes, empty=empty)
