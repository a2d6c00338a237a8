"""The process: its lock, what ends it, its tasks, and how it ends.

`exchange` runs the configuration in force and replaces it when the file changes; a running configuration is a
`session`. On SIGTERM everything stops and the rules stay. On Windows the console or the service control
manager ends it.
"""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kubeproxy import __version__, backends, sysctls
from kubeproxy import host as hosts
from kubeproxy import log as klog
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.backends.mode import Mode
from kubeproxy.config import KUBERNETES
from kubeproxy.config.load import RunOptions
from kubeproxy.exchange import Exchange, set_oom_score
from kubeproxy.linux import instance
from kubeproxy.machine import of_this_host
from kubeproxy.machine.base import Machine
from kubeproxy.notify import notify
from kubeproxy.session import FIRST_SYNC_SECONDS, open_drivers

if TYPE_CHECKING:
    from kubeproxy.windows.service_control import WindowsService

log = logging.getLogger(__name__)

SERVICE: Final = "kube-proxy"
"""The name of the service on Windows, and of the source of its events."""

_PATIENCE_SECONDS = 10.0
"""How long to wait for another kube-proxy on this node to end: in an upgrade the old one may be ending."""

_UNABLE = ("ermission denied", "not permitted", "unable to initialize table")
"""Parts of the error messages of the kernel and the iptables programs if a privilege is missing."""


_MOST_VERBOSE = 7
"""Nothing is logged above this level."""


class FatalError(Exception):
    """The program cannot continue; the message is for the operator."""


def run(options: RunOptions) -> int:
    """Runs the program with some arguments; returns its exit status."""
    if sys.platform == "win32" and options.config.windows_run_as_service and not options.cleanup:
        return _run_service(options)
    return _run(options, _until_signal)


def _run(options: RunOptions, serve: "Callable[[App, instance.Instance], Coroutine[Any, Any, int]]") -> int:
    """Runs the program; the daemon is run by `serve`. Foreseen errors are logged."""
    machine: Machine | None = None
    try:
        machine = of_this_host(options.config.ebpf.cgroup, options.config.ebpf.pins)
        if options.cleanup:
            _clean_up(machine, options)
            return 0
        alone = _alone(machine)
        if options.init_only:
            return asyncio.run(App(options, machine).prepare())
        set_oom_score(machine, options.config.oom_score_adj)
        return asyncio.run(serve(App(options, machine), alone))
    except (FatalError, UnsupportedError, SyncError, hosts.NodeError, OSError) as e:
        hint = _lacking(machine, e) if machine is not None else ""
        log.error("%(err)s%(hint)s", {"err": e, "hint": hint})  # noqa: TRY400 the message is complete
        return 1


async def _until_signal(app: "App", alone: instance.Instance) -> int:
    """Runs the daemon until a signal or the console ends it: SIGTERM, SIGINT; Ctrl-C, Ctrl-Break.

    SIGUSR1 and SIGUSR2 change the verbosity of the log; Windows has nothing like them.
    """
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":  # its event loops handle no signals
        from kubeproxy.windows import console

        def end(event: int) -> None:
            loop.call_soon_threadsafe(app.end, 130 if event == console.CTRL_C else 0)

        with console.handled(end):
            return await app.run(alone)
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        loop.add_signal_handler(number, app.end, code)
    loop.add_signal_handler(signal.SIGUSR1, _more_verbose)
    loop.add_signal_handler(signal.SIGUSR2, lambda: _set_verbosity(app.verbosity))
    return await app.run(alone)


def _run_service(options: RunOptions) -> int:
    """Runs the daemon as a service of Windows until the service control manager ends it."""
    from kubeproxy.windows.event_log import EventLog
    from kubeproxy.windows.service_control import NotAServiceError, WindowsService

    try:
        klog.report_to(EventLog(SERVICE).report)
        return WindowsService(SERVICE, lambda service: _run(options, partial(_until_stopped, service))).run()
    except NotAServiceError:
        log.error(  # noqa: TRY400 the message is complete
            "--windows-service: the service control manager has not started this process; start the service, or leave"
            " this flag out to run in a console"
        )
    except OSError as e:
        log.error("This process cannot run as a service: %(err)s", {"err": e})  # noqa: TRY400
    return 1


async def _until_stopped(service: "WindowsService", app: "App", alone: instance.Instance) -> int:
    """Runs the daemon until the service is stopped, or the host is shut down."""
    loop = asyncio.get_running_loop()
    service.started(lambda: loop.call_soon_threadsafe(app.end, 0))
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
    """The text to add to an error that a missing privilege may have caused."""
    if not any(words in str(error) for words in _UNABLE):
        return ""
    lacking = machine.lacks(("CAP_NET_ADMIN", "CAP_NET_RAW"))
    return f"; this process has no {' and no '.join(lacking)}" if lacking else ""


