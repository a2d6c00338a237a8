"""What a start would change on this node, Service by Service, or what two sets of manifests differ in."""

import asyncio
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from kubeproxy import protocols
from kubeproxy.answers.reader import unreadable
from kubeproxy.answers.reasons import kernel_unread
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import FAMILIES, IPV4, Family, join
from kubeproxy.backends.base import HeldState, KernelComparison, SyncError, UnsupportedError
from kubeproxy.backends.shared.compared import flat
from kubeproxy.insight.changes import Owners, Piece, pieces
from kubeproxy.insight.kernel_diff import diff
from kubeproxy.insight.old_rules import RemovedRules, removed
from kubeproxy.insight.stale_flows import OVER
from kubeproxy.machine.base import Machine
from kubeproxy.model import flows
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Front, ServicePlan, fronts_of
from kubeproxy.netlink import conntrack

NODE_PORT: Final = "node port "
"""How fronts begin that are node ports."""

_LISTED: Final = 6
"""So many fronts or endpoints are named in a summary."""


class ServiceChange(Struct, frozen=True, gc=False, rename="camel"):
    """What changes for one Service under one IP family.

    Attributes:
        service: namespace/name; "" if it is not known, or if it belongs to no Service.
        family: the IP family.
        change: whether the Service is new to the kernel, gone, or changes; "common" is what belongs to none.
        what: in words.
        gained: fronts that come, as "address:port/protocol" or "node port N/protocol".
        lost: fronts that leave.
        flows: the number of open connections and answered flows to fronts or endpoints that leave.
        pieces: each element, rule, chain, virtual server that changes.
    """

    service: str
    family: Family
    change: Literal["new", "gone", "changed", "common"]
    what: str
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    flows: int = 0
    pieces: Sequence[Piece] = ()


class PlannedChanges(Struct, frozen=True, rename="camel"):
    """The answer of `plan`.

    Attributes:
        mode: the mode that is planned for.
        node: the node.
        against: the manifests that are compared with; "" for the kernel.
        services: the number of Services.
        changes: what changes.
        untouched: the number of Services that do not change.
        lines: the number of elements, rules and other pieces that change.
        writes: the number of transactions, inputs of a program or calls; 0 if that is not known.
        removed: rules of other modes or variants that are removed afterwards.
        flows_unread: why flows were not counted, "" if they were.
        unread: why a family was not compared.
        troubles: what could not be read of the cluster.
        cannot: why nothing could be compared, "" if something was.
    """

    mode: str
    node: str
    against: str = ""
    services: int = 0
    changes: Sequence[ServiceChange] = ()
    untouched: int = 0
    lines: int = 0
    writes: int = 0
    removed: Sequence[RemovedRules] = ()
    flows_unread: str = ""
    unread: Sequence[str] = ()
    troubles: Sequence[str] = ()
    cannot: str = ""

    @property
    def nothing(self) -> bool:
        """Whether nothing would change, as far as was compared."""
        return not self.changes and not self.removed


async def of_kernel(snapshot: Snapshot, machine: Machine) -> PlannedChanges:
    """What a start would change in the kernel.

    Args:
        snapshot: the cluster.
        machine: this host.
    """
    made = PlannedChanges(
        snapshot.mode.name, snapshot.name, services=len(snapshot.state.services), troubles=snapshot.troubles
    )
    if cannot := unreadable(snapshot):
        return replace(made, cannot=cannot)
    read: dict[Family, HeldState] = {}
    families = await diff(snapshot, machine, read)
    unread = tuple(f"{each.family}: {each.unread}" for each in families if each.unread)
    if len(unread) == len(families):
        return replace(made, unread=unread, cannot=unread[0])
    changes: list[ServiceChange] = []
    for family, node in zip(families, snapshot.nodes, strict=True):
        changes += _changes(family.pieces, node, snapshot.plans(node.family).values(), None)
    try:
        old = await asyncio.to_thread(removed, machine, snapshot.mode, snapshot.nodes, read)
    except (OSError, SyncError, UnsupportedError) as e:
        old = []
        made = replace(made, troubles=(*made.troubles, f"rules of other modes: {kernel_unread(machine, e)}"))
    return await asyncio.to_thread(
        _counted,
        replace(
            _summed(made, changes),
            writes=sum(each.writes for each in families),
            removed=old,
            unread=unread,
        ),
        snapshot,
        machine,
    )


