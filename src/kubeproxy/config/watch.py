"""Waits for the content of the configuration file to change, which is a reason to exit and be started again.

What counts is the content: neither a `touch` nor the same text again, as a ConfigMap volume brings it with each swap
of its links, is worth a restart. Nor is a file that cannot be used, or none at all: whoever restarts us would find
nothing to start with, so what was read at the start stays in force, and that is said.
"""

import asyncio
import contextlib
import logging
import sys
from pathlib import Path
from typing import Final

from kubeproxy.config import ConfigError
from kubeproxy.config.decode import decode
from kubeproxy.config.defaults import with_defaults, with_platform_defaults
from kubeproxy.config.load import read
from kubeproxy.config.validate import validate
from kubeproxy.linux import inotify

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
"""How often we look although nothing was notified: some file systems tell nothing."""

SETTLE_SECONDS: Final = 1.0
"""A file that changes may be about to change again: it is removed and written, or written in pieces."""

_MOST_LINKS = 40


async def changed(
    path: str, before: bytes, *, look: float = LOOK_SECONDS, settle: float = SETTLE_SECONDS
) -> None:
    """Returns when a configuration file holds something else that can be used.

    Args:
        path: the file.
        before: what it held.
        look: seconds between two looks without a notification.
        settle: seconds between a change and the look that counts.
    """
    news = asyncio.Event()
    said = ""
    with contextlib.ExitStack() as stack:
        try:
            watch_again = stack.enter_context(inotify.changes(_folders(path), news.set))
        except OSError as e:
            log.debug(
                "%(file)s: looking every %(seconds)g s, no notifications: %(err)s",
                {"file": path, "seconds": look, "err": e},
            )
            watch_again = _nothing
        while True:
            trouble = _judge(path, before)
            if trouble is not None:
                await asyncio.sleep(settle)
                trouble = _judge(path, before)
            if trouble == "":
                return
            if trouble and trouble != said:
                log.error(
                    "%(reason)s; the configuration read at the start stays in force", {"reason": trouble}
                )
            elif said and not trouble:
                log.info("%(file)s is again as it was at the start", {"file": path})
            said = trouble or ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(look):
                    await news.wait()
            news.clear()
            watch_again()


def _judge(path: str, before: bytes) -> str | None:
    """None if the file holds what it held; else why it cannot be used, or "" if it can."""
    try:
        held = read(path)
        if held == before:
            return None
        config = with_platform_defaults(with_defaults(decode(held, path)[0]), sys.platform)
        return ", ".join(validate(config, sys.platform))
    except ConfigError as e:
        return ", ".join(e.errors)


def _folders(path: str) -> set[Path]:
    """The folders in which something happens when the file becomes another: its own, and those of links on the way."""
    file = Path(path).absolute()
    folders = {file.parent}
    for _ in range(_MOST_LINKS):
        try:
            file = file.parent / file.readlink()
        except OSError:
            break
        folders.add(file.parent)
    return {folder for folder in folders if folder.is_dir()}


def _nothing() -> None:
    """Where there are no notifications there is nothing to watch."""
