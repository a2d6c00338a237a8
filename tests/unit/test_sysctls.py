"""Connection tracking's settings: which values, and what happens where they cannot be written."""

import errno
import logging

import pytest

from kubeproxy.config.durations import Duration
from kubeproxy.config.types import Conntrack
from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.netlink import conntrack
from kubeproxy.netlink.conntrack import Usage
from kubeproxy.sysctls import apply, figures, wanted

NOTHING = Conntrack(max_per_core=0, tcp_established_timeout=Duration(0), tcp_close_wait_timeout=Duration(0))
CORES = 4
PREFIX = "net/netfilter/nf_conntrack_"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """What a kernel has before anybody set anything, on a node with `CORES` processors."""
    machine = FakeMachine()
    machine.settings.clear()
    for name, value in {
        "max": 65536,
        "buckets": 16384,
        "tcp_timeout_established": 432000,
        "tcp_timeout_close_wait": 60,
        "tcp_be_liberal": 0,
        "udp_timeout": 30,
        "udp_timeout_stream": 120,
    }.items():
        machine.settings[PREFIX + name] = str(value)
    machine.processors = CORES
    monkeypatch.setattr(conntrack, "usage", lambda _: Usage(0, 0))
    return machine


def values(machine: FakeMachine) -> dict[str, int]:
    return {
        name.removeprefix(PREFIX): int(value)
        for name, value in machine.settings.items()
        if name.startswith(PREFIX)
    }


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


def test_what_nobody_asked_for_is_left_alone(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = values(machine)
    assert wanted(NOTHING, CORES) == {}
    assert apply(machine, NOTHING) == []
    assert values(machine) == before


def test_everything(machine: FakeMachine) -> None:
    settings = Conntrack(
        max_per_core=65536,
        tcp_be_liberal=True,
        udp_timeout=Duration(0.5),
        udp_stream_timeout=Duration(90.9),
    )
    assert apply(machine, settings) == []
    assert values(machine) == {
        "max": 262144,
        "buckets": 65536,
        "tcp_timeout_established": 86400,
        "tcp_timeout_close_wait": 3600,
        "tcp_be_liberal": 1,
        "udp_timeout": 1,
        "udp_timeout_stream": 90,
    }


def test_the_hash_table_is_never_made_smaller(machine: FakeMachine) -> None:
    machine.settings[PREFIX + "buckets"] = "262144"
    assert apply(machine, Conntrack()) == []
    assert values(machine)["buckets"] == 262144


def test_more_connections_than_asked_for_stay(machine: FakeMachine, caplog: pytest.LogCaptureFixture) -> None:
    """An administrator set them (kubernetes/kubernetes#142035)."""
    caplog.set_level(logging.INFO)
    machine.settings[PREFIX + "max"] = "2097152"
    assert apply(machine, Conntrack()) == []
    assert (values(machine)["max"], values(machine)["buckets"]) == (2097152, 32768)
    assert "nf_conntrack_max stays 2097152: only 131072 is configured" in caplog.text


def test_connection_tracking_is_loaded_first(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no settings before."""
    del machine.settings[PREFIX + "udp_timeout"]

    def usage(_: Machine) -> Usage:
        machine.settings[PREFIX + "udp_timeout"] = "30"
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(conntrack, "usage", usage)
    assert apply(machine, Conntrack(udp_timeout=Duration(60))) == []
    assert values(machine)["udp_timeout"] == 60


def test_what_cannot_be_written_is_told_at_once_and_all_else_is_set(
    machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.fixed = {f"{PREFIX}max", f"{PREFIX}tcp_timeout_established"}
    del machine.settings[PREFIX + "udp_timeout"]
    troubles = apply(machine, Conntrack(udp_timeout=Duration(60)))
    assert troubles == [
        "net/netfilter/nf_conntrack_max is 65536, not 131072 (Read-only file system)",
        "net/netfilter/nf_conntrack_tcp_timeout_established is 432000, not 86400 (Read-only file system)",
        "net/netfilter/nf_conntrack_udp_timeout is not there, not 60 (No such file or directory)",
    ]
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert all(trouble in record.getMessage() for trouble in troubles)
    assert values(machine)["tcp_timeout_close_wait"] == 3600


def test_what_is_right_needs_no_right_to_write(
    machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    apply(machine, Conntrack())
    machine.fixed = set(machine.settings)
    caplog.clear()
    assert apply(machine, Conntrack()) == []
    assert caplog.records == []


def test_more_room_than_asked_for_is_no_trouble(machine: FakeMachine) -> None:
    """Outside the first network namespace the limits cannot be written, whoever asks."""
    machine.settings[PREFIX + "max"] = "262144"
    machine.settings[PREFIX + "buckets"] = "262144"
    machine.fixed = {f"{PREFIX}max", f"{PREFIX}buckets"}
    assert apply(machine, Conntrack()) == []
    assert values(machine)["max"] == 262144


def test_how_full_the_table_is(machine: FakeMachine) -> None:
    assert [(f.name, f.value) for f in figures(machine)] == [("kubeproxy_conntrack_entries_limit", 65536)]
    machine.settings[PREFIX + "count"] = "17"
    assert next(iter(figures(machine))).value == 17
    machine.settings.clear()
    assert list(figures(machine)) == [], "the kernel has no connection tracking, or not yet"
