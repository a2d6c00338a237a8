"""The interactive view on a terminal: it reads keys as they are pressed, and uses the whole window."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from kubeproxy.insight import daemon
from kubeproxy.insight.snapshot import LiveCluster
from kubeproxy.insight.top import changes
from kubeproxy.insight.top.screen import Screen, keys
from kubeproxy.insight.top.watch import TopWatch
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

POLL_SECONDS: Final = 0.25
"""So often the kernel's reports are received, so that they need not wait for long."""


async def show(
    watch: TopWatch,
    cluster: LiveCluster,
    only: Key | None,
    interval: float,
    console: "Console",
    machine: Machine,
) -> None:
    """Shows the figures until the operator ends it.

    Args:
        watch: the sources.
        cluster: the cluster, whose changes are followed.
        only: the only Service to be shown; None for all.
        interval: seconds between two readings.
        console: the terminal.
        machine: this host.
    """
    from rich.live import Live

    screen = Screen(only)
    pressed = asyncio.Event()

    def read() -> None:
        data = os.read(sys.stdin.fileno(), 1024)
        for key in keys(data.decode(errors="ignore")) if data else ["q"]:
            screen.press(key)
        pressed.set()

    def end() -> None:
        screen.ended = True
        pressed.set()

    loop = asyncio.get_running_loop()
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        loop.add_reader(sys.stdin.fileno(), read)
        loop.add_signal_handler(signal.SIGTERM, end)
        try:
            due = 0.0
            while not screen.ended:
                now = time.monotonic()
                if now >= due:
                    due = now + interval
                    changes.follow(watch, cluster)
                    watch.observed = await asyncio.to_thread(daemon.observed, machine)
                    watch.look(screen.shown)
                    pressed.set()
                if pressed.is_set():
                    pressed.clear()
                    live.update(_text(screen, watch, console), refresh=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(pressed.wait(), POLL_SECONDS)
                watch.poll()
        finally:
            loop.remove_reader(sys.stdin.fileno())
            loop.remove_signal_handler(signal.SIGTERM)


def _text(screen: Screen, watch: TopWatch, console: "Console") -> "Text":
    from rich.text import Text

    found = Text(no_wrap=True)
    width, height = console.size
    for number, (text, style) in enumerate(screen.render(watch, width, height)):
        found.append(("\n" if number else "") + text, style=style or None)
    return found


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive when they are pressed and are not shown, until the block ends."""
    if sys.platform == "win32":
        raise OSError("this view needs a terminal of Unix")
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
