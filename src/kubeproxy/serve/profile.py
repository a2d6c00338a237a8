"""/debug: profiles of the program and the verbosity of its log, served only if profiling is enabled.

A profile samples the stacks of all threads each time the process has used another hundredth of a second of
processor time, which costs about a percent; a waiting thread appears where it waits. Windows has no timer of
processor time: there a thread takes a sample every hundredth of a second. The result is folded stacks, one in
a line with the number of its samples: the format of flame graph tools (flamegraph.pl, speedscope, inferno).
The verbosity can be changed without a restart.
"""

import asyncio
import logging
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Final
from urllib.parse import parse_qs

from kubeproxy import log as klog
from kubeproxy.serve.message import Handler, HTTPRequest, HTTPResponse, text

log = logging.getLogger(__name__)

DEFAULT_SECONDS: Final = 30.0
LONGEST_SECONDS: Final = 300.0
_INTERVAL = 0.01

_INDEX = """Profiles:

/debug/pprof/profile?seconds=30   where time is spent, as folded stacks
/debug/pprof/stacks               what every thread and task does now
/debug/pprof/cmdline              the command line

PUT /debug/flags/v with a number sets the verbosity of the log.
"""


class Profiles:
    """Answers for these pages."""

    def __init__(self) -> None:
        self._busy = False

    def routes(self) -> Mapping[str, Handler]:
        """The handlers by method and path."""
        return {
            "GET /debug/pprof": lambda _: text(_INDEX),
            "GET /debug/pprof/": lambda _: text(_INDEX),
            "GET /debug/pprof/profile": self._profile,
            "GET /debug/pprof/stacks": lambda _: text(stacks()),
            "GET /debug/pprof/cmdline": lambda _: text("\0".join(sys.orig_argv)),
            "PUT /debug/flags/v": _set_verbosity,
        }

    async def _profile(self, request: HTTPRequest) -> HTTPResponse:
        given = parse_qs(request.query).get("seconds", [str(DEFAULT_SECONDS)])[0]
        try:
            seconds = float(given)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= LONGEST_SECONDS:
            return text(f"seconds is not a number above 0 and up to {LONGEST_SECONDS:g}\n", 400)
        if self._busy:
            return text("a profile is being taken\n", 409)
        self._busy = True
        try:
            return text(await sample(seconds))
        finally:
            self._busy = False


async def sample(seconds: float) -> str:
    """Samples all threads for so many seconds; returns folded stacks. To be called in the main thread."""
    if sys.platform == "win32":
        return await asyncio.to_thread(sample_by_thread, seconds)
    found: Counter[str] = Counter()
    me = threading.get_ident()

    def look(_: int, mine: FrameType | None) -> None:
        for thread, frame in sys._current_frames().items():  # noqa: SLF001
            found[_folded(mine if thread == me else frame)] += 1

    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)
    try:
        await asyncio.sleep(seconds)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # a signal that is still pending would end the program
    return _lines(found)


def sample_by_thread(seconds: float) -> str:
    """Like `sample`, but in the calling thread, which is left out, and by elapsed time."""
    found: Counter[str] = Counter()
    me = threading.get_ident()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for thread, frame in sys._current_frames().items():  # noqa: SLF001
            if thread != me:
                found[_folded(frame)] += 1
        time.sleep(_INTERVAL)
    return _lines(found)


def _lines(found: Counter[str]) -> str:
    return "".join(f"{stack} {count}\n" for stack, count in found.most_common())


def stacks() -> str:
    """The current stacks of every thread and every task of the event loop, the innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    out = [
        f"thread {names.get(thread, thread)}: {_folded(frame)}"
        for thread, frame in sys._current_frames().items()  # noqa: SLF001
    ]
    for task in asyncio.all_tasks():
        frames = ";".join(map(_name, task.get_stack()))
        out.append(f"task {task.get_name()} {getattr(task.get_coro(), '__qualname__', '')}: {frames}")
    return "\n".join(sorted(out)) + "\n"


def _folded(frame: FrameType | None) -> str:
    parts = []
    while frame is not None:
        parts.append(_name(frame))
        frame = frame.f_back
    return ";".join(reversed(parts))


def _name(frame: FrameType) -> str:
    code = frame.f_code
    module = frame.f_globals.get("__name__", code.co_filename)
    return f"{module}.{getattr(code, 'co_qualname', code.co_name)}:{frame.f_lineno}"


def _set_verbosity(request: HTTPRequest) -> HTTPResponse:
    given = request.body.decode("latin-1").strip()
    if not (given.isascii() and given.isdigit() and len(given) <= 3):
        return text(f"{given!r:.40} is no verbosity\n", 400)
    klog.set_verbosity(int(given))
    log.info("Verbosity is %(verbosity)d now", {"verbosity": int(given)})
    return text(f"verbosity is {given} now\n")
