"""Follows the content of the configuration file, so that a change of it takes effect while the program runs.

Only the content is compared: neither a `touch` nor the same text again, as a ConfigMap volume has after each
swap of its links, is a change. A file that is invalid or missing changes nothing: what was read before stays
in force, and that is reported.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kubeproxy.config import ConfigError
from kubeproxy.config.load import RunOptions, load, read
from kubeproxy.config.validate import validate
from kubeproxy.linux import inotify

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
"""How often the file is read without a notification, in seconds: some file systems send none."""

SETTLE_SECONDS: Final = 1.0
"""How long to wait after a change, in seconds: a file may be removed and written, or written in pieces."""

_MOST_LINKS = 40


async def follow(
    options: RunOptions,
    take: Callable[[RunOptions], None],
    refuse: Callable[[str], None],
    *,
    look: float = LOOK_SECONDS,
    settle: float = SETTLE_SECONDS,
) -> None:
    """Follows the configuration file until it is cancelled.

    Args:
        options: the options that were read from the file last.
        take: called with the options when the file has another content that is valid. The flags of the
            command line override it as at a start.
        refuse: called with the reasons when the content is invalid, and with "" when it is again as it was
            taken last.
        look: seconds between two checks without a notification.
        settle: seconds between a change and the check that counts.
    """
    path, held, reported = options.config_file, options.config_data, ""
    news = asyncio.Event()
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
            found = reread(options, held)
            if found is not None:
                await asyncio.sleep(settle)
                found = reread(options, held)
            if isinstance(found, RunOptions):
                held, reported = found.config_data, ""
                take(found)
            elif found != reported and (found or reported):
                reported = found or ""
                refuse(reported)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(look):
                    await news.wait()
            news.clear()
            watch_again()


def reread(options: RunOptions, held: bytes) -> RunOptions | str | None:
    """None if the file holds what it held; else the options it makes, or why it cannot be used."""
    try:
        if read(options.config_file) == held:
            return None
        found = load(options.given, sys.platform)
        return ", ".join(validate(found.config, sys.platform)) or found
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
