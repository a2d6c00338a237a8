"""Runs the newest usable configuration, and replaces it while the program runs.

A configuration that was read from the changed file is prepared beside the one in force: another source is
read until its lists are complete, other addresses are bound, and the drivers of a mode are opened. Then the
control loops of the old one pause, those of the new one program their plans, and only then is the old one
closed. If anything of this fails, the old one resumes and stays in force. Served pages, counters and the
state of the cluster are kept.

Before the first rules are in place there is nothing to keep: a new configuration is then used as at a start.
"""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

from kubeproxy import backends, progress, sysctls
from kubeproxy import feed as feeds
from kubeproxy import log as klog
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.backends.mode import Mode
from kubeproxy.condition import NodeCondition
from kubeproxy.config import watch
from kubeproxy.config.load import RunOptions
from kubeproxy.events import Events
from kubeproxy.feed import Feed
from kubeproxy.figures import Figure
from kubeproxy.host import NodeError
from kubeproxy.hub import Hub
from kubeproxy.machine.base import Machine
from kubeproxy.nodewatch import local_addresses
from kubeproxy.notify import notify
from kubeproxy.serve import explaining
from kubeproxy.serve.exposition import Provider
from kubeproxy.serve.serving import Serving
from kubeproxy.session import FIRST_SYNC_SECONDS, LOOK_SECONDS, Session, concern

if TYPE_CHECKING:
    from kubeproxy.answers.observed import Observed
    from kubeproxy.answers.snapshot import Snapshot
    from kubeproxy.journal.recorder import Recorder

log = logging.getLogger(__name__)

_FORESEEN: Final = (NodeError, UnsupportedError, SyncError, OSError, ValueError)

Result = Literal["taken", "invalid", "failed"]

