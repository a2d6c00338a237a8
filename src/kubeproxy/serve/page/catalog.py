"""Searches the Services of this node and describes them, in parts of bounded size.

Services are looked at in small steps, between which the event loop does other work, so a search in 10,000
Services delays no sync. Which of them have no endpoint, and which lost a front, is computed when that is
asked for after something has changed.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

from msgspec import Struct

from kubeproxy.api.addresses import family_of, join
from kubeproxy.hub import Hub
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.reconcile.ledger import Progress, Row
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.serve.page.listed import (
    MOST_FRONTS,
    MOST_ROWS,
    ListedService,
    ServiceDetail,
    ServiceList,
    Which,
    endpoint_count,
    front_text,
    listed_endpoints,
    listed_port,
    local_count,
    lost_text,
    owned,
)

_STEP: Final = 100
"""After so many Services the event loop does other work."""


class Known(Struct, frozen=True, gc=False):
    """The Services at one moment.

    Attributes:
        keys: all, in order.
        empty: those of which a port has no endpoint.
        contested: those that lost a front.
    """

    keys: Sequence[Key]
    empty: frozenset[Key]
    contested: frozenset[Key]


class Catalog:
    """The Services of this node."""

    def __init__(self, hub: Hub, loops: Sequence[Reconciler]) -> None:
        """Reads what there is when it is asked for.

        Args:
            hub: the cluster.
            loops: the control loop of each IP family.
        """
        self._hub = hub
        self._loops = loops
        self._recorded = 0
        self._known: tuple[object, Known] | None = None
        self._turn = asyncio.Lock()  # one search at a time: the others wait
        for loop in loops:
            loop.ledger.subscribe(lambda _: self._count())

    async def known(self) -> Known:
        """All Services."""
        async with self._turn:
            return await self._current()

    async def search(self, query: str, which: Which, offset: int, limit: int) -> ServiceList:
        """Lists a part of the Services that match.

        Args:
            query: words, all of which must match: a part of the name, the beginning of an address of a
                front or an endpoint, or the number of a port.
            which: which Services.
            offset: how many to leave out.
            limit: how many to list.
        """
        words = query.lower().split()
        async with self._turn:
            known = await self._current()
            keys = await self._chosen(known, which)
            if words:
                keys = await self._filter(keys, lambda key: self._matches(key, words))
        services = []
        for key in keys[offset : offset + limit]:
            services.append(self._listed(key, known))
            await asyncio.sleep(0)
        return ServiceList(len(keys), offset, services)

    async def detail(self, key: Key, offset: int, limit: int) -> ServiceDetail | None:
        """Describes a Service; None if there is none.

        Args:
            key: the Service.
            offset: how many endpoints to leave out.
            limit: how many endpoints to list.
        """
        known = await self.known()
        plans = [(family, plan) for family, row in self._rows(key) if (plan := _shown(row)) is not None]
        if not plans and key not in self._hub.state.services:
            return None
        ports = [(family, port) for family, plan in plans for port in plan.ports]
        endpoints = chain.from_iterable(listed_endpoints(family, port) for family, port in ports)
        return ServiceDetail(
            self._listed(key, known),
            [listed_port(family, port) for family, port in ports[:MOST_ROWS]],
            max(0, len(ports) - MOST_ROWS),
            [lost_text(key, each) for _, plan in plans for each in plan.lost][:MOST_ROWS],
            sum(len(port.endpoints) for _, port in ports),
            offset,
            list(islice(endpoints, offset, offset + limit)),
        )

    async def _current(self) -> Known:
        stamp = (self._recorded, *self._hub.received.values())
        if self._known is None or self._known[0] != stamp:
            services = self._hub.state.services
            keys = sorted({*services, *chain.from_iterable(loop.ledger.known() for loop in self._loops)})
            empty: set[Key] = set()
            contested: set[Key] = set()

            def look(key: Key) -> bool:
                for _, row in self._rows(key):
                    plan = _shown(row)
                    if plan is not None and not all(port.any for port in plan.ports):
                        empty.add(key)
                    if plan is not None and plan.lost:
                        contested.add(key)
                return False

            await self._filter(keys, look)
            self._known = stamp, Known(keys, frozenset(empty), frozenset(contested))
        return self._known[1]

    async def _chosen(self, known: Known, which: Which) -> Sequence[Key]:
        match which:
            case "":
                return known.keys
            case "empty":
                return sorted(known.empty)
            case "contested":
                return sorted(known.contested)
            case "refused":
                return sorted({key for loop in self._loops for key in loop.ledger.refused})
            case _:
                return await self._filter(known.keys, lambda key: self._status(key)[0] == which)

    async def _filter(self, keys: Sequence[Key], matches: Callable[[Key], bool]) -> list[Key]:
        found: list[Key] = []
        for start in range(0, len(keys), _STEP):
            found += [key for key in keys[start : start + _STEP] if matches(key)]
            await asyncio.sleep(0)
        return found

    def _matches(self, key: Key, words: Iterable[str]) -> bool:
        plans: list[ServicePlan] | None = None
        for word in words:
            if word in f"{key[0]}/{key[1]}" or word in f"{key[1]}.{key[0]}":
                continue
            if plans is None:
                plans = [plan for _, row in self._rows(key) for plan in _plans(row)]
            if not any(_matches(plan, word) for plan in plans):
                return False
        return True

    def _rows(self, key: Key) -> Iterator[tuple[str, Row]]:
        for loop in self._loops:
            yield loop.family, loop.ledger.row(key)

    def _status(self, key: Key) -> tuple[Progress, str]:
        """The worst status of a Service in all families, and what the kernel said."""
        service = self._hub.state.services.get(key)
        expected = {family_of(address) for address in service.cluster_ips} if service else set()
        status: Progress = "done" if self._loops else "pending"
        for family, row in self._rows(key):
            if row.status == "refused":
                return "refused", row.words
            if row.status == "pending" or (row.in_kernel is None and family in expected):
                status = "pending"
        return status, ""

    def _listed(self, key: Key, known: Known) -> ListedService:
        plans = [plan for _, row in self._rows(key) if (plan := _shown(row)) is not None]
        fronts = list(islice((front_text(*each) for plan in plans for each in owned(plan)), MOST_FRONTS + 1))
        total = len(fronts)
        if total > MOST_FRONTS:
            total = sum(1 for plan in plans for _ in owned(plan))
        status, words = self._status(key)
        return ListedService(
            *key,
            status,
            words,
            key in known.empty,
            sum(len(plan.lost) for plan in plans),
            tuple(fronts[:MOST_FRONTS]),
            max(0, total - MOST_FRONTS),
            sum(max(map(endpoint_count, plan.ports), default=0) for plan in plans),
            sum(max(map(local_count, plan.ports), default=0) for plan in plans),
        )

    def _count(self) -> None:
        self._recorded += 1


def _shown(row: Row) -> ServicePlan | None:
    """The plan to show: the one in the kernel, or the wanted one if the kernel has none."""
    return row.in_kernel or row.wanted


def _plans(row: Row) -> Iterator[ServicePlan]:
    if row.in_kernel is not None:
        yield row.in_kernel
    if row.wanted is not None and row.wanted is not row.in_kernel:
        yield row.wanted


def _matches(plan: ServicePlan, word: str) -> bool:
    """Whether a word names something of a plan."""
    number = int(word.lstrip(":")) if word.lstrip(":").isdecimal() and len(word) <= 6 else 0

    def at(address: str, port: int) -> bool:
        if number:
            return port == number
        return address.startswith(word) or (":" in word and join(address, port).startswith(word))

    return (
        any(at(address, port) for address, _, port in owned(plan))
        or any(at(each.address, each.port) for each in plan.lost)
        or any(word in port.name.lower() for port in plan.ports)
        or any(at(each.address, each.port) for port in plan.ports for each in port.cluster)
        or any(at(each.address, each.port) for port in plan.ports for each in port.local)
    )
