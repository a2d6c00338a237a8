"""How results come out of the virtual machine, and what is said when there is none; the machine is a shell here."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from tests.packages import MissingError
from tests.vm import kernel, plugin
from tests.vm.plugin import Guest, RemoteError, Writer

CONFIG: Any = SimpleNamespace()


class Shell:
    """A machine that runs a script instead."""

    script = ":"

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(["sh", "-c", self.script], cwd=self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def complaint(self) -> str:
        return "the console's last words"


def line(name: str, outcome: str = "passed") -> str:
    return json.dumps({"name": name, "outcome": outcome, "text": "why", "sections": []})


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    monkeypatch.setattr(kernel, "FOLDER", tmp_path)
    monkeypatch.setattr(plugin, "Machine", Shell)
    monkeypatch.setattr(Shell, "script", ":")
    made = Guest(CONFIG)
    yield made
    made._unwanted.set()
    if made._watcher:
        made._watcher.join()


def start(guest: Guest, script: str, *names: str) -> None:
    Shell.script = script
    guest.start(names)


def test_results_come_as_they_are_written(guest: Guest) -> None:
    start(
        guest,
        f"echo '{line('a')}' > results; sleep 0.3; echo '{line('b', 'failed')}' >> results; sleep 60",
        "a",
        "b",
    )
    assert guest.result("a")["outcome"] == "passed"
    assert guest.result("b")["outcome"] == "failed"
    assert guest.result("a")["text"] == "why"


def test_half_a_line_is_no_result(guest: Guest) -> None:
    whole = line("a")
    start(
        guest,
        f"printf '%s' '{whole[:20]}' > results; sleep 0.3; echo '{whole[20:]}' >> results; sleep 60",
        "a",
    )
    assert guest.result("a")["outcome"] == "passed"


def test_a_machine_that_ends_early_is_told_with_its_last_words(guest: Guest) -> None:
    start(guest, f"echo '{line('a')}' > results", "a", "b")
    assert guest.result("a")["outcome"] == "passed"
    with pytest.raises(RemoteError, match=r"without this test's result\n.*console's last words"):
        guest.result("b")


def test_a_machine_that_cannot_be_had_fails_the_tests(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingError("no such thing as a machine")

    monkeypatch.setattr(plugin, "Machine", missing)
    start(guest, ":", "a")
    with pytest.raises(RemoteError, match="cannot be started: no such thing as a machine"):
        guest.result("a")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel, "KERNEL", tmp_path / "vmlinuz")
    with pytest.raises(MissingError, match="vmlinuz is missing: run `make vm`"):
        kernel.demand()


def test_those_that_wait_notice_when_the_one_that_owns_the_machine_is_gone(guest: Guest) -> None:
    guest.folder.mkdir()
    waiting: list[str] = []

    def wait() -> None:
        with pytest.raises(RemoteError) as caught:
            guest.result("a")
        waiting.append(str(caught.value))

    thread = threading.Thread(target=wait)
    thread.start()
    owner = holding(guest.folder / "owner")
    owner.kill()
    owner.communicate()
    thread.join()
    assert waiting == ["the process that ran the virtual machine is gone"]


def test_folders_of_earlier_runs_are_removed_those_in_use_are_not(guest: Guest, tmp_path: Path) -> None:
    for name in ("run-old", "run-used"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "owner").touch()
    used = holding(tmp_path / "run-used/owner")
    plugin.sweep()
    assert sorted(path.name for path in tmp_path.glob("run-*")) == ["run-used"]
    used.kill()
    used.communicate()


def holding(file: Path) -> subprocess.Popen[bytes]:
    """A process that says a folder is in use."""
    code = f"import fcntl, time; f = open({str(file)!r}, 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize(
    ("phases", "outcome"),
    [
        (["passed", "passed", "passed"], "passed"),
        (["passed", "failed", "passed"], "failed"),
        (["failed", "passed"], "failed"),
        (["passed", "passed", "failed"], "failed"),
        (["skipped", "passed"], "skipped"),
    ],
)
def test_a_line_for_each_test(tmp_path: Path, phases: list[str], outcome: Any) -> None:
    writer = Writer(tmp_path / "results")
    whens = ["setup", "call", "teardown"] if len(phases) == 3 else ["setup", "teardown"]
    for when, phase in zip(whens, phases, strict=True):
        words: Any = {"passed": None, "failed": "it broke", "skipped": ("file", 1, "not today")}[phase]
        report: Any = pytest.TestReport("t::a", ("t", 1, "a"), {}, phase, words, when)  # type: ignore[arg-type]
        writer.pytest_runtest_logreport(report)
    (written,) = (tmp_path / "results").read_text().splitlines()
    told = json.loads(written)
    assert (told["name"], told["outcome"]) == ("t::a", outcome)
    assert told["text"] == {"passed": "", "failed": "it broke", "skipped": "not today"}[outcome]
