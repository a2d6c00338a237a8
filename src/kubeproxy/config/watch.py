"""Waits for the content of the configuration file to change, which is a reason to exit and be started again.

Only the content is compared: neither a `touch` nor the same text again, as a ConfigMap volume has after each
swap of its links, is a reason for a restart. Nor is a file that is invalid or missing: a restarted program
could not start with it, so the configuration read at the start stays in force, and that is logged.
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
"""How often the file is read without a notification, in seconds: some file systems send none."""

SETTLE_SECONDS: Final = 1.0
"""How long to wait after a change, in seconds: a file may be removed and written, or written in pieces."""

_MOST_LINKS = 40


async def changed(
    path: str, before: bytes, *, look: float = LOOK_SECONDS, settle: float = SETTLE_SECONDS
) -> None:
    """Returns when a configuration file holds another valid configuration.

    Args:
        path: the file.
        before: what it held.
        look: seconds between two reads without a notification.
        settle: seconds to wait after a change before the file is read.
    """
    news = asyncio.Event()
    reported = ""
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
            if trouble and trouble != reported:
                log.error(
                    "%(reason)s; the configuration read at the start stays in force", {"reason": trouble}
                )
            elif reported and not trouble:
                log.info("%(file)s is again as it was at the start", {"file": path})
            reported = trouble or ""
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
    """The folders to watch for a change of the file: its own, and those of symbolic links to it."""
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