def _alone(machine: Machine) -> instance.Instance:
    """Excludes other kube-proxies from this network namespace, as long as the returned value is kept.

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
    if options.cleanup_variant and sys.platform == "win32":
        raise FatalError("--cleanup-variant: Windows has no iptables, nothing was removed")
    if options.cleanup_variant:  # does not affect a kube-proxy whose rules are in the other variant
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
        backends.cleanup(machine, config=options.config)
        return
    try:
        backends.cleanup(machine, config=options.config)
    finally:
        alone.release()


class App:
    """The daemon.

    Attributes:
        exchange: the configuration in force; `run` sets it.
    """

    def __init__(self, options: RunOptions, machine: Machine, *, mode: Mode | None = None) -> None:
        """Nothing is done before `run`.

        Args:
            options: what to run.
            machine: the host and the network namespace it runs in.
            mode: the mode, if it is not the one the configuration names.

        Raises:
            FatalError: the node has no name.
        """
        if not options.config.node_name:
            raise FatalError("this host has no name; set --hostname-override to the name of its Node")
        self._options = options
        self._machine = machine
        self._mode = mode
        self._stop: asyncio.Future[int] | None = None
        self._early: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, alone: instance.Instance | None = None) -> int:
        """Runs until `end` is called or an error ends it; returns the exit status.

        Args:
            alone: the lock that keeps other instances out.

        Raises:
            FatalError: the source cannot be used.
        """
        if alone is not None and alone.fileno() >= 0:
            asyncio.get_running_loop().add_reader(alone.fileno(), alone.answer)
        asyncio.get_running_loop().call_later(FIRST_SYNC_SECONDS, gc.enable)  # if there is no sync until then
        self._stop = asyncio.get_running_loop().create_future()
        if self._early is not None:
            self._stop.set_result(self._early)
        self.exchange = Exchange(
            self._options, self._machine, mode=self._mode, supervise=self._supervise, end=self._fail
        )
        self._introduce()
        try:
            self._supervise(self.exchange.serving.run())
            await self._open_source()
            for work in (self.exchange.events.run(), self.exchange.run(), self.exchange.follow_file()):
                self._supervise(work)
            return await self._stop
        finally:
            notify("STOPPING=1")
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            self._machine.stop()  # each has done its work wholly or not at all
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.exchange.close()

    async def _open_source(self) -> None:
        try:
            await self.exchange.open()
        except (OSError, ValueError) as e:
            raise FatalError(str(e)) from e
        log.info("Services come from %(source)s", {"source": self.exchange.feed.description})

    @property
    def verbosity(self) -> int:
        """The verbosity of the log that is configured."""
        return self.exchange.options.config.logging.verbosity

    def end(self, code: int) -> None:
        """Ends `run` with an exit status; may be called before it runs."""
        if self._stop is None:
            self._early = code
        elif not self._stop.done():
            self._stop.set_result(code)

    async def prepare(self) -> int:
        """Does what needs full privileges, and nothing else; returns the exit status.

        Raises:
            FatalError: on Windows, as in the reference.
        """
        if sys.platform == "win32":
            raise FatalError(
                "--init-only is not implemented on Windows, where nothing needs to be set up first"
            )
        config = self._options.config
        found = hosts.own_addresses(self._machine)
        host = hosts.host(
            config,
            config.node_name,
            None,
            supported=hosts.supported_families(self._machine),
            found=found,
        )
        troubles = sysctls.apply(self._machine, config.conntrack)
        mode = self._mode or self._options.mode
        if mode.install is not None:
            for node in host.nodes:
                await asyncio.to_thread(mode.install, self._machine, node)
        await open_drivers(self._machine, mode, host)
        if troubles:
            return 1
        log.info("What needs full privileges is set up for %(mode)s mode", {"mode": config.mode})
        return 0

    def _supervise(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Runs a task until the program ends; an error of it ends the program."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        assert self._stop is not None
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._stop.done():
            self._stop.set_exception(error)

    def _introduce(self) -> None:
        """Logs what runs; where Services come from and the node follow when they are known."""
        mode = self._mode or self._options.mode
        log.info(
            "kube-proxy v%(version)s, compatible with Kubernetes v%(kubernetes)s, in %(mode)s mode%(rules)s, configured by %(configuration)s",
            {
                "version": __version__,
                "kubernetes": KUBERNETES,
                "mode": self._options.config.mode,
                "rules": "" if mode.tracked or mode.forwards else " without rules",
                "configuration": self._options.config_file or "flags",
            },
        )

    def _fail(self, why: str) -> None:
        """Ends the program, which is then started again with the present state."""
        log.error("%(reason)s: exiting, to be started again", {"reason": why})
        self.end(1)
