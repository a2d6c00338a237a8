"""What is prepared before the first rule, on tables and settings in memory."""

import errno

import pytest

from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import names, prepare
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.netlink import nfacct


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    monkeypatch.setattr(nfacct, "ensure", lambda _, name: made.append(name))
    return made


@pytest.fixture
def machine() -> FakeMachine:
    machine = FakeMachine()
    machine.settings |= {prepare._BE_LIBERAL: "0", prepare._ROUTE_LOCALNET: "0"}
    return machine


def test_counters_are_made_and_tried_and_nothing_is_left(counters: list[str]) -> None:
    tables = FakeTables()
    assert prepare.make_counters(tables.machine, tables)
    assert counters == [names.INVALID_COUNTER, names.LOCALHOST_COUNTER]
    assert tables.tables == FakeTables().tables
    assert len(tables.inputs) == 1


def test_rules_cannot_count(counters: list[str]) -> None:
    tables = FakeTables()
    tables.refuse = lambda line: "no match nfacct" if "nfacct" in line else None
    assert not prepare.make_counters(tables.machine, tables)
    assert counters


def test_there_are_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(nfacct, "ensure", missing)
    tables = FakeTables()
    assert not prepare.make_counters(tables.machine, tables)
    assert tables.inputs == []


@pytest.mark.parametrize(("value", "drops"), [("0", True), ("1", False), (None, True)])
def test_invalid_packets_are_dropped_unless_conntrack_is_liberal(
    machine: FakeMachine, value: str | None, drops: bool
) -> None:
    if value is None:
        del machine.settings[prepare._BE_LIBERAL]
    else:
        machine.settings[prepare._BE_LIBERAL] = value
    assert prepare.drops_invalid(machine) == drops


def test_localhost_packets_may_leave(machine: FakeMachine) -> None:
    prepare.route_localnet(machine)
    assert machine.sysctl(prepare._ROUTE_LOCALNET) == "1"


def test_a_setting_that_cannot_be_made_is_told(
    machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    del machine.settings[prepare._ROUTE_LOCALNET]
    prepare.route_localnet(machine)
    assert "Node ports will not work on localhost" in caplog.text
