"""Which Services the differences between kernel and plans belong to.

A line is attributed by the front or Service that it names, by the chain that it is in, if a line that leads
there or another line of the chain is known, and at last by what the plans describe. Lines that belong to no
Service (base chains, hooks, rules that all Services share) are attributed to none.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from kubeproxy.api.addresses import join
from kubeproxy.backends.base import KernelComparison
from kubeproxy.backends.shared.compared import flat
from kubeproxy.insight.kernel_lines import LineParts, parts
from kubeproxy.model.plan import Front, Key, ServicePlan, fronts_of

COMMON: Final = ""
"""What belongs to no Service, or to none that is known."""


PieceKind = Literal["missing", "foreign", "differs", "order"]


class Piece(Struct, frozen=True, gc=False, rename="camel"):
    """One thing in which kernel and plans differ.

    Attributes:
        kind: missing: the kernel does not hold it; foreign: it holds it and should not; differs: it holds
            another version;
            order: it is there, but not in its place.
        service: namespace/name of its Service; "" if it belongs to none.
        holder: the object of the kernel that holds it: a map, chain, set, virtual server or interface.
        held: the line of what is there, "" if nothing is.
        wanted: the line of what should be there, "" if nothing should.
        front: the front that it names.
        gained: the endpoint that what should be there leads to.
        lost: the endpoint that what is there leads to.
    """

    kind: PieceKind
    service: str
    holder: str
    held: str = ""
    wanted: str = ""
    front: Front | UnsetType = UNSET
    gained: str = ""
    lost: str = ""


class Owners:
    """The Services of lines."""

    def __init__(
        self, plans: Iterable[ServicePlan], describe: Callable[[ServicePlan], Iterable[str]] | None
    ) -> None:
        """Prepares an index of fronts.

        Args:
            plans: the plans.
            describe: what the kernel must hold for a plan; asked only if some line cannot be attributed
                otherwise.
        """
        self._plans = tuple(plans)
        self._describe = describe
        self._fronts: dict[Front, str] = {}
        self._addresses: dict[str, str] = {}
        for plan in self._plans:
            name = "/".join(plan.key)
            for front in fronts_of(plan):
                self._fronts.setdefault(front, name)
                if front[0]:
                    self._addresses.setdefault(front[0], name)
        self._chains: dict[str, str] = {}
        self._described: dict[Key, frozenset[str]] = {}
        self._by_line: dict[str, str] | None = None
        self._by_endpoint: dict[str, list[ServicePlan]] | None = None

    def learn(self, lines: Iterable[LineParts]) -> None:
        """Notes the chains of Services that lines name."""
        for line in lines:
            if not line.service:
                continue
            if line.front is not None:
                self._fronts.setdefault(line.front, line.service)
            if line.inside.startswith(_OWN_CHAINS):
                self._chains.setdefault(line.inside, line.service)
            if line.target.startswith(_OWN_CHAINS):
                self._chains.setdefault(line.target, line.service)

    def owner(self, line: str, about: LineParts) -> str:
        """Namespace/name of the Service of a line, COMMON if it has none."""
        if about.service:
            return about.service
        if about.front is not None:
            found = self._fronts.get(about.front) or (
                self._addresses.get(about.front[0]) if not about.front[2] else None
            )
            if found:
                return found
        found = self._chains.get(about.inside) or self._chains.get(about.target)
        return found or self._by_description(line, about)

    def _by_description(self, line: str, about: LineParts) -> str:
        """The only Service whose description has a line; only those are asked that may."""
        if about.endpoint:
            candidates = self._users().get(about.endpoint, ())
            found = [plan.key for plan in candidates if line in self._lines_of(plan)]
            return "/".join(found[0]) if len(found) == 1 else COMMON
        return self._all_lines().get(line, COMMON) if about.inside.startswith(_OWN_CHAINS) else COMMON

    def _all_lines(self) -> Mapping[str, str]:
        """The Services of the lines of all descriptions, COMMON for lines that several have."""
        if self._by_line is None:
            self._by_line = {}
            for plan in self._plans:
                name = "/".join(plan.key)
                for line in self._lines_of(plan):
                    self._by_line[line] = COMMON if line in self._by_line else name
        return self._by_line

    def _lines_of(self, plan: ServicePlan) -> frozenset[str]:
        lines = self._described.get(plan.key)
        if lines is None:
            text = self._describe(plan) if self._describe is not None else ()
            lines = self._described[plan.key] = frozenset(flat(text))
        return lines

    def _users(self) -> Mapping[str, list[ServicePlan]]:
        """The plans that have an endpoint."""
        if self._by_endpoint is None:
            self._by_endpoint = defaultdict(list)
            for plan in self._plans:
                for endpoint in {join(e.address, e.port) for port in plan.ports for e in port.endpoints}:
                    self._by_endpoint[endpoint].append(plan)
        return self._by_endpoint


_OWN_CHAINS: Final = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-")


def pieces(found: KernelComparison, owners: Owners) -> list[Piece]:
    """The pieces in which kernel and plans differ, sorted by Service."""
    lacking = [(line, parts(line)) for line in found.lacking]
    foreign = [(line, parts(line)) for line in found.foreign]
    owners.learn(about for _, about in lacking + foreign)
    there: dict[str, list[tuple[str, LineParts]]] = defaultdict(list)
    for line, about in foreign:
        there[_place(about)].append((line, about))
    made: list[Piece] = []

    def add(kind: PieceKind, about: LineParts, held: str = "", wanted: str = "", **endpoints: str) -> None:
        service = owners.owner(wanted or held, about)
        made.append(Piece(kind, service, about.holder, held, wanted, about.front or UNSET, **endpoints))

    for line, about in lacking:
        if rivals := there.get(_place(about)):
            held, was = rivals.pop(0)
            add("differs", about, held, line, gained=about.endpoint, lost=was.endpoint)
        else:
            add("missing", about, wanted=line, gained=about.endpoint)
    for left in there.values():
        for line, about in left:
            add("foreign", about, line, lost=about.endpoint)
    for line in found.reordered:
        add("order", parts(line), wanted=line)
    return sorted(_by_endpoint(made), key=lambda piece: piece.service)


def _by_endpoint(found: list[Piece]) -> list[Piece]:
    """Attributes what is left by its endpoint, if one Service only has pieces with this endpoint."""
    users: dict[str, set[str]] = defaultdict(set)
    for piece in found:
        if piece.service:
            for endpoint in (piece.gained, piece.lost):
                users[endpoint].add(piece.service)

    def attributed(piece: Piece) -> Piece:
        services = users.get(piece.gained or piece.lost, ())
        return replace(piece, service=next(iter(services))) if len(services) == 1 else piece

    return [
        piece if piece.service or not (piece.gained or piece.lost) else attributed(piece) for piece in found
    ]


def _place(about: LineParts) -> str:
    """Where there is room for one thing only, so that what is there is another version of what should be."""
    own_chain = about.inside.startswith("KUBE-SEP-") and about.endpoint
    return f"{about.inside} DNAT" if own_chain else about.key


def counted(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
