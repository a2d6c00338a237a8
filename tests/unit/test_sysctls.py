"""Connection tracking's settings: which values, and what happens where they cannot be written."""

import errno
import logging
from pathlib import Path

import pytest

from kubeproxy.config.durations import Duration
from kubeproxy.config.types import Conntrack
from kubeproxy.linux import sysctl
from kubeproxy.netlink import conntrack
from kubeproxy.netlink.conntrack import Usage
from kubeproxy.sysctls import apply, figures, wanted

NOTHING = Conntrack(max_per_core=0, tcp_established_timeout=Duration(0), tcp_close_wait_timeout=Duration(0))
CORES = 4


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a kernel has before anybody set anything, on a node with `CORES` processors."""
    folder = tmp_path / "net/netfilter"
    folder.mkdir(parents=True)
    for name, value in {
        "max": 65536,
        "buckets": 16384,
        "tcp_timeout_established": 432000,
        "tcp_timeout_close_wait": 60,
        "tcp_be_liberal": 0,
        "udp_timeout": 30,
        "udp_timeout_stream": 120,
    }.items():
        (folder / f"nf_conntrack_{name}").write_text(f"{value}\n")
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: CORES)
    monkeypatch.setattr(conntrack, "usage", lambda: Usage(0, 0))
    return folder


def values(folder: Path) -> dict[str, int]:
    return {p.name.removeprefix("nf_conntrack_"): int(p.read_text()) for p in folder.iterdir()}


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of settings that nobody may write."""
    names: list[str] = []
    write = Path.write_text

    def write_text(path: Path, text: str) -> int:
        if path.name in names:
            raise OSError(errno.EROFS, "Read-only file system")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", write_text)
    return names


@pytest.mark.parametrize(
    ("per_core", "least", "cores", "most"),
    [
        (32768, 131072, 2, 131072),
        (32768, 131072, 4, 131072),
        (32768, 131072, 8, 262144),
        (32768, 0, 1, 32768),
        (32768, 131072, 64, 1 << 20),
        (32768, 2 << 20, 64, 1 << 20),
        (32768, 2 << 20, 8, 2 << 20),
        (1 << 19, 0, 2, 1 << 20),
    ],
)
def test_how_many_connections(per_core: int, least: int, cores: int, most: int) -> None:
    found = wanted(Conntrack(max_per_core=per_core, min=least), cores)
    assert (found["nf_conntrack_max"], found["nf_conntrack_buckets"]) == (most, most // 4)


def test_without_max_per_core_min_is_nothing() -> None:
    assert wanted(Conntrack(max_per_core=0), CORES).keys() == {
        "nf_conntrack_tcp_timeout_established",
        "nf_conntrack_tcp_timeout_close_wait",
    }


def test_what_nobody_asked_for_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = values(folder)
    assert wanted(NOTHING, CORES) == {}
    assert apply(NOTHING) == []
    assert values(folder) == before


def test_everything(folder: Path) -> None:
    settings = Conntrack(
        max_per_core=65536,
        tcp_be_liberal=True,
        udp_timeout=Duration(0.5),
        udp_stream_timeout=Duration(90.9),
    )
    assert apply(settings) == []
    assert values(folder) == {
        "max": 262144,
        "buckets": 65536,
        "tcp_timeout_established": 86400,
        "tcp_timeout_close_wait": 3600,
        "tcp_be_liberal": 1,
        "udp_timeout": 1,
        "udp_timeout_stream": 90,
    }


def test_the_hash_table_is_never_made_smaller(folder: Path) -> None:
    (folder / "nf_conntrack_buckets").write_text("262144\n")
    assert apply(Conntrack()) == []
    assert values(folder)["buckets"] == 262144


def test_more_connections_than_asked_for_stay(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An administrator set them (kubernetes/kubernetes#142035)."""
    caplog.set_level(logging.INFO)
    (folder / "nf_conntrack_max").write_text("2097152\n")
    assert apply(Conntrack()) == []
    assert (values(folder)["max"], values(folder)["buckets"]) == (2097152, 32768)
    assert "nf_conntrack_max stays 2097152: only 131072 is configured" in caplog.text


def test_connection_tracking_is_loaded_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no settings before."""
    (folder / "nf_conntrack_udp_timeout").unlink()

    def usage() -> Usage:
        (folder / "nf_conntrack_udp_timeout").write_text("30\n")
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(conntrack, "usage", usage)
    assert apply(Conntrack(udp_timeout=Duration(60))) == []
    assert values(folder)["udp_timeout"] == 60


def test_what_cannot_be_written_is_told_at_once_and_all_else_is_set(
    folder: Path, forbidden: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    forbidden += ["nf_conntrack_max", "nf_conntrack_tcp_timeout_established"]
    (folder / "nf_conntrack_udp_timeout").unlink()
    troubles = apply(Conntrack(udp_timeout=Duration(60)))
    assert troubles == [
        "net/netfilter/nf_conntrack_max is 65536, not 131072 (Read-only file system)",
        "net/netfilter/nf_conntrack_tcp_timeout_established is 432000, not 86400 (Read-only file system)",
        "net/netfilter/nf_conntrack_udp_timeout is not there, not 60 (No such file or directory)",
    ]
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert all(trouble in record.getMessage() for trouble in troubles)
    assert values(folder)["tcp_timeout_close_wait"] == 3600


def test_what_is_right_needs_no_right_to_write(
    folder: Path, forbidden: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    apply(Conntrack())
    forbidden += [p.name for p in folder.iterdir()]
    caplog.clear()
    assert apply(Conntrack()) == []
    assert caplog.records == []


def test_more_room_than_asked_for_is_no_trouble(folder: Path, forbidden: list[str]) -> None:
    """Outside the first network namespace the limits cannot be written, whoever asks."""
    (folder / "nf_conntrack_max").write_text("262144\n")
    (folder / "nf_conntrack_buckets").write_text("262144\n")
    forbidden += ["nf_conntrack_max", "nf_conntrack_buckets"]
    assert apply(Conntrack()) == []
    assert values(folder)["max"] == 262144


def test_how_full_the_table_is(folder: Path) -> None:
    assert [(f.name, f.value) for f in figures()] == [("kubeproxy_conntrack_entries_limit", 65536)]
    (folder / "nf_conntrack_count").write_text("17\n")
    assert next(iter(figures())).value == 17
    for file in folder.iterdir():
        file.unlink()
    assert list(figures()) == [], "the kernel has no connection tracking, or not yet"
