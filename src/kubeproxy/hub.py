"""Where word of the cluster goes: Services to the state and the loops, the Node and ServiceCIDRs to whom they concern."""

import asyncio
import logging
from collections.abc import Callable

from kubeproxy.api import flatten, types
from kubeproxy.api.rows import NodeRow
from kubeproxy.model.complaints import Complaints
from kubeproxy.model.state import State
from kubeproxy.sync import Loop

log = logging.getLogger(__name__)

_NEEDED = {"Service", "EndpointSlice"}


class Hub:
    """The sink of the source. See `sources.base.Sink`.

    Attributes:
        state: Services and their endpoints.
        loops: the control loops to tell.
        node: the own Node, None as long as it is not known or after it was deleted.
        on_node: told of each change of the own Node, and of its absence when the first list is complete.
        answered: set when the source first told all there is of some kind: it is there.
        lists_complete: set when Services and endpoints are known whole; before that nothing may be written.
        node_complete: it is known whether there is a Node.
    """

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._missing = set(_NEEDED)
        self._cidrs: dict[str, tuple[str, ...]] = {}
        self._complaints = Complaints()
        self.state = State()
        self.loops: list[Loop] = []
        self.node: NodeRow | None = None
        self.on_node: Callable[[NodeRow | None], None] = lambda _: None
        self.answered = asyncio.Event()
        self.lists_complete = asyncio.Event()
        self.node_complete = False

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        """The ranges of all ServiceCIDRs, each once, in the order they came."""
        return tuple(dict.fromkeys(cidr for ranges in self._cidrs.values() for cidr in ranges))

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
        else:
            keys = self.state.set(obj)
            for loop in self.loops:
                loop.touch(keys)

    def gone(self, kind: str, namespace: str, name: str) -> None:
        """See `Sink`."""
        if kind == "Node":
            if name == self._node_name:
                self._complaints.forget((kind, "", name))
                self._set_node(None)
        elif kind == "ServiceCIDR":
            self._complaints.forget((kind, "", name))
            self._cidrs.pop(name, None)
        else:
            keys = self.state.gone(kind, namespace, name)
            for loop in self.loops:
                loop.touch(keys)

    def complete(self, kind: str) -> None:
        """See `Sink`."""
        self.answered.set()
        self._missing.discard(kind)
        if not self._missing:
            self.lists_complete.set()
        if kind == "Node":
            self.node_complete = True
            self.on_node(self.node)

    def refused(self, kind: str, name: str, reason: str) -> None:
        """See `Sink`."""
        log.error("%s %s is left out, its last good state stays: %s", kind, name, reason)

    def _set_node(self, row: NodeRow | None) -> None:
        if row != self.node:
            self.node = row
            self.on_node(row)