def of_manifests(before: Snapshot, after: Snapshot, against: str) -> PlannedChanges:
    """What changes from one snapshot to another; no kernel is asked.

    Args:
        before: the cluster as it is.
        after: the cluster as it is to be.
        against: where the former came from.
    """
    describe = after.mode.describe
    made = PlannedChanges(
        after.mode.name,
        after.name,
        against,
        len(after.state.services),
        troubles=tuple(dict.fromkeys((*before.troubles, *after.troubles))),
    )
    changes: list[ServiceChange] = []
    for family in FAMILIES:
        node = after.node(family)
        if node is None:
            continue
        old, new = before.plans(family), after.plans(family)
        sizes = [sum(len(p.endpoints) for plan in plans.values() for p in plan.ports) for plans in (old, new)]
        was = before.node(family) or node
        for key in sorted(old.keys() | new.keys()):
            one, other = old.get(key), new.get(key)
            if one == other and was == node:
                continue
            lines = [
                Counter(flat(describe(at, plan, size)))
                if plan is not None and describe is not None
                else Counter()
                for at, plan, size in ((was, one, sizes[0]), (node, other, sizes[1]))
            ]
            found = KernelComparison(
                tuple((lines[1] - lines[0]).elements()), tuple((lines[0] - lines[1]).elements())
            )
            if not found and one == other:
                continue
            name = "/".join(key)
            parts = [replace(piece, service=name) for piece in pieces(found, Owners((), None))]
            changes.append(_change(name, family, parts, one, other))
    return _summed(made, changes)


def _summed(made: PlannedChanges, changes: Sequence[ServiceChange]) -> PlannedChanges:
    concerned = {each.service for each in changes if each.change in {"new", "changed"}}
    return replace(
        made,
        changes=tuple(changes),
        untouched=made.services - len(concerned),
        lines=sum(len(each.pieces) for each in changes),
    )


def _changes(
    found: Sequence[Piece], node: NodeConfig, plans: Iterable[ServicePlan], before: None
) -> Iterator[ServiceChange]:
    """The pieces of a kernel by Service. What a kernel held of a Service is known by its lines only."""
    wanted = {"/".join(plan.key): plan for plan in plans}

    def group(piece: Piece) -> tuple[bool, str, str]:
        unknown = not piece.service and isinstance(piece.front, tuple) and piece.kind == "foreign"
        return not (piece.service or unknown), piece.service, _unknown(piece) if unknown else ""

    for (common, service, front), each in groupby(sorted(found, key=group), group):
        parts = list(each)
        if common:
            yield ServiceChange("", node.family, "common", _count(parts), pieces=parts)
        else:
            yield _change(service, node.family, parts, before, wanted.get(service), front)


def _unknown(piece: Piece) -> str:
    """Services that only the kernel knows: one a ClusterIP, or a node port."""
    assert isinstance(piece.front, tuple)
    return piece.front[0] or shown(piece.front)


def _change(
    service: str,
    family: Family,
    parts: Sequence[Piece],
    before: ServicePlan | None,
    after: ServicePlan | None,
    front: str = "",
) -> ServiceChange:
    gained, lost = _fronts(parts, before, after)
    kind: Literal["new", "gone", "changed"] = "changed"
    if after is None:
        kind = "gone"
    elif before is None and all(piece.kind == "missing" for piece in parts):
        fronts = {shown(each) for each in fronts_of(after)} - {f"node port {after.health_check_port}/TCP"}
        kind = "new" if fronts <= set(gained) else "changed"
    return ServiceChange(
        service,
        family,
        kind,
        _words(kind, parts, before, after, gained, lost, front),
        gained,
        lost,
        pieces=parts,
    )


