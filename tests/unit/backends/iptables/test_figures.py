"""What iptables mode tells of itself."""

import pytest

from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.figures import Figure
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import nfacct
from tests.fakes.cluster import Proxy, endpoints, service

Rules = tuple[float, float]


class Rig:
    """A proxy over tables in memory."""

    def __init__(self, *, counters: bool = False) -> None:
        self.tables = FakeTables("nf_tables")
        self.backend = IPTablesDriver(self.tables, counters=counters, drop_invalid=True)
        self.proxy = Proxy(self.backend)

    def web(self, i: int, count: int) -> None:
        """A Service with so many endpoints."""
        self.proxy.tell(
            service(f"web-{i}", f"10.96.0.{i + 1}"),
            endpoints(f"web-{i}", *[f"10.244.{i}.{k + 1}" for k in range(count)]),
        )

    def rules(self, name: str) -> Rules:
        """Of filter and nat."""
        found: dict[str, Figure] = {
            figure.labels["table"]: figure
            for figure in self.backend.figures()
            if figure.name == f"kubeproxy_sync_proxy_rules_iptables_{name}"
        }
        assert all(f.kind == "gauge" and f.labels["ip_family"] == "IPv4" for f in found.values())
        return found["filter"].value, found["nat"].value  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("services", "count", "rules"),
    [
        (0, 0, (4, 5)), (1, 0, (5, 5)), (1, 1, (4, 10)), (1, 2, (4, 13)), (1, 10, (4, 37)),
        (10, 0, (14, 5)), (10, 1, (4, 55)), (10, 2, (4, 85)), (10, 10, (4, 325)),
    ],
)  # fmt: skip
def test_rules_are_counted_as_the_reference_counts_them(services: int, count: int, rules: Rules) -> None:
    rig = Rig()
    for i in range(services):
        rig.web(i, count)
    rig.proxy.full()
    assert rig.rules("total") == rules
    assert rig.rules("last") >= rules
    rig.proxy.full()
    assert rig.rules("total") == rules
    assert rig.rules("last") == (0, 0)


def test_changes_change_the_count() -> None:
    rig = Rig()
    for i in range(10):
        rig.web(i, 1)
    rig.proxy.full()
    rig.web(0, 0)
    rig.web(1, 10)
    rig.proxy.partial()
    total = rig.rules("total")
    assert rig.rules("last")[0] == 1
    rig.proxy.full()
    assert rig.rules("total") == total == (5, 55 - 5 + 27)


def test_a_refused_first_sync_counts_nothing_twice() -> None:
    rig = Rig()
    rig.web(0, 1)
    refused = [True]
    rig.tables.refuse = lambda line: "no" if "web-0" in line and refused and refused.pop() else None
    rig.proxy.full()
    assert not refused
    assert rig.rules("total") == (4, 10)


def test_packets_that_rules_counted_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = {names.INVALID_COUNTER: 3, names.LOCALHOST_COUNTER: 4}
    monkeypatch.setattr(nfacct, "packets", lambda _, name: packets[name])
    found = {f.name: f for f in Rig(counters=True).backend.figures() if f.kind == "counter"}
    assert {name: (f.value, dict(f.labels)) for name, f in found.items()} == {
        "kubeproxy_iptables_ct_state_invalid_dropped_packets_total": (3, {}),
        "kubeproxy_iptables_localhost_nodeports_accepted_packets_total": (4, {}),
    }
    rig = Rig(counters=True)
    rig.tables.family = "IPv6"
    assert not [f for f in rig.backend.figures() if f.kind == "counter"], "both families count into the same"
    assert not [f for f in Rig().backend.figures() if f.kind == "counter"]


def test_counters_that_somebody_deleted_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Machine, name: str) -> int:
        raise OSError(2, name)

    monkeypatch.setattr(nfacct, "packets", gone)
    assert not [f for f in Rig(counters=True).backend.figures() if f.kind == "counter"]
