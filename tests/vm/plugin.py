"""Tests marked `vm` run in the virtual machine: all that were chosen by one boot, beside the others, as ordinary results.

Outside, such a test becomes an item that waits for what the machine says of it. The machine is started when the tests
start, by the first of pytest's processes (workers of pytest-xdist share one machine), and runs them in their order; what
it says is read from a file they all look at. Inside, the tests run as any others do, and each result is written there at once.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.packages import MissingError
from tests.vm import kernel
from tests.vm.machine import Machine, inside

LIMIT_SECONDS = 1800
"""Longer than all marked tests together take on a slow machine."""

_RESULTS, _ENDED, _OWNER = "results", "ended", "owner"
_POLL_SECONDS = 0.1
_FOLDER_VARIABLE = "KUBEPROXY_VM_FOLDER"


def pytest_configure(config: pytest.Config) -> None:
    """Declares the mark; inside the machine, also has results written."""
    config.addinivalue_line("markers", "vm: runs in the virtual machine, on Debian's kernel")
    if folder := os.environ.get(_FOLDER_VARIABLE):
        config.pluginmanager.register(Writer(Path(folder, _RESULTS)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts waiting items in the place of marked tests."""
    if inside():
        return
    guest: Guest | None = None
    for i, item in enumerate(items):
        if item.get_closest_marker("vm") is not None:
            if guest is None:
                guest = Guest(config)
                config.pluginmanager.register(guest)
            items[i] = Remote.of(item, guest)


class RemoteError(Exception):
    """A test failed in the machine; the text is what pytest said there."""


class Remote(pytest.Item):
    """A test that runs in the machine."""

    @classmethod
    def of(cls, item: pytest.Item, guest: "Guest") -> "Remote":
        """The stand-in of a test."""
        assert item.parent is not None
        remote: Remote = cls.from_parent(item.parent, name=item.name)
        remote.own_markers = item.own_markers
        remote.guest = guest
        remote.place = item.location
        return remote

    guest: "Guest"
    place: tuple[str, int | None, str]

    def runtest(self) -> None:
        """Waits for the result and makes it ours."""
        result = self.guest.result(self.nodeid)
        for title, text in result["sections"]:
            self.add_report_section("call", title, text)
        if result["outcome"] == "skipped":
            raise RemoteError(f"skipped in the virtual machine: {result['text']}")
        if result["outcome"] == "failed":
            raise RemoteError(result["text"])

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What pytest said inside, as it said it."""
        if isinstance(excinfo.value, RemoteError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the test is."""
        return self.path, self.place[1], self.place[2]


class Guest:
    """The machine as one of pytest's processes sees it: perhaps it owns the machine, in any case it reads its results."""

    def __init__(self, config: pytest.Config) -> None:
        worker = getattr(config, "workerinput", {"workerid": "gw0", "testrunuid": uuid.uuid4().hex})
        self._owns = worker["workerid"] == "gw0"
        self.folder = kernel.FOLDER / f"run-{worker['testrunuid']}"
        self._results: dict[str, dict[str, Any]] = {}
        self._offset = 0
        self._unwanted = threading.Event()
        self._watcher: threading.Thread | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Starts the machine, once it is known what is to run in it."""
        names = [item.nodeid for item in session.items if isinstance(item, Remote)]
        if self._owns and names and not session.config.option.collectonly:
            self.start(names, ["-v"] * session.config.option.verbose)

    def start(self, names: Sequence[str], options: Sequence[str] = ()) -> None:
        """Starts the machine.

        Args:
            names: the tests that are to run in it.
            options: of pytest, inside.
        """
        sweep()
        self.folder.mkdir(parents=True)
        _own(self.folder)
        (self.folder / "tests").write_text("".join(f"{name}\n" for name in names))
        quiet = ("-p", "no:cacheprovider", "-p", "no:xdist")
        command = [sys.executable, "-m", "pytest", *quiet, *options, f"@{self.folder / 'tests'}"]
        try:
            machine = Machine(self.folder, command, {_FOLDER_VARIABLE: str(self.folder)})
        except MissingError as e:
            self._tell_end(f"the virtual machine cannot be started: {e}")
            return
        self._watcher = threading.Thread(target=self._watch, args=(machine,), daemon=True)
        self._watcher.start()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Other workers may still wait for results: the owner stays until the machine's end, if it is wanted."""
        if session.shouldfail or session.shouldstop or session.exitstatus == pytest.ExitCode.INTERRUPTED:
            self._unwanted.set()
        if self._watcher is not None:
            self._watcher.join()

    def _watch(self, machine: Machine) -> None:
        limit = time.monotonic() + LIMIT_SECONDS
        with machine:
            while machine.process.poll() is None:
                if self._unwanted.wait(_POLL_SECONDS) or time.monotonic() > limit:
                    break
        self._tell_end(f"the virtual machine ended without this test's result\n{machine.complaint()}")

    def _tell_end(self, why: str) -> None:
        draft = self.folder / f"{_ENDED}.new"
        draft.write_text(why)
        draft.rename(self.folder / _ENDED)

    def result(self, name: str) -> dict[str, Any]:
        """Waits for a test's result.

        Raises:
            RemoteError: there will be none.
        """
        while True:
            ended = self._why_ended()
            self._read()
            if name in self._results:
                return self._results[name]
            if ended is not None:
                raise RemoteError(ended)
            time.sleep(_POLL_SECONDS)

    def _read(self) -> None:
        """Takes in the lines that are complete."""
        with contextlib.suppress(FileNotFoundError), (self.folder / _RESULTS).open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                result = json.loads(line)
                self._results[result["name"]] = result

    def _why_ended(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / _ENDED).read_text()
        return "the process that ran the virtual machine is gone" if _is_abandoned(self.folder) else None


class Writer:
    """Inside the machine: writes a line for each test that is done."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of a test is done."""
        self._reports.append(report)
        if report.when != "teardown":
            return
        reports, self._reports = self._reports, []
        told = next((r for r in reports if r.failed), next((r for r in reports if r.skipped), report))
        reason = told.longrepr[2] if told.skipped and isinstance(told.longrepr, tuple) else told.longreprtext
        result = {
            "name": told.nodeid,
            "outcome": told.outcome,
            "text": reason,
            "sections": told.sections if told.failed else [],
        }
        with self._file.open("a") as file:
            file.write(json.dumps(result) + "\n")


def _own(folder: Path) -> None:
    """Marks a folder as in use, for the life of this process."""
    draft = folder / f"{_OWNER}.new"
    lock = os.open(draft, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    draft.rename(folder / _OWNER)


def _is_abandoned(folder: Path) -> bool:
    """Whether the process is gone that said a folder is in use."""
    try:
        lock = os.open(folder / _OWNER, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def sweep() -> None:
    """Removes what earlier runs left."""
    for folder in kernel.FOLDER.glob("run-*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
