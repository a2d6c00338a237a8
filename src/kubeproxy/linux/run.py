"""Runs programs until they end: either writes their input or reads their output.

It never does both, because the program and this process could then block each other. The calls block
and are made in threads. Input and output are streams, so they are never completely in memory.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

LIMIT_SECONDS = 300.0
_PIPE_BYTES = 1 << 20
_ERROR_BYTES = 4000
"""The number of bytes, from the end of a program's error output, that an error message has."""


Start = Callable[..., "subprocess.Popen[bytes]"]
"""Starts a program, as `subprocess.Popen` does."""


class ProgramError(Exception):
    """A program failed.

    Attributes:
        program: its name.
        code: its exit code; the negative number of the signal that ended it.
        error_output: its error output in one line; of a long one only the end.
    """

    def __init__(self, program: str, code: int, error_output: str) -> None:
        super().__init__(f"{program}: {error_output or f'exit code {code}'}")
        self.program = program
        self.code = code
        self.error_output = error_output


class Runner:
    """Runs programs, and can end those that are running."""

    def __init__(self, start: Start) -> None:
        """Creates a runner.

        Args:
            start: starts a program in the network namespace of the runner.
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
        """Runs a program and writes bytes to its standard input.

        Args:
            argv: the program and its arguments.
            chunks: the input.
            started: called with the process ID before anything is written.

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
            # A program that ends before it has read everything writes the reason to its error output.
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                for chunk in chunks:
                    pipe.write(chunk)

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """Runs a program and yields the lines of its output, without line ends.

        Raises:
            ProgramError: it failed; this is raised after the last line.
            OSError: it could not be started.
        """
        with self._running(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield line.decode(errors="replace").rstrip("\n")

    def stop(self) -> None:
        """Kills the programs that are running, so that the calls of `feed` and `lines` return."""
        for process in list(self._now):
            process.kill()

    @contextlib.contextmanager
    def _running(self, argv: Sequence[str], **pipes: int) -> Generator[subprocess.Popen[bytes], None, None]:
        """Runs a program during the block.

        At the end of the block, waits for it and raises an error if it failed.
        """
        program = argv[0].rpartition("/")[2]
        given: dict[str, int] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **pipes}
        # Errors are written to memory: a program would block on a pipe that is not read while it runs.
        with (
            os.fdopen(os.memfd_create(program), "rb") as errors,
            self._start(argv, stdin=given["stdin"], stdout=given["stdout"], stderr=errors) as process,
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
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - _ERROR_BYTES))
                error_output = " ".join(errors.read().decode(errors="replace").split())
                raise ProgramError(program, code, error_output)


def output(lines: Iterable[str]) -> str:
    """The complete output of a program.

    Args:
        lines: see `Runner.lines`.

    Raises:
        ProgramError: it failed.
        OSError: it could not be started.
    """
    return "\n".join(lines)
