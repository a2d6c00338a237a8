"""The journal: what is recorded is what is read, whatever happens to the program, the disk and the files."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeproxy.hub import Hub
from kubeproxy.insight.history import events
from kubeproxy.insight.journal import Journal, JournalError
from kubeproxy.journal import frames, records
from kubeproxy.journal.folder import segments
from kubeproxy.journal.writer import Batch, JournalWriter, Outcome
from kubeproxy.model.node import NodeConfig
from tests import strategies
from tests.strategies import Gone

PLANNED = records.Planned(0.0, "iptables", True, NodeConfig(name="here", address="192.0.2.1"), ("192.0.2.1",))


def opening(at: float, hub: Hub, reason: records.Reason = "start") -> list[records.Record]:
    stored = [records.of_object(at, name, rows) for name, rows in hub.state.stored()]
    return [records.Opened(at, reason, "1", "here"), PLANNED, *stored, records.Whole(at)]


def view(state: Any) -> dict[Any, Any]:
    return dict(state.stored())


class Disk:
    """A journal that is written without a daemon."""

    def __init__(self, folder: Path, limit: int = 1 << 26) -> None:
        self.outcomes: list[Outcome] = []
        self.writer = JournalWriter(folder, limit, self.outcomes.append)

    def write(self, batch: Batch) -> Outcome:
        count = len(self.outcomes)
        self.writer.put(batch)
        while len(self.outcomes) == count:
            time.sleep(0.001)
        return self.outcomes[-1]

    def close(self) -> None:
        self.writer.put(Batch(last=True))
        self.writer.join(30)


def record(hub: Hub, clock: Callable[[], float]) -> list[records.Record]:
    made: list[records.Record] = []
    hub.follow(lambda name, rows: made.append(records.of_object(clock(), name, rows)))
    return made


@settings(max_examples=60)
@given(history=strategies.histories(), cuts=st.sets(st.integers(0, 20)))
def test_the_state_of_each_moment_is_that_of_the_events_until_then(history, cuts):
    """Also across segments, however many there are, and with Services of other proxies."""
    with tempfile.TemporaryDirectory() as folder:
        hub, now = Hub("here"), 100.0
        made = record(hub, lambda: now)
        disk = Disk(Path(folder))
        disk.write(Batch(opening=opening(now, hub)))
        expected = [(now, view(hub.state), set(hub.state.foreign))]
        for i, batch in enumerate(history):
            for event in batch:
                now += 1
                hub.gone(*event) if isinstance(event, Gone) else hub.set(event)
                expected.append((now, view(hub.state), set(hub.state.foreign)))
            again = opening(now, hub, "full") if i in cuts else None
            disk.write(Batch(tuple(made), again) if again else Batch(changes=tuple(made)))
            made.clear()
        disk.close()
        journal = Journal(Path(folder))
        for moment, stored, foreign in expected:
            past = journal.at(moment + 0.5)
            assert view(past.state) == stored
            assert past.state.foreign == foreign
        assert journal.troubles == []
        replayed = list(journal.replay())
        last = replayed[-1][0]
        assert view(last.state) == expected[-1][1]


def test_a_moment_before_the_journal_is_refused(tmp_path):
    disk = Disk(tmp_path)
    disk.write(Batch(opening=opening(100.0, Hub("here"))))
    disk.close()
    with pytest.raises(JournalError, match=r"says nothing of 1970-01-01 .*: it begins at 1970-01-01 "):
        Journal(tmp_path).at(99.0)


def noise(i: int) -> records.Record:
    """A record that cannot be compressed."""
    return records.TroubleSeen(100.0 + i, "IPv4", "drift", os.urandom(2000).hex())


def test_files_stay_within_the_limit_under_churn(tmp_path):
    limit = 1 << 20
    disk = Disk(tmp_path, limit)
    outcome = disk.write(Batch(opening=opening(100.0, Hub("here"))))
    largest = begun = 0
    for i in range(400):
        again = opening(100.0 + i, Hub("here"), "full") if outcome[1] else None
        begun += again is not None
        changes = tuple(noise(i) for _ in range(10))
        outcome = disk.write(Batch((), again, changes))
        assert outcome[0]
        largest = max(largest, sum(path.stat().st_size for path in segments(tmp_path)))
    disk.close()
    assert begun > 10
    assert limit / 2 < largest <= limit
    past = Journal(tmp_path).at(1000.0)
    assert past.last == 100.0 + 399


def test_what_is_known_of_all_objects_must_fit(tmp_path, caplog):
    disk = Disk(tmp_path, 1 << 20)
    large = [records.Opened(1.0, "start", "1", "here"), *(noise(i) for i in range(300)), records.Whole(1.0)]
    assert disk.write(Batch(opening=large)) == (True, False)
    assert disk.write(Batch(changes=(noise(1),))) == (True, False)
    disk.close()
    assert [r.message for r in caplog.records] == [
        f"The journal in {tmp_path} is not written: --journal-size 1048576 is too small, what is known of all Services needs"
        " more than a quarter of it"
    ]
    assert segments(tmp_path) == []


def test_only_the_owner_can_read_it(tmp_path):
    before = os.umask(0)
    try:
        disk = Disk(tmp_path / "made" / "here")
        disk.write(Batch(opening=opening(1.0, Hub("here"))))
        disk.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made" / "here").stat().st_mode) == 0o700
    (path,) = segments(tmp_path / "made" / "here")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_others_cannot_read_it_and_are_told_so(tmp_path):
    disk = Disk(tmp_path / "journal")
    disk.write(Batch(opening=opening(1.0, Hub("here"))))
    disk.close()
    parents = [path for path in tmp_path.parents if path.name.startswith("pytest-")]
    modes = [path.stat().st_mode & 0o777 for path in parents]
    for path in (tmp_path, *parents):
        path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(JournalError, match=r"cannot be read: Permission denied$"):
            Journal(tmp_path / "journal")
    finally:
        os.seteuid(0)
        for path, mode in zip(parents, modes, strict=True):
            path.chmod(mode)


@pytest.mark.parametrize(
    ("mode", "words"),
    [(0o777, "can be changed by other users; chmod 700"), (0o720, "can be changed by other users")],
)
def test_a_folder_that_others_can_change_is_not_used(tmp_path, caplog, mode, words):
    caplog.set_level("INFO")
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    disk = Disk(folder)
    assert disk.write(Batch(opening=opening(1.0, Hub("here")))) == (False, False)
    assert disk.write(Batch(opening=opening(1.0, Hub("here")))) == (False, False)
    (line,) = [r.message for r in caplog.records]
    assert words in line
    folder.chmod(0o700)
    assert disk.write(Batch(opening=opening(1.0, Hub("here")))) == (True, False)
    assert caplog.records[-1].message == f"The journal in {folder} is written again"
    disk.close()


def test_an_unforeseen_error_does_not_end_the_thread(tmp_path, caplog):
    disk = Disk(tmp_path)
    assert disk.write(Batch(opening=opening(1.0, Hub("here"))))[0]
    unencodable: Any = object()
    assert disk.write(Batch(changes=(unencodable,))) == (False, False)
    assert "TypeError" in caplog.text
    assert disk.write(Batch(opening=opening(2.0, Hub("here"), "lost")))[0]
    disk.close()
    assert [each.opened.at for each in Journal(tmp_path).segments] == [1.0, 2.0]


def test_two_daemons_do_not_write_in_one_folder(tmp_path, caplog):
    first, second = Disk(tmp_path), Disk(tmp_path)
    assert first.write(Batch(opening=opening(1.0, Hub("here"))))[0]
    assert not second.write(Batch(opening=opening(1.0, Hub("here"))))[0]
    assert "another process writes a journal" in caplog.text
    first.close()
    assert second.write(Batch(opening=opening(1.0, Hub("here"))))[0]
    second.close()


def test_a_folder_that_is_a_file(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    disk = Disk(tmp_path / "file")
    assert not disk.write(Batch(opening=opening(1.0, Hub("here"))))[0]
    assert "cannot be written" in caplog.text
    disk.close()


# Files


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[Path], list[int]]:
    """A journal of two segments with several frames, and where those of the first one end."""
    disk = Disk(tmp_path)
    hub = Hub("here")
    disk.write(Batch(opening=opening(100.0, hub)))
    for i in range(1, 6):
        disk.write(Batch(changes=(records.TroubleSeen(100.0 + i, "IPv4", "drift", f"nr {i}"),)))
    disk.write(Batch((), opening(200.0, hub, "full")))
    disk.write(Batch(changes=(records.TroubleSeen(201.0, "IPv4", "drift", "nr 6"),)))
    disk.close()
    found = segments(tmp_path)
    ends = [item.end for item in frames.read(found[0]) if isinstance(item, frames.RecordFrame)]
    return tmp_path, found, ends


def drifts(journal: Journal) -> list[str]:
    return [event.changes[0] for event in events(journal) if event.kind == "drift"]


def test_a_file_that_ends_anywhere_is_read_to_its_last_whole_frame(written):
    folder, (first, second), ends = written
    second.unlink()
    data = first.read_bytes()
    for length in range(len(data) + 1):
        first.write_bytes(data[:length])
        whole = sum(end <= length for end in ends)
        if not whole:
            with pytest.raises(JournalError, match="holds no journal"):
                Journal(folder)
            continue
        journal = Journal(folder)
        assert drifts(journal) == [f"nr {i}" for i in range(1, whole)], length
        assert not journal.damaged
    assert whole == len(ends)


def test_a_changed_byte_is_found_and_named_and_the_next_segment_is_read(written):
    folder, (first, _), ends = written
    data = first.read_bytes()
    for at in range(len(data)):
        first.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        if len(frames.MAGIC) <= at < len(frames.HEADER):
            with pytest.raises(JournalError, match="was written by a newer kube-proxy"):
                Journal(folder)
            continue
        journal = Journal(folder)
        found = drifts(journal)
        whole = sum(end <= at for end in ends)
        assert found == [*(f"nr {i}" for i in range(1, whole)), "nr 6"], at
        in_length = any(end <= at < end + 4 for end in (len(frames.HEADER), *ends))
        if at < ends[-2] and not in_length:
            (trouble,) = journal.troubles
            assert trouble.startswith(f"{first} is damaged, nothing is used from byte ")


def test_random_files_are_survived(written):
    folder, (first, _), _ = written

    @settings(max_examples=100)
    @given(content=st.binary(max_size=200), keep=st.booleans())
    def check(content, keep):
        packed = zlib.compress(content)
        length = len(packed).to_bytes(4, "little")
        frame = length + zlib.crc32(packed, zlib.crc32(length)).to_bytes(4, "little") + packed
        first.write_bytes(frames.HEADER + frame if keep else content)
        assert drifts(Journal(folder)) == ["nr 6"]

    check()


def test_a_frame_that_would_fill_the_memory_is_not_read(written, monkeypatch):
    folder, (first, _), _ = written
    monkeypatch.setattr(frames, "LARGEST_FRAME", 1 << 16)
    first.write_bytes(frames.HEADER + frames.pack(bytes(1 << 20)))
    assert Journal(folder).troubles[0].endswith("a frame is larger than any that is written")


def test_a_newer_format_is_refused(written):
    folder, (first, _), _ = written
    data = first.read_bytes()
    newer = (frames.VERSION + 1).to_bytes(2, "little")
    first.write_bytes(frames.MAGIC + newer + data[len(frames.HEADER) :])
    with pytest.raises(JournalError) as e:
        Journal(folder)
    assert str(e.value) == (
        f"{first} was written by a newer kube-proxy: its format is 2, this one reads up to 1; use the program that wrote it"
    )


def test_other_files_are_ignored(written):
    folder, _, _ = written
    (folder / "README").write_text("x")
    (folder / "x.journal").write_text("x")
    assert len(Journal(folder).segments) == 2


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_holds_no_journal(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        JournalError, match="cannot be read: No such file" if name == "missing" else "holds no journal"
    ):
        Journal(tmp_path / name)


KILLED = """
import itertools, sys
from pathlib import Path
from tests.unit.journal.test_journal import Batch, Disk, Hub, opening, records
disk = Disk(Path(sys.argv[1]), 1 << 20)
disk.write(Batch(opening=opening(0.0, Hub("here"))))
for i in itertools.count(1):
    row = records.ServiceRow("shop", "api", ("10.96.0.1",), (), affinity=i)
    full = opening(float(i), Hub("here"), "full") if i % 50 == 0 else None
    disk.write(Batch((), full, (records.ServiceStored(float(i), "shop", "api", True, row),)))
    print(i, flush=True)
"""


@pytest.mark.parametrize("writes", [1, 49, 50, 51, 120])
def test_a_process_that_is_killed_loses_nothing_that_was_written(tmp_path, writes):
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= writes:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    known = int((line + process.stdout.read()).split()[-1])
    process.stdout.close()
    journal = Journal(tmp_path)
    past = journal.at(1e9)
    assert past.state.services["shop", "api"].affinity >= known
    assert not journal.damaged
