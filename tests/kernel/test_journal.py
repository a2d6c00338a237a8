"""A daemon with a journal: `explain --at` answers for moments before and after a change, `replay` says what happened."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.hub import Hub
from kubeproxy.insight.history import events
from kubeproxy.insight.journal import Journal, JournalError
from kubeproxy.journal.writer import Batch
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, until
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab
from tests.unit.journal.test_journal import Disk, drifts, noise, opening

WEB, DB = "10.96.0.10", "10.96.0.11"


def kube_proxy(*arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, Any, str]:
    """Exit status, the JSON it wrote, and what it said beside that."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "kubeproxy", *arguments, "--json"],
        check=False, capture_output=True, text=True, timeout=240, cwd="/",
        env={**os.environ, "PYTHONPATH": str(root / "src")},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout or "null"), done.stderr


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Station:
    made = Station(lab, tmp_path, mode="nftables")
    made.folder.put(service("web", WEB), endpoints("web", EP11, local=(EP11,), node=NODE_NAME))
    return made


def recorded(folder: Path, wanted: Callable[[Any], bool]) -> Any:
    """The first event of a journal that is wanted, as soon as it is there."""
    found: list[Any] = []

    def look() -> bool:
        try:
            found.extend(event for event in events(Journal(folder)) if wanted(event))
        except JournalError:
            return False
        return bool(found)

    until(look, "it was not recorded")
    return found[0]


def moment(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat()


def test_a_daemon_and_its_past(station: Station, lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with station.running("--journal", str(folder)) as daemon:
        recorded(folder, lambda e: e.kind == "sync" and e.count == 1)
        station.folder.put(endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME))
        came = recorded(folder, lambda e: e.changes == (f"endpoint {EP12} added (ready, node {NODE_NAME})",))
        synced = recorded(folder, lambda e: e.kind == "sync" and e.unix > came.unix)
        station.folder.put(endpoints("web", EP12, local=(EP12,), node=NODE_NAME))
        left = recorded(folder, lambda e: e.changes == (f"endpoint {EP11} removed",))
        lab.run("node", "nft", "flush", "ruleset")
        recorded(folder, lambda e: e.kind == "drift")
        restored = recorded(folder, lambda e: any("drift changed is restored" in each for each in e.changes))
        # A running daemon's own journal is found.
        status, found, _ = _in_node(
            lab, "explain", "--from", "node", "--to", "web.default", "--at", moment(came.unix - 0.001)
        )
        assert (status, [each["address"] for each in found["endpoints"]]) == (0, [EP11])
        daemon.stop()
    question = ("explain", "--journal", str(folder), "--from", "198.51.100.7", "--to", f"{WEB}:80", "--at")
    for at, wanted in (
        (came.unix - 0.001, {EP11}),
        (synced.unix, {EP11, EP12}),
        (left.unix - 0.001, {EP11, EP12}),
        (left.unix + 0.001, {EP12}),
        (restored.unix, {EP12}),
    ):
        status, found, _ = kube_proxy(*question, moment(at))
        assert status == 0
        assert {each["address"] for each in found["endpoints"]} == wanted, at
        assert (found["node"], found["mode"], found["kernel"]) == (NODE_NAME, "nftables", "unread")
    stages = {each["name"]: each["text"] for each in found["stages"]}
    assert f"endpoint {EP11} removed" in stages["changed last"]
    status, found, _ = kube_proxy("replay", str(folder), "--service", "web.default")
    assert status == 0
    kinds = [event["kind"] for event in found]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert kinds.count("endpoints") == 2
    assert kinds.index("drift") > kinds.index("endpoints")
    (delay,) = [event["delay"] for event in found if event["unix"] == synced.unix]
    assert 0 < delay < PATIENCE
    # After the end it is said that the program did not run.
    time.sleep(0.01)
    _, _, notes = kube_proxy(*question, moment(time.time()))
    assert "kube-proxy did not run at that moment: it ended at " in notes
    assert (folder.stat().st_mode & 0o777, {path.stat().st_mode & 0o777 for path in folder.iterdir()}) == (
        0o700,
        {0o600},
    )


def _in_node(lab: Lab, *arguments: str) -> tuple[int, Any, str]:
    return kube_proxy(*arguments, prefix=("ip", "netns", "exec", lab.name("node")))


def test_what_changed_while_no_daemon_ran(station: Station, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with station.running("--journal", str(folder)) as daemon:
        recorded(folder, lambda e: e.kind == "sync")
        daemon.kill()
    station.folder.put(service("db", DB))
    station.folder.remove("Service", "web")
    with station.running("--journal", str(folder)):
        recorded(folder, lambda e: e.service == "default/db")
    status, found, _ = kube_proxy("replay", str(folder), "--no-syncs")
    assert status == 0
    seen = [(event["kind"], event["service"]) for event in found]
    assert seen.count(("start", "")) == 2
    second = len(seen) - 1 - seen[::-1].index(("start", ""))
    assert {("service", "default/web"), ("service", "default/db")} <= set(seen[second:])


def test_a_daemon_whose_journal_cannot_be_written_serves_all_the_same(
    station: Station, lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with station.running("--journal", str(tmp_path / "file")) as daemon:
        assert WEB in lab.run("node", "nft", "list", "ruleset")
        daemon.says("cannot be written, changes are not recorded until it can be")
        assert daemon.log().count("cannot be written") == 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_logged_once_and_recorded_from_where_it_ends(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    disk = Disk(small)
    assert disk.write(Batch(opening=opening(100.0, Hub("here"))))[0]
    (small / "filler").write_bytes(bytes(150 * 1024))
    outcomes = [disk.write(Batch(changes=tuple(noise(i) for _ in range(20)))) for i in range(10)]
    assert (False, False) in outcomes
    (line,) = [r.message for r in caplog.records]
    assert "No space left on device" in line
    whole = Journal(small)  # what was written is whole
    assert drifts(whole)
    assert not whole.damaged
    (small / "filler").unlink()
    assert disk.write(Batch(opening=opening(200.0, Hub("here"), "lost")))[0]
    assert caplog.records[-1].message == f"The journal in {small} is written again"
    disk.close()
    assert [event.kind for event in events(Journal(small))][-1] == "lost"
