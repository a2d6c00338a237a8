"""A daemon on the lab's node, watched the way systemd does.

The process says READY=1 over its NOTIFY_SOCKET (sd_notify(3)) once its first sync is in the kernel, and is stopped by SIGTERM.
Its environment is empty but for what is named here, its standard error is kept for messages and assertions.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.topology import NODE_NAME, ROOT, Lab


def kube_proxy(config: Path, manifests: Path, *flags: str) -> list[str]:
    """The command line of the proxy on a directory of manifests, as the lab's node."""
    return [
        *(sys.executable, "-m", "kubeproxy", "--config", str(config), "--manifests", str(manifests)),
        *("--hostname-override", NODE_NAME, *flags),
    ]


class Daemon:
    """A running daemon, for a `with` block, which starts when the daemon is ready.

    Leaving the block stops it and demands exit code 0; after an exception it is killed.

    Args:
        lab: where it runs.
        command: its command line.
        role: the namespace it runs in.
        timeout: seconds it has to become ready, and to stop.
        words: what it writes when the block starts, in place of being ready.

    Raises:
        AssertionError: if it exits early, does not become ready or does not stop well; with what it wrote.
    """

    def __init__(
        self,
        lab: Lab,
        command: Sequence[str],
        role: str = "node",
        timeout: float = 20.0,
        *,
        words: str = "",
    ) -> None:
        self._lab = lab
        self._command = command
        self._role = role
        self._timeout = timeout
        self._words = words
        self._notes: list[str] = []
        self._ended = False  # by `stop` or `kill`

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="lab-daemon-")
        path = Path(self._folder.name, "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        environment = {
            **{name: os.environ[name] for name in ("PATH", "XTABLES_LOCKFILE") if name in os.environ},
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT / "src"),
            "NOTIFY_SOCKET": str(path),
        }
        with Path(self._folder.name, "stderr").open("wb") as stderr, self._lab.inside(self._role):
            self.process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=self._folder.name,
                start_new_session=True,
            )
        try:
            if self._words:
                self.says(self._words)
            else:
                self.ready()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._ended:
                self.stop()
        finally:
            self._clean_up()

    def log(self) -> str:
        """What it wrote to standard error and standard output so far."""
        return Path(self._folder.name, "stderr").read_text(errors="replace")

    def says(self, words: str) -> None:
        """Waits until it has written that: the effect may be visible before the message.

        Raises:
            AssertionError: it does not, or it ended; with what it wrote.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            ended = self.process.poll() is not None
            if words in self.log():
                return
            if ended or time.monotonic() > deadline:
                raise AssertionError(self._complaint(f"does not say {words!r}"))
            time.sleep(0.02)

    def notifications(self) -> list[str]:
        """The assignments it sent so far, in order: ["STATUS=...", "READY=1"]."""
        try:
            while True:
                self._notes += self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return list(self._notes)

    def ready(self) -> None:
        """Waits until it is ready.

        Raises:
            AssertionError: it does not become so, or it ended; with what it wrote.
        """
        ended = os.pidfd_open(self.process.pid)
        try:
            deadline = time.monotonic() + self._timeout
            while "READY=1" not in self.notifications():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(self._complaint(f"was not ready after {self._timeout} s"))
                readable, _, _ = select.select([self._socket.fileno(), ended], [], [], left)
                if readable == [ended]:
                    raise AssertionError(
                        self._complaint(f"exited with {self.process.wait()} before it was ready")
                    )
        finally:
            os.close(ended)

    def stop(self, code: int = 0) -> None:
        """Ends it by SIGTERM and checks its exit code. It may have ended by itself with that code."""
        self._ended = True
        self.process.send_signal(signal.SIGTERM)
        try:
            got = self.process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                self._complaint(f"did not stop within {self._timeout} s of SIGTERM")
            ) from None
        if got != code:
            raise AssertionError(self._complaint(f"exited with {got} on SIGTERM, not with {code}"))

    def kill(self) -> None:
        """A crash."""
        self._ended = True
        self.process.kill()
        self.process.wait()

    def _complaint(self, what: str) -> str:
        return f"{' '.join(self._command)}: {what}. It wrote:\n{self.log() or '(nothing)'}"

    def _clean_up(self) -> None:
        self.kill()
        self._socket.close()
        self._folder.cleanup()
