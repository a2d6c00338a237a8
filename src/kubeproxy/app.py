"""Puts the parts together and runs them: the only module that knows everything.

In order: the source starts and tells the state; the node is waited for, since rules depend on what it is called,
where it is and which Pods are its own; a driver and a loop is made for each IP family; and when the first lists are
complete, the loops run. On SIGTERM everything stops and the rules stay.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeproxy import __version__, backends, nodewatch, progress, sysctls
from kubeproxy import host as hosts
from kubeproxy import log as klog
from kubeproxy.backends.base import Driver, SyncError, UnsupportedError
from kubeproxy.backends.mode import Mode
from kubeproxy.config import KUBERNETES
from kubeproxy.config.load import RunOptions
from kubeproxy.contests import Contests
from kubeproxy.events import Events
from kubeproxy.flows import FlowCleaner
from kubeproxy.forwarding import Forwarding
from kubeproxy.hub import Hub
from kubeproxy.linux import instance
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.nodewatch import NodeWatch
from kubeproxy.notify import notify
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.reporter import Reporter
from kubeproxy.serve import explaining
from kubeproxy.serve.exposition import Provider
from kubeproxy.serve.serving import Serving
from kubeproxy.sources.base import Source, Status

if TYPE_CHECKING:
    from kubeproxy.answers.snapshot import Snapshot

log = logging.getLogger(__name__)

_GC_THRESHOLD = (50_000, 20, 100)
"""Rows and plans hold no cycles and are not tracked: looking for garbage as often as Python does is a waste."""

_FIRST_SYNC_SECONDS = 60.0
"""So long the rules of one family go unwatched while those of another are loaded, which goes faster when nobody listens."""

_HANDSHAKE_SECONDS = 2.0
"""What another mode left is not removed sooner: IPVS drops packets of connections whose virtual server is gone, also of those
that came in just before our rules were there."""

_PATIENCE_SECONDS = 10.0
"""So long another kube-proxy on this node is waited for: in an upgrade the old one may still be ending."""

_UNABLE = ("ermission denied", "not permitted", "unable to initialize table")
"""What the kernel and the iptables programs say to those who lack a right."""


_MOST_VERBOSE = 7
"""Nothing is logged above this level."""


class FatalError(Exception):
    """The program cannot go on; the message is for the operator."""


def run(options: RunOptions) -> int:
    """Runs the program as told; returns its exit status."""
    gc.set_threshold(*_GC_THRESHOLD)
    from kubeproxy.machine.linux import LinuxMachine

    machine = LinuxMachine()
    try:
        if options.cleanup:
            _clean_up(machine, options)
            return 0
        alone = _alone(machine)
        if options.init_only:
            return asyncio.run(App(options, machine).prepare())
        _spare(machine, options.config.oom_score_adj)
        return asyncio.run(_serve(App(options, machine), alone))
    except (FatalError, UnsupportedError, SyncError, hosts.NodeError, OSError) as e:
        log.error("%(err)s%(hint)s", {"err": e, "hint": _lacking(machine, e)})  # noqa: TRY400 the message says it all
        return 1


async def _serve(app: "App", alone: instance.Instance) -> int:
    """Runs the daemon until a signal ends it: SIGTERM and SIGINT, on Windows Ctrl-Break and Ctrl-C.

    SIGUSR1 and SIGUSR2 change the verbosity of the log; Windows has nothing like them.
    """
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":  # its event loops handle no signals
        for number, code in ((signal.SIGBREAK, 0), (signal.SIGINT, 130)):
            signal.signal(number, lambda *_, code=code: loop.call_soon_threadsafe(app.end, code))
    else:
        for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            loop.add_signal_handler(number, app.end, code)
        loop.add_signal_handler(signal.SIGUSR1, _more_verbose)
        loop.add_signal_handler(signal.SIGUSR2, _set_verbosity, app.verbosity)
    return await app.run(alone)


def _more_verbose() -> None:
    """One step of two levels more, for the signal SIGUSR1."""
    now = klog.verbosity(logging.getLogger().level)
    _set_verbosity(max(now, min(now + 2, _MOST_VERBOSE)))


def _set_verbosity(verbosity: int) -> None:
    klog.set_verbosity(verbosity)
    log.info(
        "Verbosity is %(verbosity)d now; SIGUSR1 raises it, SIGUSR2 restores what is configured",
        {"verbosity": verbosity},
    )


def _lacking(machine: Machine, error: Exception) -> str:
    """What to add to an error that may come from a right we do not have."""
    if not any(words in str(error) for words in _UNABLE):
        return ""
    lacking = machine.lacks(("CAP_NET_ADMIN", "CAP_NET_RAW"))
    return f"; this process has no {' and no '.join(lacking)}" if lacking else ""


def _alone(machine: Machine) -> instance.Instance:
    """Makes sure that no other kube-proxy programs this network namespace, as long as the returned value is kept.

    Raises:
        FatalError: another one does, and does not end in time.
    """

    def waiting(holder: instance.Holder) -> None:
        log.warning(
            "Another kube-proxy (%(holder)s) runs in this network namespace: waiting %(seconds)g s for it to end",
            {"holder": holder, "seconds": _PATIENCE_SECONDS},
        )  # fmt: skip

    try:
        return machine.lock(_PATIENCE_SECONDS, waiting=waiting)
    except instance.HeldError as e:
        raise FatalError(f"{e}: nothing was changed; stop it first") from e


def _clean_up(machine: Machine, options: RunOptions) -> None:
    if machine.lacks(("CAP_NET_ADMIN",)):
        raise FatalError(
            "--cleanup needs CAP_NET_ADMIN, and CAP_NET_RAW for legacy iptables: nothing was removed"
        )
    if options.cleanup_variant:  # harms no kube-proxy whose rules are elsewhere
        backends.cleanup_variant(machine, options.cleanup_variant)
        return
    try:
        alone = machine.lock(0)
    except instance.HeldError as e:
        if not options.cleanup_force:
            raise FatalError(
                f"{e} and would restore what --cleanup removes: nothing was removed;"
                " stop it first, or add --cleanup-force"
            ) from e
        log.warning("Cleaning up although %(err)s: it will restore its rules", {"err": e})
        backends.cleanup(machine)
        return
    try:
        backends.cleanup(machine)
    finally:
        alone.release()


def _spare(machine: Machine, score: int) -> None:
    try:
        machine.set_oom_score(score)
    except OSError as e:
        log.info(
            "The out-of-memory score stays as it is, %(file)s needs CAP_SYS_RESOURCE: %(err)s",
            {"file": score, "err": e},
        )


class App:
    """The daemon."""

    def __init__(self, options: RunOptions, machine: Machine, *, mode: Mode | None = None) -> None:
        """Nothing is done before `run`.

        Args:
            options: what to run.
            machine: the host and the network namespace it runs in.
            mode: the mode, if it is not the one the configuration names.

        Raises:
            FatalError: the node has no name.
        """
        self._options = options
        self._machine = machine
        self._config = options.config
        self._name = self._config.node_name
        if not self._name:
            raise FatalError("this host has no name; set --hostname-override to the name of its Node")
        self._mode = mode or backends.mode(self._config.mode)
        if options.userspace_listen and self._mode.without_rules:
            self._mode = backends.mode(self._mode.without_rules)
        self._stop: asyncio.Future[int] | None = None
        self._early: int | None = None

    async def run(self, alone: instance.Instance | None = None) -> int:
        """Runs until `end` is called or an error ends it; returns the exit status.

        Args:
            alone: the lock that keeps other instances out.
        """
        if alone is not None and alone.fileno() >= 0:
            asyncio.get_running_loop().add_reader(alone.fileno(), alone.answer)
        self._stop = asyncio.get_running_loop().create_future()
        if self._early is not None:
            self._stop.set_result(self._early)
        self._hub = Hub(self._name)
        self._events = Events(self._name, None)
        self._statuses: Mapping[str, Status] = {}
        self._told: Provider = tuple
        self._missing: Callable[[], Iterable[str]] = tuple
        source = self._source()
        self._serving = Serving(
            self._machine,
            self._options,
            self._hub,
            self._events,
            statuses=self._statuses,
            missing=self._missing,
        )
        self._serving.publish(self._told)
        tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(source.run()),
            asyncio.ensure_future(self._events.run()),
            asyncio.ensure_future(self._serving.run()),
            asyncio.ensure_future(self._work()),
            asyncio.ensure_future(self._watch_config()),
        ]
        reporting = asyncio.ensure_future(progress.report(self._hub, lambda: self._hub.loops))
        try:
            done, _ = await asyncio.wait([self._stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
            return self._stop.result()
        finally:
            notify("STOPPING=1")
            tasks.append(reporting)
            for task in tasks:
                task.cancel()
            self._machine.stop()  # each has done its work wholly or not at all
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def verbosity(self) -> int:
        """The verbosity of the log that is configured."""
        return self._config.logging.verbosity

    def _introduce(self, source: str) -> None:
        """Says what runs: the first two lines of three, the node's follows when it is known."""
        log.info(
            "kube-proxy v%(version)s, compatible with Kubernetes v%(kubernetes)s, in %(mode)s mode%(rules)s, configured by %(configuration)s",
            {
                "version": __version__,
                "kubernetes": KUBERNETES,
                "mode": self._config.mode,
                "rules": "" if self._mode.tracked else " without rules",
                "configuration": self._options.config_file or "flags",
            },
        )
        log.info("Services come from %(source)s", {"source": source})

    def end(self, code: int) -> None:
        """Ends `run` with an exit status; may be called before it runs."""
        if self._stop is None:
            self._early = code
        elif not self._stop.done():
            self._stop.set_result(code)

    def _source(self) -> Source:
        """The source the options name.

        Raises:
            FatalError: it cannot be used.
        """
        try:
            if self._options.manifests:
                from kubeproxy.sources.manifests import Manifests

                manifests = Manifests(
                    [Path(path) for path in self._options.manifests],
                    self._hub,
                    serves=lambda: backends.serves(self._machine, self._mode),
                )
                self._introduce(f"manifests: {', '.join(self._options.manifests)}")
                self._missing = manifests.unusable.unknown
                self._told = manifests.figures
                return manifests
            from kubeproxy.sources.apiserver import ApiServer

            connection = self._config.client_connection
            source = ApiServer(
                self._hub,
                self._name,
                kubeconfig=connection.kubeconfig,
                master=self._options.master,
                make_socket=self._machine.socket,
            )
        except (OSError, ValueError) as e:
            raise FatalError(str(e)) from e
        self._introduce(source.description)
        self._events = Events(self._name, source.client)
        self._statuses = source.statuses
        self._told = source.client.figures
        return source

    async def _watch_config(self) -> None:
        """Ends the program when its configuration file becomes another."""
        if not self._options.config_file:
            await asyncio.Event().wait()
        from kubeproxy.config import watch

        await watch.changed(self._options.config_file, self._options.config_data)
        self._fail("content of the proxy server's configuration file was updated")

    async def prepare(self) -> int:
        """Does what needs full privileges, and nothing else; returns the exit status."""
        found = hosts.own_addresses(self._machine)
        host = hosts.host(
            self._config, self._name, None, supported=hosts.supported_families(self._machine), found=found
        )
        troubles = sysctls.apply(self._machine, self._config.conntrack)
        await self._open(host)
        if troubles:
            return 1
        log.info("What needs full privileges is set up for %(mode)s mode", {"mode": self._config.mode})
        return 0

    async def _work(self) -> None:
        """Does everything but listening to the source."""
        watch = NodeWatch(
            self._machine, self._config, self._name, self._hub, files=bool(self._options.manifests)
        )
        host = await watch.known()
        if self._mode.tracked:
            sysctls.apply(self._machine, self._config.conntrack)
        opened = await self._open(host)
        loops = [self._loop(node, driver) for node, driver in opened]
        cleaners = [FlowCleaner(self._machine, loop) for loop in loops] if self._mode.tracked else []
        self._serving.attach(loops, cleaners)
        files = bool(self._options.manifests)
        reporter = Reporter(self._hub.state, self._name, self._events.service, files=files)
        forwarding = Forwarding(self._machine, loops, self._events.node)
        contests = Contests(self._hub.state, self._name, self._events.service)
        for loop in loops:
            contests.follow(loop.ledger)
        self._serving.publish(reporter.figures, contests.figures, lambda: sysctls.figures(self._machine))
        if self._mode.forwards:
            self._serving.publish(forwarding.figures)
        watch.follow(loops, self._fail)
        await self._hub.lists_complete.wait()
        self._hub.loops = loops
        for loop in loops:
            loop.set_node(loop.node.with_service_cidrs(self._hub.service_cidrs))
        log.info("Services and endpoints are known, writing rules")
        self._events.node("Starting", "StartKubeProxy")
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop.run())
            for cleaner in cleaners:
                group.create_task(cleaner.run())
            group.create_task(watch.follow_addresses())
            group.create_task(explaining.serve(self._machine, lambda: self._snapshot(loops)))
            group.create_task(self._report(loops, reporter, forwarding))
            await self._all_synced(loops, [driver for _, driver in opened])

    def _snapshot(self, loops: Sequence[Reconciler]) -> "Snapshot":
        """What is known of the cluster now, for questions."""
        from kubeproxy.answers.snapshot import Snapshot

        nodes = tuple(loop.node for loop in loops)
        addresses = {
            node.family: tuple(nodewatch.local_addresses(self._machine, node.family)) for node in nodes
        }
        return Snapshot(self._hub.state, self._mode, nodes, addresses, own=True)

    async def _report(self, loops: Sequence[Reconciler], reporter: Reporter, forwarding: Forwarding) -> None:
        """Reports what is wrong around the rules, once they are in place; not much later if they never are."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SYNC_SECONDS):
                for loop in loops:
                    await loop.synced.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(reporter.run())
            if self._mode.forwards:  # its relay connects to endpoints itself
                group.create_task(forwarding.run())

    async def _open(self, host: hosts.Host) -> list[tuple[NodeConfig, Driver]]:
        """The driver of each family that can be served; the primary one must be.

        Raises:
            UnsupportedError: the mode cannot run here.
        """
        opened = await asyncio.gather(
            *(asyncio.to_thread(self._mode.open, self._machine, node) for node in host.nodes),
            return_exceptions=True,
        )
        found = []
        for node, driver in zip(host.nodes, opened, strict=True):
            if isinstance(driver, UnsupportedError) and node is not host.primary:
                log.warning(
                    "Only %(ipFamily)s is served: %(err)s", {"ipFamily": host.primary.family, "err": driver}
                )
                continue
            if isinstance(driver, BaseException):
                raise driver
            found.append((node, driver))
        return found

    def _loop(self, node: NodeConfig, driver: Driver) -> Reconciler:
        loop = Reconciler(
            self._hub.state,
            driver,
            node.with_addresses(nodewatch.local_addresses(self._machine, node.family)),
            sync_period=self._mode.sync_period(self._config),
            clock=self._machine.clock,
            min_sync_period=self._mode.min_sync_period(self._config),
        )

        def report_refusals(done: Recorded) -> None:
            for key, words in loop.ledger.refused.items() if done.full else ():
                self._events.service(key, "FailedToProgramService", "SyncRules", f"{loop.family}: {words}")

        loop.ledger.subscribe(report_refusals)
        return loop

    def _fail(self, why: str) -> None:
        """Ends the program, to be started again with things as they are now."""
        log.error("%(reason)s: exiting, to be started again", {"reason": why})
        self.end(1)

    async def _all_synced(self, loops: Sequence[Reconciler], opened: Sequence[Driver]) -> None:
        """When all rules are in place: says so, and removes what another mode, or other programs, left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SYNC_SECONDS):
                for loop in loops:
                    await loop.synced.wait()
        for loop in loops:
            loop.watch()
        for loop in loops:
            await loop.synced.wait()
        refused = {key for loop in loops for key in loop.ledger.refused}
        in_place = {loop.family: loop.ledger.plans.keys() - loop.ledger.refused.keys() for loop in loops}
        log.info(
            "Synced: %(count)d Services in place%(families)s, %(refused)d refused",
            {
                "count": len({key for keys in in_place.values() for key in keys} - refused),
                "families": "".join(f", {family} {len(keys)}" for family, keys in in_place.items()),
                "refused": len(refused),
            },
        )
        gc.freeze()  # not collected before: what is here stays, and to look through it would keep the first change waiting
        notify("READY=1")
        await asyncio.sleep(_HANDSHAKE_SECONDS)
        for mode in self._mode.replaces:
            try:
                await asyncio.to_thread(backends.cleanup, self._machine, mode)
            except SyncError as e:
                log.warning("Old %(err)s", {"err": e})
        others = backends.other_variants(self._machine, self._mode, opened)
        while others:
            for other in others:
                await asyncio.to_thread(other.remove)
            if len(others) > 1:
                return  # nothing of ours is in any: that was for what another mode left
            await asyncio.sleep(self._mode.sync_period(self._config))