Supervise = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Runs a task that is cancelled when the program ends, and that ends the program by an error."""


class FirstSyncError(SyncError):
    """The first syncs of another configuration failed."""


class Exchange:
    """The configuration in force.

    Attributes:
        options: what is in force.
        feed: the source of the objects.
        events: records Events.
        serving: the health, metrics and debug pages.
        condition: writes whether this proxy is ready to the own Node, if that is configured.
        trouble: why the content of the configuration file is not in force; "" if it is.
        session: the session in force; None before the first one.
        sessions: those that are not closed yet.
    """

    def __init__(
        self,
        options: RunOptions,
        machine: Machine,
        *,
        mode: Mode | None,
        supervise: Supervise,
        end: Callable[[str], None],
    ) -> None:
        """Nothing is done before `open` and `run`.

        Args:
            options: what to run.
            machine: the host.
            mode: the mode, if it is not the one that options name.
            supervise: runs a task.
            end: ends the program, for the given reason.
        """
        self.options = options
        self.events = Events(options.config.node_name, None)
        self.feed: Feed
        self.trouble = ""
        self._machine = machine
        self._mode = mode
        self._supervise = supervise
        self._end = end
        self._wanted = options
        self._renewed = False
        self._news = asyncio.Event()
        self._counts: dict[Result, int] = {"taken": 0, "invalid": 0, "failed": 0}
        self.session: Session | None = None
        self._attached: Session | None = None  # the one that figures and answers are about
        self._working: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self.sessions: list[Session] = []
        self._recorder: Recorder | None = None
        hub = Hub(options.config.node_name)  # until there is a feed
        self.serving = Serving(machine, options, hub, self.events, warnings=self._warnings)
        self.condition = NodeCondition(
            options.config.node_name, self.serving.health.troubles, clock=machine.clock
        )
        self.serving.publish(self.figures, lambda: sysctls.figures(machine))

    async def open(self) -> None:
        """Opens the source. Health is served meanwhile.

        Loading the client of API servers takes a tenth of a second.

        Raises:
            OSError, ValueError: the source cannot be used.
        """
        await feeds.load(self.options)
        self.feed = self._open_feed(self.options, self._machine, self._mode)

    async def run(self) -> None:
        """Runs configurations, one after the other, until it is cancelled.

        Raises:
            Exception: the first one cannot work here.
        """
        self._connect(self.feed, self._supervise(self._read(self.feed)))
        self._supervise(self._write_condition())
        while True:
            self._news.clear()
            options, renewed, self._renewed = self._wanted, self._renewed, False
            if self.session is None:
                await self._start(options)
            else:
                await self._exchange(self.session, options, renewed=renewed)
            await self._news.wait()

    async def follow_file(self) -> None:
        """Takes the content of the configuration file whenever it changes, until it is cancelled."""
        if self.options.config_file:
            await watch.follow(self.options, self._take, self._refuse)

    async def close(self) -> None:
        """Closes the drivers. Rules stay."""
        for session in self.sessions:
            await session.close()

    def figures(self) -> Iterable[Figure]:
        """How often the configuration file changed, and whether its content is in force."""
        text = "Changed contents of the configuration file, by what became of them."
        for result, count in self._counts.items():
            yield Figure("kubeproxy_config_changes_total", "counter", text, count, {"result": result})
        text = "Whether the content of the configuration file is what is in force."
        yield Figure("kubeproxy_config_in_force", "gauge", text, not self.trouble)

    def _warnings(self) -> Iterable[str]:
        return (self.trouble,) if self.trouble else ()

    # What is wanted

    def _take(self, options: RunOptions) -> None:
        """The file has other content, which is valid."""
        before, after = self.options.config.node_name, options.config.node_name
        if before != after:
            self._end(
                f"{options.config_file}: hostnameOverride is {options.config.hostname_override!r}, but this is node"
                f" {before}, whose name cannot be changed while the program runs"
            )
            return
        log.info("%(file)s has changed: the new configuration is taken", {"file": options.config_file})
        options.report(log, but=self.options)
        self._wanted = options
        self._news.set()

    def _refuse(self, why: str) -> None:
        """The file cannot be used, or it can be used again and is as it was."""
        if why:
            self._counts["invalid"] += 1
            self._keep(why)
        elif self.trouble:
            log.info("%(file)s is again as it was", {"file": self.options.config_file})
            self._news.set()

    def _renew(self, why: str) -> None:
        log.warning("%(reason)s: the drivers are opened again", {"reason": why})
        self._renewed = True
        self._news.set()

    def _keep(self, why: str) -> None:
        self.trouble = f"{why}; the configuration that was in force stays in force"
        log.error("%(reason)s", {"reason": self.trouble})

    # What is done about it

    async def _start(self, options: RunOptions) -> None:
        """Runs the first session until its rules are in place, or newer options are wanted."""
        if feeds.origin(options) != self.feed.origin:
            feed = self._open_feed(options, self._machine, self._mode)
            self._connect(feed, self._supervise(self._read(feed)))
        session = self._session_of(options, self.feed)
        working: asyncio.Task[None] | None = None
        try:
            if not await self._unless_newer(session.open()):
                return
            self._use(options)
            log.info("Services and endpoints are known, writing rules")
            self.events.node("Starting", "StartKubeProxy")
            self._attach(session, self.serving.follow(session.loops, session.cleaners, session.mode))
            working = self._supervise(session.run((), end=self._end, renew=self._renew))
            if await self._unless_newer(session.synced()):
                self.session, self._working = session, working
                self._ready()
            else:
                await session.pause()
        finally:
            if self.session is None:
                await self._abandon(session, working)

    async def _exchange(self, old: Session, options: RunOptions, *, renewed: bool) -> None:
        """Puts options in force instead of the present ones, unless that fails or newer ones are wanted."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self.serving.reserve(options)
            same = feeds.origin(options) == self.feed.origin
            if (
                renewed
                or not same
                or concern(options.config, old.mode) != concern(old.options.config, old.mode)
            ):
                feed = None if same else self._open_feed(options, self._machine, self._mode)
                if not await self._replace(old, options, feed):
                    return
        except Exception as e:
            self.serving.release()
            self._counts["failed"] += 1
            if not isinstance(e, _FORESEEN):
                log.exception("The configuration cannot be taken")
            self._keep(f"The configuration in {options.config_file or 'flags'} cannot be taken: {e}")
            if old.mode.tracked:
                sysctls.apply(self._machine, old.options.config.conntrack)
        else:
            self._counts["taken"] += 1
            self._use(options)
            log.info("The configuration is in force, in %(mode)s mode", {"mode": options.config.mode})
        self._ready()

    async def _replace(self, old: Session, options: RunOptions, feed: Feed | None) -> bool:
        """Replaces a session by another; returns False if newer options are wanted before."""
        reading = None if feed is None else self._supervise(self._read(feed))
        new = self._session_of(options, feed or self.feed, old)
        working: asyncio.Task[None] | None = None
        retiring = False
        try:
            if not await self._unless_newer(new.open()):
                return False
            providers = self.serving.follow(new.loops, new.cleaners, new.mode)
            await old.pause()
            working = asyncio.ensure_future(new.run(old.programmed, end=self._end, renew=self._renew))
            try:
                await self._first_sync(new, working)
            except Exception:
                await new.pause()
                old.resume(new.mode)
                self._supervise(self._retire(new, working))
                retiring = True
                raise
            if feed is not None and reading is not None:
                self._connect(feed, reading)
            self._attach(new, providers)
            assert self._working is not None
            self._supervise(self._retire(old, self._working))
            self.session, self._working = new, self._supervise(_same(working))
            return True
        finally:
            if self.session is not new:
                if reading is not None:
                    reading.cancel()
                if not retiring:
                    await self._abandon(new, working)

    async def _first_sync(self, session: Session, working: "asyncio.Task[None]") -> None:
        """Waits until the rules of a session are in place.

        Raises:
            FirstSyncError: its syncs fail.
        """
        synced, failed = asyncio.ensure_future(session.synced()), asyncio.ensure_future(session.failed())
        try:
            ends: set[asyncio.Future[Any]] = {synced, failed, working}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
            if not synced.done():
                raise FirstSyncError(failed.result())
        finally:
            await _cancel(synced, failed)

    async def _abandon(self, session: Session, working: "asyncio.Task[None] | None") -> None:
        if working is not None:
            await _cancel(working)
        self.sessions.remove(session)
        await session.close()

    async def _retire(self, session: Session, working: "asyncio.Task[None]") -> None:
        """Ends a session that was replaced, or that could not take over.

        Its rules may lead to sockets of its drivers, so they are removed before: by the session in force, or
        by the next one.
        """
        await _cancel(working)
        while self.session is not None and not self.session.alone:  # noqa: ASYNC110 it may be replaced meanwhile
            await asyncio.sleep(LOOK_SECONDS)
        await session.retire()
        self.sessions.remove(session)
        del session, working
        gc.unfreeze()  # what was frozen of it would stay until it is cancelled
        gc.collect()
        gc.freeze()

    async def _unless_newer(self, work: Coroutine[Any, Any, None]) -> bool:
        """Does some work; if newer options are wanted before it is done, cancels it and returns False."""
        task, news = asyncio.ensure_future(work), asyncio.ensure_future(self._news.wait())
        ends: set[asyncio.Future[Any]] = {task, news}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            await task
            return True
        finally:
            await _cancel(task, news)

    # Parts

    def _session_of(self, options: RunOptions, feed: Feed, before: Session | None = None) -> Session:
        session = Session(
            options, self._machine, feed, self.events, mode=self._mode, before=before.row if before else None
        )
        self.sessions.append(session)
        return session

    def _open_feed(self, options: RunOptions, machine: Machine, mode: Mode | None) -> Feed:
        return feeds.open_feed(options, machine, mode or options.mode, self.events)

    async def _read(self, feed: Feed) -> None:
        """Reads a source, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(feed.source.run())
            group.create_task(progress.report(feed.hub, lambda: feed.hub.loops))

    async def _write_condition(self) -> None:
        """Writes the condition of the Node; rules that an earlier run left are looked for before."""
        mode = self._mode or self.options.mode
        if self.options.config.node_condition and await asyncio.to_thread(
            backends.serves, self._machine, mode
        ):
            self.condition.serves()
        await self.condition.run()

    async def _report(self, session: Session) -> None:
        """Reports probable mistakes in Services, when rules are in place or a timeout has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SYNC_SECONDS):
                await session.synced()
        reporter = session.feed.reporter
        del session  # it may be replaced, the reporter stays
        await reporter.run()

    def _connect(self, feed: Feed, reading: "asyncio.Task[None]") -> None:
        """Replaces the source of the objects."""
        for task in (self._reading, self._reporting):
            if task is not None:
                task.cancel()
        self.feed, self._reading, self._reporting = feed, reading, None
        self.events.write_to(feed.api)
        self.condition.use(feed.api, wanted=self.options.config.node_condition)
        self.serving.read_from(
            feed.hub, feed.statuses, feed.missing, feed.figures, feed.reporter.figures, feed.contests.figures
        )

    def _attach(self, session: Session, providers: Iterable[Provider]) -> None:
        """The rules of a session are in force, or will be the first."""
        forwarding = (session.forwarding.figures,) if session.mode.forwards else ()
        silences = [watch.figures for watch in session.silences] + [each.figures for each in session.spills]
        counted = [each.figures for each in session.connections]
        self.serving.attach(session.loops, *providers, *forwarding, *silences, *counted)
        first, self._attached = self._attached is None, session
        if first:
            self.serving.answer_from(self._snapshot)
            self._supervise(explaining.serve(self._machine, self._snapshot, self._observed))
        self._record(session)
        if self._reporting is None:
            self._reporting = self._supervise(self._report(session))

    def _record(self, session: Session) -> None:
        """Changes are recorded in the journal, if there is one."""
        if not session.options.journal:
            return
        if self._recorder is None:
            from kubeproxy.journal.recorder import Recorder

            self._recorder = Recorder(self.options, lambda family: local_addresses(self._machine, family))
            self._supervise(self._recorder.run())
        self._recorder.follow(session.feed.hub, session.mode.name, session.loops)

    def _snapshot(self) -> "Snapshot":
        assert self._attached is not None
        return self._attached.snapshot()

    def _observed(self) -> "Observed":
        from kubeproxy.answers.observed import Observed

        watches = self._attached.silences if self._attached is not None else ()
        silent = tuple(each for watch in watches for each in watch.silent())
        spills = self._attached.spills if self._attached is not None else ()
        full = tuple(each for watch in spills for each in watch.full())
        return Observed(self.serving.convergence.summary(), silent, full)

    def _use(self, options: RunOptions) -> None:
        """These options are in force now."""
        before, self.options, self.trouble = self.options.config, options, ""
        if options.config.logging != before.logging:
            klog.setup(options.log_settings)
        if options.config.oom_score_adj != before.oom_score_adj:
            set_oom_score(self._machine, options.config.oom_score_adj)
        self.serving.use(options)
        self.condition.use(self.feed.api, wanted=options.config.node_condition)

    def _ready(self) -> None:
        wrong = f"; {self.trouble}" if self.trouble else ""
        notify("READY=1")
        notify(f"STATUS={self.options.config.mode} mode{wrong}")


def set_oom_score(machine: Machine, score: int) -> None:
    """Sets the out-of-memory score, as far as the process may."""
    try:
        machine.set_oom_score(score)
    except OSError as e:
        log.info(
            "The out-of-memory score stays as it is, %(score)s needs CAP_SYS_RESOURCE: %(err)s",
            {"score": score, "err": e},
        )


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    """Ends tasks, and waits for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _same(task: "asyncio.Future[None]") -> None:
    await task
