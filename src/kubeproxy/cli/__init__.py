"""The command line of `kube-proxy`: runs the daemon, or with a command answers a question about it.

Each command is a module of this package, imported only when it is used, so that the daemon loads none of
them.
"""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

COMMANDS: Final = ("explain", "plan", "verify", "doctor", "top", "replay", "check", "completion")
"""The commands, each the name of a module that has a `command.Command` named COMMAND."""

_GC_THRESHOLD: Final = (50_000, 20, 100)
"""Rows and plans have no cycles and are not tracked, so garbage is collected less often than Python does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    Args:
        argv: the arguments after the program's name; those of the process if None.
    """
    if os.getpid() == 1:
        # Process 1 of a container. The kernel sends it no signal that it does not handle, and the daemon
        # handles SIGTERM only once its event loop runs, which may be after waiting for another daemon to end.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    gc.set_threshold(*_GC_THRESHOLD)  # already for the imports, which allocate much and leave no garbage
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        from kubeproxy.cli import command

        return command.main(arguments[0], arguments[1:])
    if arguments and arguments[0][:1].isalpha():
        from difflib import get_close_matches

        close = get_close_matches(arguments[0], COMMANDS, 1)
        if close:
            sys.stderr.write(f"Error: there is no command {arguments[0]!r}; did you mean {close[0]!r}?\n")
            return 1
    from kubeproxy.cli import run

    return run.main(arguments)
