"""Puts the parts together and runs them: the only module that knows everything.

In order: the source starts and tells the state; the node is waited for, since rules depend on what it is called,
where it is and which Pods are its own; a backend and a loop is made for each IP family; and when the first lists are
complete, the loops run. On SIGTERM everything stops and the rules stay.
"""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kubeproxy import __version__, backends
from kubeproxy import host as hosts
from kubeproxy.api.addresses import IPV4, Family, unpack
from kubeproxy.api.rows import NodeRow
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.config.load import Options
from kubeproxy.hub import Hub
from kubeproxy.netlink import route
from kubeproxy.notify import notify
from kubeproxy.sources.base import Source
from kubeproxy.sync import Loop

log = logging.getLogger(__name__)

NODE_ADDRESS_SECONDS = 30.0
"""How long we wait for the Node's addresses before we go on with loopback, as the reference does."""

POD_CIDR_SECONDS = 300.0
"""How long we wait for the Node's podCIDRs when local traffic is told by them, before we give up."""

_GC_THRESHOLD = (50_000, 20, 100)
"""Rows and plans hold no cycles and are not tracked: looking for garbage as often as Python does is a waste."""


class FatalError(Exception):
    """The program cannot go on; the message is for the operator."""


def run(options: Options) -> int:
    """Runs the program as told; returns its exit status."""
    log.info("kube-proxy v%s", __version__)
    gc.set_threshold(*_GC_THRESHOLD)
    try:
        if options.cleanup:
            backends.cleanup()
            return 0
        return asyncio.run(App(options).run())
    except (FatalError, UnsupportedError, SyncError, hosts.NodeError, OSError) as e:
        log.error("%s", e)  # noqa: TRY400 the message says it all
        return 1


