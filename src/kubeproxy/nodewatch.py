"""The own node while the program runs: waits for its Node object at the start, and watches it afterwards.

Rules depend on the node's addresses and on which Pods are local. So at the start the program waits for its
addresses, and for its podCIDRs if local traffic is detected by them; the timeout starts when the source first
answers. After that, a change of those is reported, because the drivers depend on them: they are opened again.
After a change of the zone everything is planned again. When the Node is deleted the program ends, as in
Kubernetes v1.37, unless it is from a file: then all changes are followed.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from kubeproxy import host as hosts
from kubeproxy.api.addresses import Family, is_loopback, unpack
from kubeproxy.api.rows import NodeRow
from kubeproxy.backends import own_addresses
from kubeproxy.backends.base import VIRTUAL_INTERFACE
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.hub import Hub
from kubeproxy.log import ObjectRef
from kubeproxy.machine.base import Machine
from kubeproxy.reconcile.reconciler import Reconciler

log = logging.getLogger(__name__)

ADDRESS_SECONDS = 30.0
"""Seconds to wait for the Node's addresses before loopback is used, as in the reference."""

POD_CIDR_SECONDS = 300.0
"""Seconds to wait for the Node's podCIDRs if they identify local traffic, before the program exits."""


_REMEDY = "set --hostname-override if this node has another name in the cluster"


