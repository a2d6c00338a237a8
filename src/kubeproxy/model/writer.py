"""Which node of a cluster writes an Event about a Service, where all nodes find the same.

Nodes do not talk to each other, and each knows its own Node only. So the choice is computed from what all of
them know, the EndpointSlices: the node of the first endpoint of the Service. A Service without endpoints gets
one of all nodes that have endpoints of any Service. It is the one with the smallest hash together with the
Service's name: so such Services are spread over the nodes, and a node that comes or goes changes the choice
for few of them.
"""

from functools import cached_property
from zlib import crc32

from kubeproxy.model.plan import Key
from kubeproxy.model.state import State


class WriterChoice:
    """The choice for some Services that are reported together: meanwhile the state does not change."""

    def __init__(self, state: State, node: str) -> None:
        """Computes nothing yet.

        Args:
            state: the Services and EndpointSlices.
            node: the own Node's name.
        """
        self._state = state
        self._node = node

    def is_mine(self, *keys: Key) -> bool:
        """Whether this node writes an Event. If no endpoint of the cluster names a node, every node does.

        Args:
            keys: the Service; then other Services that it concerns, whose endpoints count if it has none.
        """
        for key in keys:
            endpoints = [(e.address, e.node) for s in self._state.slices(key) for e in s.endpoints if e.node]
            if endpoints:
                return min(endpoints)[1] == self._node
        name = "/".join(keys[0])
        first = min(
            self._nodes, key=lambda node: (crc32(f"{node} {name}".encode()), node), default=self._node
        )
        return first == self._node

    @cached_property
    def _nodes(self) -> set[str]:
        """All nodes with endpoints."""
        state = self._state
        return {e.node for key in state.sliced for s in state.slices(key) for e in s.endpoints if e.node}