class App:
    """The daemon."""

    def __init__(self, options: Options) -> None:
        """Takes the options; nothing is done before `run`.

        Raises:
            FatalError: the node has no name.
        """
        self._options = options
        self._config = options.config
        self._name = self._config.node_name
        if not self._name:
            raise FatalError("this host has no name; set --hostname-override to the name of its Node")

    async def run(self) -> int:
        """Runs until a signal or an error ends it; returns the exit status."""
        self._stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._hub = Hub(self._name)
        source = self._source()
        for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            asyncio.get_running_loop().add_signal_handler(number, self._end, code)
        tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(source.run()),
            asyncio.ensure_future(self._work()),
        ]
        try:
            done, _ = await asyncio.wait([self._stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
            return self._stop.result()
        finally:
            notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, code: int) -> None:
        if not self._stop.done():
            self._stop.set_result(code)

    def _source(self) -> Source:
        """The source the options name.

        Raises:
            FatalError: it cannot be used.
        """
        try:
            if self._options.manifests:
                from kubeproxy.sources.manifests import Manifests

                return Manifests([Path(path) for path in self._options.manifests], self._hub)
            from kubeproxy.sources.apiserver import ApiServer

            connection = self._config.client_connection
            return ApiServer(
                self._hub, self._name, kubeconfig=connection.kubeconfig, master=self._options.master
            )
        except (OSError, ValueError) as e:
            raise FatalError(str(e)) from e

    async def _work(self) -> None:
        """Does everything but listening to the source."""
        await self._node_known()
        self._supported = hosts.supported_families()
        self._found = hosts.own_addresses() if self._options.manifests else ()
        host = self._host()
        loops = await self._loops(host)
        self._hub.on_node = lambda row: self._node_changed(loops, row)
        if self._hub.node != self._row:
            self._node_changed(loops, self._hub.node)
        await self._hub.lists_complete.wait()
        self._hub.loops = loops
        log.info("Services and endpoints are known, writing rules")
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop.run())
            if any(node.node_port_ranges for node in host.nodes):
                group.create_task(self._watch_addresses(loops))
            await self._all_synced(loops)

    async def _node_known(self) -> None:
        """Waits for the own Node; only as long as it may still come.

        Raises:
            FatalError: local traffic is told by podCIDRs, and the Node has none.
        """
        by_node = self._config.detect_local_mode == "NodeCIDR"
        news = asyncio.Event()
        self._hub.on_node = lambda _: news.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POD_CIDR_SECONDS if by_node else NODE_ADDRESS_SECONDS):
                while not _is_usable(self._hub.node, by_node=by_node):
                    if self._options.manifests and self._hub.node_complete:
                        break
                    news.clear()
                    await news.wait()
        row = self._hub.node
        if by_node and not (row and row.pod_cidrs):
            raise FatalError(f"Node {self._name} has no podCIDRs, but detectLocalMode is NodeCIDR")
        addresses = ", ".join(row.addresses) if row else ""
        log.info("This is node %s, its Node object has %s", self._name, addresses or "no addresses")
        self._row = row

    def _host(self) -> hosts.Host:
        return hosts.host(
            self._config, self._name, self._hub.node, supported=self._supported, found=self._found
        )

    async def _loops(self, host: hosts.Host) -> list[Loop]:
        """A loop for each family that can be served; the primary one must be.

        Raises:
            UnsupportedError: the mode cannot run here.
        """
        mode = backends.load(self._config.mode)
        opened = await asyncio.gather(
            *(asyncio.to_thread(mode.open_backend, node) for node in host.nodes), return_exceptions=True
        )
        loops = []
        for node, backend in zip(host.nodes, opened, strict=True):
            if isinstance(backend, UnsupportedError) and node is not host.primary:
                log.warning("Only %s is served: %s", host.primary.family, backend)
                continue
            if isinstance(backend, BaseException):
                raise backend
            loop = Loop(
                self._hub.state,
                backend,
                node.with_addresses(_local_addresses(node.family)),
                sync_period=self._config.sync_period,
                min_sync_period=self._config.min_sync_period,
            )
            loops.append(loop)
        return loops

    def _node_changed(self, loops: Sequence[Loop], row: NodeRow | None) -> None:
        """The Node is another now. Files are taken as they are; of a cluster's Node only the zone may change."""
        before = self._row
        if not self._options.manifests and before is not None:
            if row is None:
                self._fail(f"Node {self._name} was deleted")
                return
            if self._config.detect_local_mode == "NodeCIDR" and row.pod_cidrs != before.pod_cidrs:
                self._fail(f"Node {self._name}: podCIDRs changed from {before.pod_cidrs} to {row.pod_cidrs}")
                return
            if row.addresses != before.addresses:
                self._fail(f"Node {self._name}: addresses changed from {before.addresses} to {row.addresses}")
                return
        try:
            nodes = {node.family: node for node in self._host().nodes}
        except hosts.NodeError as e:
            log.error("Node %s: the change is not followed: %s", self._name, e)  # noqa: TRY400
            return
        self._row = row
        for loop in loops:
            loop.set_node(nodes[loop.family].with_addresses(_local_addresses(loop.family)))

    def _fail(self, why: str) -> None:
        """Ends the program, to be started again with the node as it is now."""
        log.error("%s: exiting, to start anew", why)
        self._end(1)

    async def _watch_addresses(self, loops: Sequence[Loop]) -> None:
        """Follows the addresses of this host, for node ports are bound to those in some ranges."""
        changed = asyncio.Event()
        changed.set()  # since the loops were made nobody has looked
        running = asyncio.get_running_loop()
        with route.monitor() as monitor:
            running.add_reader(monitor.fileno(), changed.set)
            try:
                while True:
                    await changed.wait()
                    # What was told is not looked at: a socket that overflowed has told it, too.
                    with contextlib.suppress(OSError):
                        while list(monitor.receive(wait=False)):
                            pass
                    changed.clear()
                    try:
                        for loop in loops:
                            loop.set_node(loop.node.with_addresses(_local_addresses(loop.family)))
                    except OSError as e:
                        log.warning(
                            "Node ports stay on the addresses known, the host's cannot be listed: %s", e
                        )
            finally:
                running.remove_reader(monitor.fileno())

    async def _all_synced(self, loops: Sequence[Loop]) -> None:
        """When all rules are in place: says so, and removes what another mode left."""
        for loop in loops:
            await loop.synced.wait()
        count = sum(len(loop.applied) for loop in loops)
        log.info("Synced: %d Services in place, %d refused", count, sum(len(loop.refused) for loop in loops))
        notify("READY=1")
        gc.collect()
        gc.freeze()
        for mode in backends.replaced_by(self._config.mode):
            try:
                await asyncio.to_thread(backends.cleanup, mode)
            except (OSError, SyncError) as e:
                log.warning("Leftovers of %s mode stay: %s", mode, e)


def _is_usable(row: NodeRow | None, *, by_node: bool) -> bool:
    return row is not None and bool(row.addresses) and (not by_node or bool(row.pod_cidrs))


def _local_addresses(family: Family) -> list[str]:
    """This host's addresses of a family."""
    size = 4 if family == IPV4 else 16
    return [unpack(a.packed) for a in route.addresses() if len(a.packed) == size]