class NodeWatch:
    """The own node."""

    def __init__(
        self,
        machine: Machine,
        config: KubeProxyConfiguration,
        hub: Hub,
        *,
        files: bool,
        before: NodeRow | None = None,
    ) -> None:
        """Nothing is done before `known`.

        Args:
            machine: the host.
            config: the configuration.
            hub: reports changes of the Node.
            files: it is read from files.
            before: the Node as it was last known; its addresses count while the Node has none.
        """
        self._machine = machine
        self._config = config
        self._name = config.node_name
        self._hub = hub
        self._files = files
        self._by_node = config.detect_local_mode == "NodeCIDR"
        self._row = before
        self._loops: Sequence[Reconciler] = ()
        self._end: Callable[[str], None] = log.error
        self._renew: Callable[[str], None] = log.error

    async def known(self) -> hosts.Host:
        """Waits for the fields of the Node that are needed, and determines the node's settings.

        Raises:
            NodeError: the configuration cannot work here, or podCIDRs identify local traffic and there are
                none.
        """
        await self._hub.answered.wait()
        await self._wait("addresses", ADDRESS_SECONDS, lambda row: bool(self._with_addresses(row).addresses))
        if self._by_node:
            await self._wait("podCIDRs", POD_CIDR_SECONDS, lambda row: bool(row.pod_cidrs))
        row = self._hub.node and self._with_addresses(self._hub.node)
        if self._by_node and not (row and row.pod_cidrs):
            what = "has no podCIDRs" if row else f"does not exist, {_REMEDY}"
            raise hosts.NodeError(f"Node {self._name} {what}, but detectLocalMode is NodeCIDR")
        self._supported = hosts.supported_families(self._machine)
        self._found = hosts.own_addresses(self._machine) if self._files else ()
        made = self._host(row)
        self._row = row
        if row and row.addresses:
            origin = "of its Node object"
        else:
            origin = "of this host" if self._found else "assumed"
            origin += ", its Node object has none" if row else ", there is no Node object"
        addresses = ", ".join(node.address for node in made.nodes if not is_loopback(node.address))
        log.info(
            "This is node %(node)s, with addresses %(addresses)s (%(origin)s)",
            {"node": ObjectRef("", self._name), "addresses": addresses or "of loopback", "origin": origin},
        )
        return made

    @property
    def row(self) -> NodeRow | None:
        """The Node as it was last taken into account; None if there is none."""
        return self._row

    def follow(
        self, loops: Sequence[Reconciler], *, end: Callable[[str], None], renew: Callable[[str], None]
    ) -> None:
        """From now on the loops get the node as it is, until `unfollow`.

        Args:
            loops: the loops.
            end: called with the reason when the program must end.
            renew: called with the reason when the drivers must be opened again.
        """
        self._loops, self._end, self._renew = loops, end, renew
        self._hub.on_node.append(self._changed)
        if self._hub.node != self._row:
            self._changed(self._hub.node)

    def unfollow(self) -> None:
        """Ends `follow`."""
        self._hub.on_node.remove(self._changed)

    async def follow_addresses(self) -> None:
        """Watches the addresses of this host if anything depends on them; those of Services are ignored."""
        if not any(loop.node.follows_addresses for loop in self._loops):
            return
        changed = asyncio.Event()
        with self._machine.watch_addresses(changed.set, but=VIRTUAL_INTERFACE):
            self._look_at_addresses()  # they may have changed since the loops were made
            while True:
                await changed.wait()
                changed.clear()
                self._look_at_addresses()

    def _look_at_addresses(self) -> None:
        try:
            for loop in self._loops:
                loop.set_node(loop.node.with_addresses(local_addresses(self._machine, loop.family)))
        except OSError as e:
            log.warning(
                "Node ports stay on the known addresses, because the host's cannot be listed: %(err)s",
                {"err": e},
            )

    async def _wait(self, what: str, seconds: float, there: Callable[[NodeRow], bool]) -> None:
        """Waits, with a timeout, for a condition of the Node; with manifests only until they are read."""
        news = asyncio.Event()

        def changed(_: NodeRow | None) -> None:
            news.set()

        self._hub.on_node.append(changed)
        try:
            async with asyncio.timeout(seconds):
                await self._there(what, seconds, there, news)
        except TimeoutError:
            pass
        finally:
            self._hub.on_node.remove(changed)

    async def _there(
        self, what: str, seconds: float, there: Callable[[NodeRow], bool], news: asyncio.Event
    ) -> None:
        """Waits until the Node has something, or it is known that files have no such Node."""
        logged = False
        while not ((row := self._hub.node) and there(row)):
            if self._hub.node_complete:
                if self._files:
                    return
                if row:
                    log.info(
                        "Node %(node)s has no %(field)s yet, waiting %(seconds)g s at most",
                        {"node": ObjectRef("", self._name), "field": what, "seconds": seconds},
                    )
                elif not logged:
                    logged = True
                    log.error(
                        "Node %(node)s does not exist: %(remedy)s; waiting for it, %(seconds)g s at most",
                        {"node": ObjectRef("", self._name), "remedy": _REMEDY, "seconds": seconds},
                    )
            news.clear()
            await news.wait()

    def _changed(self, row: NodeRow | None) -> None:
        """Handles a change of the Node."""
        before = self._row
        if not self._files:
            if row is None:
                if before:
                    self._end(f"Node {self._name} was deleted")
                return
            if reason := self._reason_to_renew(before, row):
                self._renew(f"Node {self._name} {reason}")
                return
            if before and before.addresses and not row.addresses:
                log.warning(
                    "Node %(node)s has no addresses any more, the last known ones stay in use",
                    {"node": ObjectRef("", self._name)},
                )
                row = self._with_addresses(row)
        try:
            nodes = {node.family: node for node in self._host(row).nodes}
        except hosts.NodeError as e:
            log.error(  # noqa: TRY400 the message is complete
                "Node %(node)s: the change is ignored: %(err)s",
                {"node": ObjectRef("", self._name), "err": e},
            )
            return
        self._row = row
        for loop in self._loops:
            node = nodes[loop.family].with_addresses(local_addresses(self._machine, loop.family))
            loop.set_node(node.with_service_cidrs(self._hub.service_cidrs))

    def _reason_to_renew(self, before: NodeRow | None, row: NodeRow) -> str:
        """What changed that drivers depend on, or ""."""
        known = before or NodeRow(self._name)
        if self._by_node and row.pod_cidrs != known.pod_cidrs:
            return f"had podCIDRs {_listed(known.pod_cidrs)}, it has {_listed(row.pod_cidrs)} now"
        if row.addresses and row.addresses != known.addresses:
            return f"had addresses {_listed(known.addresses)}, it has {_listed(row.addresses)} now"
        return ""

    def _with_addresses(self, row: NodeRow) -> NodeRow:
        """A row of the Node with the last known addresses if it has none: files alone can take them away."""
        before = self._row
        if self._files or row.addresses or not (before and before.addresses):
            return row
        return replace(row, addresses=before.addresses)

    def _host(self, row: NodeRow | None) -> hosts.Host:
        return hosts.host(self._config, self._name, row, supported=self._supported, found=self._found)


def local_addresses(machine: Machine, family: Family) -> list[str]:
    """A host's addresses of a family, without those of Services, which ipvs mode assigns to an interface.

    Raises:
        OSError: the kernel cannot list them.
    """
    return [unpack(a) for a in own_addresses.packed(machine, family, but=VIRTUAL_INTERFACE)]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts) or "none"
