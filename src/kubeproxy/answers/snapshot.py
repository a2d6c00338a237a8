"""The cluster at one moment, planned for one node: what every answer is about."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import Driver
from kubeproxy.backends.mode import Mode
from kubeproxy.backends.relayed import Relaying, RelaySocket
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.model.state import State


class Snapshot(Struct, frozen=True):
    """The cluster at one moment.

    Attributes:
        state: Services and their endpoints.
        mode: the mode that is answered for.
        nodes: the node under each of its families, the primary one first.
        local_addresses: the addresses of the node, of each family.
        own: it is the node this process runs on, so its kernel can be read.
        troubles: what could not be read, and what that means for answers.
        objects: other objects that were asked for, by path, as the API server returned them; None where it
            refused.
        drivers: the drivers of the daemon, if it answers.
        sockets: those of the relay of the daemon, if another process answers; None if they are not known.
        past: the moment that is answered for, if it is a former one; "" for the present.
        planned: the plans that were asked for so far.
    """

    state: State
    mode: Mode
    nodes: tuple[NodeConfig, ...]
    local_addresses: Mapping[Family, tuple[str, ...]]
    own: bool
    troubles: tuple[str, ...] = ()
    objects: Mapping[str, bytes | None] = {}
    drivers: Mapping[Family, Driver] = {}
    sockets: Mapping[Family, Sequence[RelaySocket]] | None = {}
    past: str = ""
    planned: dict[Family, dict[Key, ServicePlan]] = {}

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.nodes[0].name

    def node(self, family: Family) -> NodeConfig | None:
        """The node under a family; None if it does not have it."""
        return next((node for node in self.nodes if node.family == family), None)

    def sockets_of(self, family: Family) -> Sequence[RelaySocket] | None:
        """The sockets of the relay of the daemon under a family; None if they are not known."""
        if self.drivers:
            driver = self.drivers.get(family)
            return driver.sockets() if isinstance(driver, Relaying) else ()
        return None if self.sockets is None else self.sockets.get(family, ())

    def plans(self, family: Family) -> dict[Key, ServicePlan]:
        """The plans of all Services under a family."""
        node = self.node(family)
        if node is None:
            return {}
        if family not in self.planned:
            planned = ((key, self.state.plan(key, node)) for key in self.state.services)
            self.planned[family] = {key: plan for key, plan in planned if plan is not None}
        return self.planned[family]
