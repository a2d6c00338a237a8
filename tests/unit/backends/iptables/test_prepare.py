"""What is prepared before the first rule, on tables and settings in memory."""

import errno
from pathlib import Path

import pytest

from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import names, prepare
from kubeproxy.linux import sysctl
from kubeproxy.netlink import nfacct


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    monkeypatch.setattr(nfacct, "ensure", made.append)
    return made


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)
    for name in (prepare._BE_LIBERAL, prepare._ROUTE_LOCALNET):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0\n")
    return tmp_path


def test_counters_are_made_and_tried_and_nothing_is_left(counters: list[str]) -> None:
    tables = FakeTables()
    assert prepare._counters(tables)
    assert counters == [names.INVALID_COUNTER, names.LOCALHOST_COUNTER]
    assert tables.tables == FakeTables().tables
    assert len(tables.inputs) == 1


def test_rules_cannot_count(counters: list[str]) -> None:
    tables = FakeTables()
    tables.refuse = lambda line: "no match nfacct" if "nfacct" in line else None
    assert not prepare._counters(tables)
    assert counters


def test_there_are_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(nfacct, "ensure", missing)
    tables = FakeTables()
    assert not prepare._counters(tables)
    assert tables.inputs == []


@pytest.mark.parametrize(("value", "drops"), [("0", True), ("1", False), (None, True)])
def test_invalid_packets_are_dropped_unless_conntrack_is_liberal(
    settings: Path, value: str | None, drops: bool
) -> None:
    if value is None:
        (settings / prepare._BE_LIBERAL).unlink()
    else:
        (settings / prepare._BE_LIBERAL).write_text(f"{value}\n")
    assert prepare._drops_invalid() == drops


def test_localhost_packets_may_leave(settings: Path) -> None:
    prepare._route_localnet()
    assert sysctl.read(prepare._ROUTE_LOCALNET) == "1"


def test_a_setting_that_cannot_be_made_is_told(settings: Path, caplog: pytest.LogCaptureFixture) -> None:
    (settings / prepare._ROUTE_LOCALNET).unlink()
    prepare._route_localnet()
    assert "Node ports will not work on localhost" in caplog.text