def _fronts(
    parts: Sequence[Piece], before: ServicePlan | None, after: ServicePlan | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fronts that come and leave."""
    if before is not None:
        was, is_ = set(fronts_of(before)), set(fronts_of(after)) if after else set()
    else:
        was = {piece.front for piece in parts if piece.held and isinstance(piece.front, tuple)}
        is_ = {piece.front for piece in parts if piece.wanted and isinstance(piece.front, tuple)}
        is_ -= was
        was -= set(fronts_of(after)) if after else set()
        was, is_ = {each for each in was if each[2]}, {each for each in is_ if each[2]}
    return tuple(sorted(map(shown, is_ - was))), tuple(sorted(map(shown, was - is_)))


def shown(front: Front) -> str:
    """A front in words."""
    address, protocol, port = front
    return f"{join(address, port)}/{protocol}" if address else f"{NODE_PORT}{port}/{protocol}"


def _words(
    kind: str,
    parts: Sequence[Piece],
    before: ServicePlan | None,
    after: ServicePlan | None,
    gained: Sequence[str],
    lost: Sequence[str],
    front: str,
) -> str:
    more, less = _endpoints(parts, before, after)
    leaves = [each for each in lost if not each.startswith(NODE_PORT)]
    words = []
    if kind == "new":
        count = len({each for port in (after.ports if after else ()) for each in port.endpoints})
        words = [_few(gained), f"{count} endpoints" if count != 1 else "1 endpoint"]
    elif kind == "gone":
        words = [_few(lost) or front]
    else:
        words += [f"{_few(gained)} comes"] if gained and lost else []
        words += [f"{_few(leaves)} leaves"] if leaves else []
        words += ["a node port leaves"] if lost and not leaves else []
        words += [f"endpoint {_few(less)} -> {_few(more)}"] if more and less else []
        words += [f"endpoint {_few(more)} comes"] if more and not less else []
        words += [f"endpoint {_few(less)} leaves"] if less and not more else []
        divided = before is not None and after is not None and _divided(before) != _divided(after)
        if divided and not (more or less):
            words.append("how connections are divided among endpoints")
        if not words and (before is None or after is None or before.ports == after.ports):
            words = ["what the kernel holds of it"]
        words = words or ["how its packets are treated"]
    return ", ".join(word for word in words if word)


def _endpoints(
    parts: Sequence[Piece], before: ServicePlan | None, after: ServicePlan | None
) -> tuple[list[str], list[str]]:
    """The endpoints that come and leave."""
    if before is not None and after is not None:
        was, is_ = _of_plan(before), _of_plan(after)
    else:
        was, is_ = {p.lost for p in parts} - {""}, {p.gained for p in parts} - {""}
        if after is not None:
            was -= _of_plan(after) - is_
            is_ = {each for each in is_ if any(p.gained == each and p.kind != "order" for p in parts)}
    return sorted(is_ - was), sorted(was - is_)


def _of_plan(plan: ServicePlan) -> set[str]:
    return {join(each.address, each.port) for port in plan.ports for each in port.endpoints}


def _divided(plan: ServicePlan) -> list[tuple[Distribution | None, Distribution | None]]:
    return [(port.cluster_distribution, port.local_distribution) for port in plan.ports]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _count(parts: Sequence[Piece]) -> str:
    return "1 piece" if len(parts) == 1 else f"{len(parts):,} pieces"


def _counted(planned: PlannedChanges, snapshot: Snapshot, machine: Machine) -> PlannedChanges:
    """Adds the numbers of open flows that the changes touch."""
    if not snapshot.mode.tracked or not any(each.lost or _gone(each) for each in planned.changes):
        return planned
    counts: Counter[int] = Counter()
    try:
        for node in snapshot.nodes:
            _count_flows(planned.changes, snapshot, machine, node, counts)
    except OSError as e:
        return replace(planned, flows_unread=kernel_unread(machine, e))
    changes = tuple(replace(each, flows=counts[at]) for at, each in enumerate(planned.changes))
    return replace(planned, changes=changes)


def _gone(change: ServiceChange) -> set[str]:
    """The endpoints that leave."""
    return {piece.lost for piece in change.pieces if piece.lost} - {p.gained for p in change.pieces}


def _count_flows(
    changes: Sequence[ServiceChange],
    snapshot: Snapshot,
    machine: Machine,
    node: NodeConfig,
    counts: Counter[int],
) -> None:
    at_front: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    at_endpoint: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    plans = {"/".join(key): plan for key, plan in snapshot.plans(node.family).items()}
    endpoints: dict[int, set[bytes]] = {}
    for number, change in enumerate(changes):
        if change.family != node.family or change.change == "common":
            continue
        lost = set(change.lost)
        gone = _gone(change) - (_of_plan(plans[change.service]) if change.service in plans else set())
        endpoints[number] = {_place(each) for each in gone}
        of_plan = fronts_of(plans[change.service]) if change.service in plans else ()
        for front in {*of_plan, *(p.front for p in change.pieces if isinstance(p.front, tuple))}:
            leaves = shown(front) in lost
            place = protocols.NUMBERS[front[1]], flows.place(front[0], front[2])
            (at_front if leaves else at_endpoint)[place].append(number)
    for protocol in sorted({protocol for protocol, _ in (*at_front, *at_endpoint)}):
        family = socket.AF_INET if node.family == IPV4 else socket.AF_INET6
        for flow in conntrack.flows(machine, family, protocol):
            if flow.state in OVER or flow.state == "UNREPLIED" or flow.unanswered:
                continue
            for destination in (flow.destination, flow.destination[-2:]):
                for number in at_front.get((protocol, destination), ()):
                    counts[number] += 1
                for number in at_endpoint.get((protocol, destination), ()):
                    counts[number] += flow.source in endpoints[number]


def _place(endpoint: str) -> bytes:
    address, _, port = endpoint.rpartition(":")
    return flows.place(address.strip("[]"), int(port))
