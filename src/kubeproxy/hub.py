"""Distributes the objects of the source to the state, the control loops and `nodewatch`."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from kubeproxy.api import flatten, types
from kubeproxy.api.addresses import FAMILIES, Family
from kubeproxy.api.rows import NodeRow
from kubeproxy.log import V4, ObjectRef
from kubeproxy.model.complaints import Complaints, Name
from kubeproxy.model.plan import Key
from kubeproxy.model.state import State, Touched
from kubeproxy.reconcile.reconciler import Reconciler

log = logging.getLogger(__name__)

_NEEDED = {"Service", "EndpointSlice"}

Follower = Callable[[Name, tuple[Any, ...] | None], None]
"""Called with each object of which something else is known now: its name, and what is kept of it: the rows of
a Service or of an EndpointSlice (`State.on_stored`), the row of the own Node, or the ranges of all
ServiceCIDRs."""


class Hub:
    """The sink of the source. See `sources.base.Sink`.

    Attributes:
        state: Services and their endpoints.
        loops: the control loops, which are woken by changes.
        node: the own Node, None as long as it is not known or after it was deleted.
        on_node: called with the own Node at each change, and with None if the first list does not have it.
        answered: set when the source has completed the first list of some kind, so it is reachable.
        lists_complete: set when all Services and endpoints are known; before that nothing may be written.
        node_complete: it is known whether there is a Node.
        received: how many times the source reported a Service, and endpoints of a Service, changed or not.
    """

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._missing = set(_NEEDED)
        self._cidrs: dict[str, tuple[str, ...]] = {}
        self._complaints = Complaints()
        self._follower: Follower | None = None
        self.state = State()
        self.loops: list[Reconciler] = []
        self.node: NodeRow | None = None
        self.on_node: list[Callable[[NodeRow | None], None]] = []
        self.answered = asyncio.Event()
        self.lists_complete = asyncio.Event()
        self.node_complete = False
        self.received = {"Service": 0, "EndpointSlice": 0}
        self._started = time.time()

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        """The ranges of all ServiceCIDRs, each once, in the order in which they were reported."""
        return tuple(dict.fromkeys(cidr for ranges in self._cidrs.values() for cidr in ranges))

    def follow(self, follower: Follower | None) -> None:
        """Calls back for each change from now on; None ends that."""
        self._follower = self.state.on_stored = follower

    def set(self, obj: types.Object) -> None:
        """See `Sink`."""
        if isinstance(obj, types.Node):
            if obj.metadata.name == self._node_name:
                found: list[tuple[str, str]] = []
                row = flatten.node(obj, lambda *complaint: found.append(complaint))
                self._complaints.report(("Node", "", row.name), found)
                self._set_node(row)
        elif isinstance(obj, types.ServiceCIDR):
            name = obj.metadata.name
            found = []
            self._cidrs[name] = flatten.service_cidr(obj, lambda *complaint: found.append(complaint))
            self._complaints.report(("ServiceCIDR", "", name), found)
            self._service_cidrs_changed()
        else:
            self._count(obj)
            if touched := self.state.set(obj):
                service = isinstance(obj, types.Service)
                triggered = None if service else self._triggered(obj.metadata.annotations)
                if log.isEnabledFor(V4):
                    about = ObjectRef(obj.metadata.namespace, obj.metadata.name)
                    log.log(V4, "%(kind)s %(object)s is set", {"kind": type(obj).__name__, "object": about})
                self._touch(touched, triggered)

    def gone(self, kind: str, namespace: str, name: str) -> None:
        """See `Sink`."""
        if kind == "Node":
            if name == self._node_name:
                self._complaints.forget((kind, "", name))
                self._set_node(None)
        elif kind == "ServiceCIDR":
            self._complaints.forget((kind, "", name))
            self._cidrs.pop(name, None)
            self._service_cidrs_changed()
        else:
            if kind == "Service":
                self.received["Service"] += 1
            elif self.state.has_slices(kind, namespace, name):
                self.received["EndpointSlice"] += 1
            if touched := self.state.gone(kind, namespace, name):
                log.log(
                    V4, "%(kind)s %(object)s is gone", {"kind": kind, "object": ObjectRef(namespace, name)}
                )
                self._touch(touched)

    def complete(self, kind: str) -> None:
        """See `Sink`."""
        self.answered.set()
        self._missing.discard(kind)
        if not self._missing:
            self.lists_complete.set()
        if kind == "Node":
            self.node_complete = True
            self._node_changed()

    def refused(self, kind: str, name: str, reason: str, *, kept: bool, file: str = "") -> None:
        """See `Sink`."""
        consequence = ", its last good state stays" if kept else " and is left out"
        namespace, _, own = name.rpartition("/")
        about = ObjectRef(namespace, own)
        if file:
            log.error(
                "%(kind)s %(object)s in %(file)s cannot be decoded%(consequence)s: %(err)s",
                {"kind": kind, "object": about, "file": file, "consequence": consequence, "err": reason},
            )
        else:
            log.error(
                "%(kind)s %(object)s cannot be decoded%(consequence)s: %(err)s",
                {"kind": kind, "object": about, "consequence": consequence, "err": reason},
            )

    def replan(self, key: Key, family: Family) -> None:
        """Has a Service planned again, whichever control loop has this family now."""
        self._touch({key: {family}})

    def _touch(self, touched: Touched, triggered: float | None = None) -> None:
        """Wakes the control loops of the families that are concerned, and no other."""
        for loop in self.loops:
            loop.touch([key for key, families in touched.items() if loop.family in families], triggered)

    def _count(self, obj: types.Object) -> None:
        """Counts as the reference's trackers: each Service, and IP slices that name their Service."""
        if isinstance(obj, types.Service):
            self.received["Service"] += 1
        elif isinstance(obj, types.Endpoints):
            self.received["EndpointSlice"] += 1
        elif isinstance(obj, types.EndpointSlice):
            labels = obj.metadata.labels
            self.received["EndpointSlice"] += obj.address_type in FAMILIES and bool(labels and labels.service)

    def _triggered(self, annotations: types.Annotations | None) -> float | None:
        """The Unix time of the change behind an EndpointSlice; None if unknown, or before this program."""
        if not self.loops or annotations is None or annotations.triggered is None:
            return None
        try:
            at = datetime.fromisoformat(annotations.triggered)
            seconds = at.timestamp()
        except (ValueError, OverflowError):
            return None
        return seconds if at.tzinfo and seconds > self._started else None

    def _service_cidrs_changed(self) -> None:
        if self._follower is not None:
            self._follower(("ServiceCIDR", "", ""), self.service_cidrs)
        for loop in self.loops:
            loop.set_node(loop.node.with_service_cidrs(self.service_cidrs))

    def _set_node(self, row: NodeRow | None) -> None:
        if row != self.node:
            self.node = row
            self._node_changed()

    def _node_changed(self) -> None:
        if self._follower is not None:
            self._follower(("Node", "", self._node_name), None if self.node is None else (self.node,))
        for listener in list(self.on_node):
            listener(self.node)
