"""Programs: run to their end, fed by a stream or read as one, never both, so that nothing can block for ever.

Their code runs in threads: the pipe does the pacing, and no text is held in memory whole.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

LIMIT_SECONDS = 300.0
_PIPE_BYTES = 1 << 20
_SAID_BYTES = 4000
"""How much of the end of a program's complaints is told."""


Start = Callable[..., "subprocess.Popen[bytes]"]
"""Starts a program, as `subprocess.Popen` does."""


class ProgramError(Exception):
    """A program failed.

    Attributes:
        program: its name.
        code: its exit code; negative for the signal that ended it.
        said: what it wrote to its error output, on one line; of much the end.
    """

    def __init__(self, program: str, code: int, said: str) -> None:
        super().__init__(f"{program}: {said or f'exit code {code}'}")
        self.program = program
        self.code = code
        self.said = said


class Runner:
    """Runs programs, and knows those that are running."""

    def __init__(self, start: Start) -> None:
        """Runs nothing yet.

        Args:
            start: starts a program, in the network namespace it is to run in.
        """
        self._start = start
        self._now: set[subprocess.Popen[bytes]] = set()

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        started: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Runs a program with these bytes as its input.

        Args:
            argv: the program and its arguments.
            chunks: its input.
            started: told the number of its process before it is given anything.

        Raises:
            ProgramError: it failed.
            OSError: it could not be started.
        """
        import fcntl  # not on Windows, where modules that import this one must load

        with self._running(argv, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            started(process.pid)
            with contextlib.suppress(OSError):
                fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            # A program that ends before it has read everything says why on its error output.
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                for chunk in chunks:
                    pipe.write(chunk)

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """Runs a program and yields the lines of its output, without their ends.

        Raises:
            ProgramError: it failed; known only after the last line.
            OSError: it could not be started.
        """
        with self._running(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield line.decode(errors="replace").rstrip("\n")

    def stop(self) -> None:
        """Ends the programs that are running, and with that the waiting of the threads that run them."""
        for process in list(self._now):
            process.kill()

    @contextlib.contextmanager
    def _running(self, argv: Sequence[str], **pipes: int) -> Generator[subprocess.Popen[bytes], None, None]:
        """A program that is running; at the end of the block it must have succeeded."""
        program = argv[0].rpartition("/")[2]
        given: dict[str, int] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **pipes}
        # Complaints go to memory: a pipe that nobody reads meanwhile would stop the program.
        with (
            os.fdopen(os.memfd_create(program), "rb") as complaints,
            self._start(argv, stdin=given["stdin"], stdout=given["stdout"], stderr=complaints) as process,
        ):
            watchdog = threading.Timer(LIMIT_SECONDS, process.kill)
            watchdog.daemon = True
            watchdog.start()
            self._now.add(process)
            try:
                yield process
                code = process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                self._now.discard(process)
                watchdog.cancel()
            if code:
                complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _SAID_BYTES))
                said = " ".join(complaints.read().decode(errors="replace").split())
                raise ProgramError(program, code, said)


def output(lines: Iterable[str]) -> str:
    """What a program prints, all of it.

    Args:
        lines: see `Runner.lines`.

    Raises:
        ProgramError: it failed.
        OSError: it could not be started.
    """
    return "\n".join(lines)
