"""The Services and EndpointSlices of the cluster as rows, and which plans each change affects.

A change is one object; the result is the Services that must be planned again. An object that equals the
stored one affects none. Plans are made only when `plan` is called, for one Service and one family.

A change of a Service can also affect other Services, because it may take a front from another one or leave
one to it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

from kubeproxy.api import flatten, types
from kubeproxy.api.addresses import Family, family_of
from kubeproxy.api.flatten import DEFAULT_NAMESPACE
from kubeproxy.api.rows import ServiceRow, SliceRow
from kubeproxy.model.claims import Claims
from kubeproxy.model.complaints import Complaints, Name
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Front, Key, ServicePlan
from kubeproxy.model.planning import Address
from kubeproxy.model.planning import plan as make_plan

Touched = Mapping[Key, Collection[Family]]
"""The Services whose plans may have changed, each with the IP families of those plans."""

StateRows = tuple[ServiceRow, ...] | tuple[SliceRow, ...]
"""What is stored of one object: one row of a Service that is programmed, none of another one.

Those of an EndpointSlice.
"""


class State:
    """Services and their EndpointSlices.

    Attributes:
        services: the Services that are programmed.
        foreign: existing Services that we do not program: headless ones, ExternalName, those of other
            proxies.
        on_change: called with each Service that was added, changed or removed, or one of whose EndpointSlices
            was, even if the Service itself does not exist.
        on_stored: called with each object of which something else is stored now: its name, and its rows, None
            if it does not exist or concerns no Service.
        silent: by Service, the endpoints that do not answer, those that have not for longest first.
        full: by Service, the near endpoints that have as many connections as their limit, each with the name
            of the port as in its plan.
    """

    def __init__(self) -> None:
        self.services: dict[Key, ServiceRow] = {}
        self.foreign: set[Key] = set()
        self.on_change: Callable[[Key], None] | None = None
        self.on_stored: Callable[[Name, StateRows | None], None] | None = None
        self.silent: dict[Key, tuple[Address, ...]] = {}
        self.full: dict[Key, frozenset[tuple[str, Address]]] = {}
        self._slices: dict[Key, dict[Name, tuple[SliceRow, ...]]] = {}
        self._service_of: dict[Name, Key] = {}
        self._claims: dict[tuple[Family, bool], Claims] = {}
        self._complaints = Complaints()

    def set(self, obj: types.Service | types.EndpointSlice | types.Endpoints) -> Touched:
        """Stores an object; returns the Services whose plans may have changed.

        Parts of it that cannot be used are left out and logged with their field. An object that cannot be
        used at all changes nothing: its last good state stays.
        """
        name = (type(obj).__name__, obj.metadata.namespace or DEFAULT_NAMESPACE, obj.metadata.name)
        complaints: list[tuple[str, str]] = []
        touched: Touched = {}

        def complain(field: str, message: str) -> None:
            complaints.append((field, message))

        try:
            if isinstance(obj, types.Service):
                touched = self._set_service(name, flatten.service(obj, complain), exists=True)
            elif isinstance(obj, types.EndpointSlice):
                row = flatten.endpoint_slice(obj, complain)
                touched = self._set_slices(name, () if row is None else (row,))
            else:
                touched = self._set_slices(name, flatten.endpoints(obj, complain))
        except ValueError as e:
            field, _, message = str(e).partition(": ")
            complain(field, f"{message}; the object is left out")
        self._complaints.report(name, complaints)
        return touched

    def gone(self, kind: str, namespace: str, name: str) -> Touched:
        """Removes an object; returns the Services whose plans may have changed."""
        who = (kind, namespace or DEFAULT_NAMESPACE, name)
        self._complaints.forget(who)
        return self._set_service(who, None, exists=False) if kind == "Service" else self._set_slices(who, ())

    def put(self, name: Name, rows: StateRows | None) -> Touched:
        """Stores the rows of an object as `on_stored` gave them.

        Returns the Services whose plans may have changed.
        """
        if name[0] != "Service":
            return self._set_slices(name, tuple(row for row in rows or () if isinstance(row, SliceRow)))
        service = next((row for row in rows or () if isinstance(row, ServiceRow)), None)
        return self._set_service(name, service, exists=rows is not None)

    def stored(self) -> Iterator[tuple[Name, StateRows]]:
        """All objects, each with what is stored of it. The state may not change meanwhile."""
        for key, row in self.services.items():
            yield ("Service", *key), (row,)
        for key in self.foreign:
            yield ("Service", *key), ()
        for pieces in self._slices.values():
            yield from pieces.items()

    def plan(self, key: Key, node: NodeConfig) -> ServicePlan | None:
        """The plan of a Service on a node; None if it does not exist or has no ClusterIP of that family."""
        return self.prepare(key, node)()

    def prepare(self, key: Key, node: NodeConfig) -> Callable[[], ServicePlan | None]:
        """A function that makes the plan of a Service from its current state.

        It may be called in another thread.
        """
        service = self.services.get(key)
        if service is None:
            return lambda: None
        silent = self.silent.get(key, ()) if service.skips_silent else ()
        full = self.full.get(key, frozenset())
        return partial(make_plan, service, self.slices(key), node, self._claims_on(node).owner, silent, full)

    def rivals(self, front: Front, node: NodeConfig) -> list[Key]:
        """The Services that name a front on a node, its owner first."""
        return self._claims_on(node).rivals(front)

    def _claims_on(self, node: NodeConfig) -> Claims:
        """The claims on the fronts of a node. They are recorded from the first call on."""
        which = node.family, node.external_ips
        claims = self._claims.get(which)
        if claims is None:
            claims = self._claims[which] = Claims(node.family, external_ips=node.external_ips)
            for key in sorted(self.services):
                claims.change(key, None, self.services[key])
        return claims

    def size(self, key: Key) -> int:
        """The number of endpoints of a Service times its ports, an estimate of the cost of its plan."""
        pieces = self._slices.get(key)
        if not pieces:
            return 0
        return sum([len(row.endpoints) * len(row.ports) for rows in pieces.values() for row in rows])

    def slices(self, key: Key) -> Sequence[SliceRow]:
        """The EndpointSlices of a Service, in the order of their names."""
        pieces = self._slices.get(key)
        if not pieces:
            return ()
        if len(pieces) == 1:
            return next(iter(pieces.values()))
        return [row for name in sorted(pieces) for row in pieces[name]]

    def named_slices(self, key: Key) -> Sequence[tuple[str, SliceRow]]:
        """The EndpointSlices of a Service, each with the name of its object, in the order of `slices`."""
        pieces = self._slices.get(key, {})
        return [(name[2], row) for name in sorted(pieces) for row in pieces[name]]

    def rows(self, name: Name) -> tuple[SliceRow, ...]:
        """The rows of an EndpointSlice or Endpoints object; none if there is none."""
        key = self._service_of.get(name)
        return () if key is None else self._slices[key][name]

    @property
    def sliced(self) -> Collection[Key]:
        """The Services, existing or not, that EndpointSlices name."""
        return self._slices.keys()

    def sources(self, key: Key) -> Collection[Name]:
        """The EndpointSlices and Endpoints that name a Service."""
        return self._slices.get(key, {}).keys()

    def has_slices(self, kind: str, namespace: str, name: str) -> bool:
        """Whether an EndpointSlice or Endpoints object belongs to a Service."""
        return (kind, namespace or DEFAULT_NAMESPACE, name) in self._service_of

    def _set_service(self, name: Name, row: ServiceRow | None, *, exists: bool) -> Touched:
        key = (name[1], name[2]) if row is None else (row.namespace, row.name)
        foreign, was_foreign = exists and row is None, key in self.foreign
        if foreign != was_foreign:
            (self.foreign.add if foreign else self.foreign.discard)(key)
            self._changed(key)
        before = self.services.get(key)
        if before == row:
            if was_foreign != foreign:
                self._stored(name, () if exists else None)
            return {}
        if row is None:
            del self.services[key]
        else:
            self.services[key] = row
        self._changed(key)
        nothing = () if exists else None
        self._stored(name, nothing if row is None else (row,))
        touched = {key: {family_of(ip) for service in (before, row) if service for ip in service.cluster_ips}}
        for (family, _), claims in self._claims.items():
            for rival in claims.change(key, before, row):
                touched.setdefault(rival, set()).add(family)
        return touched

    def _set_slices(self, name: Name, rows: tuple[SliceRow, ...]) -> Touched:
        """Replaces the rows of an object, which may have belonged to another Service before."""
        before = self._service_of.get(name)
        after = (rows[0].namespace, rows[0].service) if rows else None
        known = () if before is None else self._slices[before][name]
        if known == rows and before == after:
            return {}
        if before is not None and before != after:
            del self._service_of[name]
            pieces = self._slices[before]
            del pieces[name]
            if not pieces:
                del self._slices[before]
        if after is not None:
            self._service_of[name] = after
            self._slices.setdefault(after, {})[name] = rows
        touched: dict[Key, set[Family]] = {}
        for key, changed in ((before, known), (after, rows)):
            if key is not None:
                touched.setdefault(key, set()).update(_families(changed))
        for key in touched:
            self._changed(key)
        self._stored(name, rows or None)
        return {key: families for key, families in touched.items() if key in self.services}

    def _changed(self, key: Key) -> None:
        if self.on_change is not None:
            self.on_change(key)

    def _stored(self, name: Name, rows: StateRows | None) -> None:
        if self.on_stored is not None:
            self.on_stored(name, rows)


def _families(rows: Iterable[SliceRow]) -> Iterable[Family]:
    return (row.family for row in rows)
