"""The backend on tables in memory: what it sends for a change, and what it makes of what it finds."""

import copy
from collections.abc import Callable, Iterable

import pytest
from msgspec import structs

from kubeproxy.api import types
from kubeproxy.backends.base import StaleError, SyncError
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import batches, names
from kubeproxy.backends.iptables import driver as drivers
from kubeproxy.backends.iptables.compile import SHARED
from kubeproxy.backends.programs import TABLES, Variant
from kubeproxy.model.node import LocalTraffic, NodeConfig
from tests.fakes.cluster import NODE, NODE6, endpoints, service
from tests.unit.backends.iptables.rig import VARIANTS, Rig, chains_of, places, rich, suffix

WEB = suffix("default/web")
EP1, EP2, EP3 = (suffix("default/web", f"10.244.1.{i}:8080") for i in (1, 2, 3))
SVC, SEP1, SEP2, SEP3 = f"KUBE-SVC-{WEB}", f"KUBE-SEP-{EP1}", f"KUBE-SEP-{EP2}", f"KUBE-SEP-{EP3}"


@pytest.fixture(params=VARIANTS)
def tables(request: pytest.FixtureRequest) -> FakeTables:
    return FakeTables(request.param)


@pytest.fixture
def rig(tables: FakeTables) -> Rig:
    """Some Services, synced."""
    made = Rig(tables)
    made.tell(*rich(), service("web", "10.96.0.10"), endpoints("web", "10.244.1.1", "10.244.1.2"))
    assert not made.full()
    made.sent()
    return made


def test_one_endpoint_more_sends_that_service_s_chains_and_no_front(rig: Rig) -> None:
    rig.tell(endpoints("web", "10.244.1.1", "10.244.1.2", "10.244.1.3"))
    rig.partial()
    ((table, lines),) = rig.sent()
    assert table == "nat"
    assert {chain for _, chain in places(lines)} == {SVC, SEP3}
    assert chains_of(lines) == {SVC, SEP1, SEP2, SEP3, names.MARK_MASQ}
    assert rig.rules() == rig.fresh().rules()


def test_one_endpoint_less_deletes_its_chain(rig: Rig) -> None:
    rig.tell(endpoints("web", "10.244.1.2"))
    rig.partial()
    ((table, lines),) = rig.sent()
    assert table == "nat"
    assert {chain for _, chain in places(lines)} == {SVC, SEP1}
    assert lines[-2:] == [f":{SEP1} - [0:0]", f"-X {SEP1}"]
    assert rig.rules() == rig.fresh().rules()


def test_a_service_more_sends_its_own_lines(rig: Rig) -> None:
    rig.tell(service("new", "10.96.0.11"), endpoints("new", "10.244.1.3"))
    rig.partial()
    ((table, lines),) = rig.sent()
    assert table == "nat"
    svc, sep = f"KUBE-SVC-{suffix('default/new')}", f"KUBE-SEP-{suffix('default/new', '10.244.1.3:8080')}"
    assert chains_of(lines) == {svc, sep, names.SERVICES, names.MARK_MASQ}
    assert [(verb, chain) for verb, chain in places(lines) if chain == names.SERVICES] == [
        ("-I", names.SERVICES)
    ]
    assert rig.rules() == rig.fresh().rules()


def test_a_service_less_sends_its_own_lines(rig: Rig) -> None:
    rig.gone("Service", "web")
    rig.partial()
    ((table, lines),) = rig.sent()
    assert table == "nat"
    assert chains_of(lines) == {SVC, SEP1, SEP2, names.SERVICES}
    assert [place for place in places(lines) if place[1] == names.SERVICES] == [("-D", names.SERVICES)]
    assert rig.rules() == rig.fresh().rules()


def test_a_service_without_endpoints_is_one_line(rig: Rig) -> None:
    rig.tell(service("new", "10.96.0.11"))
    rig.partial()
    ((table, (line,)),) = rig.sent()
    assert table == "filter"
    assert line.startswith("-I KUBE-SERVICES -d 10.96.0.11/32 ")
    rig.gone("Service", "new")
    rig.partial()
    assert rig.sent() == [("filter", [line.replace("-I", "-D", 1)])]


def test_packets_are_refused_before_their_way_in_goes_and_until_it_is_there(rig: Rig) -> None:
    rig.tell(endpoints("web"))
    rig.partial()
    (first, refused), (second, closed) = rig.sent()
    assert (first, second) == ("filter", "nat")
    assert [verb for verb, _ in places(refused)] == ["-I"]
    rig.tell(endpoints("web", "10.244.1.1"))
    rig.partial()
    (first, opened), (second, welcome) = rig.sent()
    assert (first, second) == ("nat", "filter")
    assert [verb for verb, _ in places(welcome)] == ["-D"]
    assert chains_of(opened) >= chains_of(closed) - {SEP2}


def test_many_services_change_in_three_inputs_at_most(rig: Rig) -> None:
    rig.tell(*(service(f"s{i}", f"10.97.0.{i}") for i in range(50)))
    rig.tell(*(endpoints(f"s{i}", "10.244.1.1") for i in range(25)))
    rig.gone("Service", "none")
    rig.gone("Service", "web")
    rig.partial()
    assert [table for table, _ in rig.sent()] == ["filter", "nat", "filter"]
    assert rig.rules() == rig.fresh().rules()


def test_inputs_are_kept_short_for_the_nf_tables_programs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "NF_TABLES_LINES", 100)
    rig.tell(*(service(f"s{i}", f"10.97.0.{i}") for i in range(100)))
    rig.tell(*(endpoints(f"s{i}", "10.244.1.1") for i in range(100)))
    rig.partial()
    inputs = rig.sent()
    if rig.tables.variant == "legacy":
        assert len(inputs) == 1
    else:
        assert len(inputs) > 5
        assert max(len(lines) for _, lines in inputs) < 120
    assert rig.rules() == rig.fresh().rules()
    rig.restarted().full()
    assert rig.sent() == []


def test_the_first_input_of_all_need_not_be_short(
    tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nf_tables programs are told to look at the whole table, which is fast as long as it is small."""
    monkeypatch.setattr(batches, "NF_TABLES_LINES", 50)
    monkeypatch.setattr(batches, "NF_TABLES_FIRST_LINES", 400)
    rig = Rig(tables)
    rig.tell(*(service(f"s{i}", f"10.97.0.{i}") for i in range(100)))
    rig.tell(*(endpoints(f"s{i}", "10.244.1.1") for i in range(100)))
    rig.full()
    inputs = [lines for table, lines in rig.sent() if any("KUBE-SEP-" in line for line in lines)]
    if rig.tables.variant == "legacy":
        assert len(inputs) == 1
    else:
        first, *rest = inputs
        assert len(first) > 200
        assert len(rest) > 2
        assert max(map(len, rest)) < 100
    for number, lines in enumerate(inputs):
        looks = number == 0 and rig.tables.variant == "nf_tables"
        assert ("-S" in lines) == (lines[0] == "-S") == looks
    assert rig.rules() == rig.fresh().rules()


def test_a_service_of_many_ports_comes_in_parts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "NF_TABLES_LINES", 100)
    ports = [types.ServicePort(port, f"p{port}") for port in range(1, 301)]
    targets = tuple(types.EndpointPort(port.name, port.port, "TCP") for port in ports)
    slice_ = structs.replace(endpoints("big", "10.244.1.11"), ports=targets)
    rig.tell(service("big", "10.96.1.1", ports=ports), slice_)
    rig.partial()
    assert rig.rules() == rig.fresh().rules()
    inputs = rig.sent()
    rig.tell(service("big", "10.96.1.1", ports=ports[:2]))
    rig.partial()
    assert rig.rules() == rig.fresh().rules()
    if rig.tables.variant == "nf_tables":
        assert max(len(lines) for _, lines in [*inputs, *rig.sent()]) < 2 * 100


@pytest.mark.parametrize("node", [NODE, NODE6], ids=lambda node: node.family)
def test_a_full_sync_of_what_is_right_sends_nothing(tables: FakeTables, node: NodeConfig) -> None:
    rig = Rig(tables, node)
    rig.tell(*rich())
    assert not rig.full()
    assert rig.sent()
    for each in (rig, rig.restarted()):
        assert not each.full()
        assert each.sent() == []


NODES: list[NodeConfig] = [
    structs.replace(NODE, masquerade_mark=1 << 15),
    structs.replace(NODE, masquerade_all=True),
    structs.replace(NODE, local_traffic=None),
    structs.replace(NODE, local_traffic=LocalTraffic("prefix", "cali")),
    structs.replace(NODE, localhost_node_ports=False),
    structs.replace(NODE, address="192.0.2.9"),
    structs.replace(
        NODE,
        node_port_ranges=("192.0.2.0/24",),
        node_port_addresses=("192.0.2.1", "192.0.2.2"),
        localhost_node_ports=False,
    ),
    structs.replace(NODE, node_port_ranges=("192.0.2.0/24",), localhost_node_ports=False),
]


@pytest.mark.parametrize("before", NODES)
@pytest.mark.parametrize("after", [NODE, NODES[6]])
def test_another_node_becomes_what_a_fresh_start_is(before: NodeConfig, after: NodeConfig) -> None:
    first = Rig(node=before)
    first.tell(*rich())
    first.full()
    rig = first.restarted(after)
    assert not rig.full()
    expected = rig.fresh().rules()
    firewall = ("filter", names.KUBELET_FIREWALL)
    assert rig.rules() | {firewall: []} == expected | {firewall: []}
    assert set(expected[firewall]) <= set(rig.rules()[firewall]), "it is the kubelet's, too"


FOREIGN = [
    ("nat", "CNI-HOSTPORT-DNAT", ["-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80"]),
    ("nat", "KUBE-MARK-DROP", ["-j MARK --set-xmark 0x8000/0x8000"]),
    ("nat", "KUBE-KUBELET-CANARY", []),
    ("mangle", "KUBE-KUBELET-CANARY", []),
    ("mangle", "KUBE-IPTABLES-HINT", []),
    ("filter", "KUBE-KUBELET-CANARY", []),
    ("filter", "KUBE-FIREWALL", ["-m mark --mark 0x8000/0x8000 -j DROP"]),
    ("nat", "PREROUTING", ['-m comment --comment "-j KUBE-SVC-NONE" -j CNI-HOSTPORT-DNAT', ""]),
    ("filter", "OUTPUT", ["", "-o lo -j ACCEPT"]),
    ("filter", "FORWARD", ["-m comment --comment cilium -j ACCEPT"]),
    ("mangle", "POSTROUTING", [""]),
]


def put_foreign(tables: FakeTables) -> None:
    for table, chain, rules in FOREIGN:
        tables.tables[table].setdefault(chain, [])[:0] = rules


def has_foreign(tables: FakeTables) -> bool:
    return all(
        [rule for rule in tables.tables[table].get(chain, ["?"]) if rule in rules] == rules
        for table, chain, rules in FOREIGN
    )


def test_what_others_put_into_the_tables_stays(tables: FakeTables) -> None:
    put_foreign(tables)
    rig = Rig(tables)
    rig.tell(*rich())
    assert not rig.full()
    assert has_foreign(tables)
    rig.gone("Service", "node")
    rig.partial()
    rig.full()
    assert has_foreign(tables)
    rig.sent()
    rig.restarted().full()
    assert rig.sent() == []


def test_rules_without_words_are_read(tables: FakeTables) -> None:
    """`iptables -A CHAIN`, which only counts, is saved as that."""
    rig = Rig(tables)
    rig.full()
    for table, chain in (("nat", names.SERVICES), ("filter", names.FORWARD), ("nat", "OUTPUT")):
        tables.tables[table][chain].insert(0, "")
    rig.full()
    assert tables.tables["nat"]["OUTPUT"][0] == ""
    tables.tables["nat"]["OUTPUT"].pop(0)
    assert rig.rules() == rig.fresh().rules()


def test_leftovers_of_services_that_are_gone_are_removed(tables: FakeTables) -> None:
    old = Rig(tables)
    old.tell(*rich())
    old.full()
    tables.tables["nat"]["KUBE-XLB-0123456789ABCDEF"] = ["-j KUBE-MARK-MASQ"]
    rig = Rig(tables)
    rig.tell(service("web", "10.96.0.10"), endpoints("web", "10.244.1.1"))
    assert not rig.full()
    assert rig.rules() == rig.fresh().rules()


def test_a_stale_chain_that_others_use_stays_and_harms_nobody(
    tables: FakeTables, caplog: pytest.LogCaptureFixture
) -> None:
    old = Rig(tables)
    old.tell(*rich())
    old.full()
    sep = f"KUBE-SEP-{suffix('default/plain', '10.244.1.11:8080')}"
    tables.tables["nat"]["OUTPUT"].append(f"-d 10.9.9.9/32 -j {sep}")
    tables.tables["nat"]["OUTPUT"].append(f"-d 10.9.9.8/32 -g {sep}")
    rig = Rig(tables)
    rig.tell(service("web", "10.96.0.10"), endpoints("web", "10.244.1.1"))
    assert not rig.full()
    assert set(rig.rules()) - set(rig.fresh().rules()) == {("nat", sep)}
    assert tables.tables["nat"][sep], "they still get where they want"
    assert sep in caplog.text
    del tables.tables["nat"]["OUTPUT"][-2:]
    rig.full()
    assert rig.rules() == rig.fresh().rules()


def _everything() -> list[tuple[str, str, int]]:
    rig = Rig()
    rig.tell(*rich())
    rig.full()
    return [
        (table, chain, i)
        for table, chains in rig.tables.tables.items()
        for chain, held in chains.items()
        for i in range(-1, len(held))
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_rule_and_any_chain_that_is_lost_comes_back(variant: Variant) -> None:
    rig = Rig(FakeTables(variant))
    rig.tell(*rich())
    rig.full()
    whole, expected = copy.deepcopy(rig.tables.tables), rig.rules()
    for table, chain, i in _everything():
        if i >= 0:
            del rig.tables.tables[table][chain][i]
        else:
            rig.tables.tables[table][chain].clear()
        if rig.tables.tables == whole:
            continue
        assert not rig.intact(), (table, chain, i)
        assert not rig.full()
        assert rig.rules() == expected, (table, chain, i)
        assert rig.intact()
        rig.tables.tables = copy.deepcopy(whole)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_flushed_comes_back(rig: Rig, table: str) -> None:
    expected = rig.rules()
    rig.tables.tables[table] = FakeTables().tables[table]
    assert not rig.intact()
    rig.full()
    assert rig.rules() == expected


def test_a_difference_to_what_somebody_changed_is_stale(rig: Rig) -> None:
    rig.tables.tables["nat"][names.SERVICES].clear()
    rig.gone("Service", "web")
    with pytest.raises(StaleError):
        rig.partial()
    rig.full()
    assert rig.rules() == rig.fresh().rules()


def test_what_somebody_changed_is_noticed_though_others_change_meanwhile(rig: Rig) -> None:
    del rig.tables.tables["nat"][SEP1][0]
    rig.tell(service("new", "10.96.0.11"))
    rig.partial()
    assert not rig.intact()
    rig.full()
    assert rig.intact()
    rig.tell(service("new", "10.96.0.12"))
    rig.partial()
    assert rig.intact()


def test_what_somebody_changed_during_a_sync_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(FakeTables("legacy"))
    rig.tell(service("web", "10.96.0.10"), endpoints("web", "10.244.1.1"))
    rig.full()
    rig.tell(endpoints("web", "10.244.1.1", "10.244.1.2"))
    rig.partial()
    assert rig.intact()
    restore = rig.tables.restore

    def disturbed(table: str, lines: Iterable[str]) -> None:
        restore(table, lines)
        rig.tables.tables["nat"]["PREROUTING"].clear()

    with monkeypatch.context() as patch:
        patch.setattr(rig.tables, "restore", disturbed)
        rig.tell(endpoints("web", "10.244.1.1"))
        rig.partial()
    assert not rig.intact()
    rig.full()
    assert rig.intact()
    assert rig.rules() == rig.fresh().rules()


def test_what_cannot_be_looked_at_is_no_reason_to_repair(tables: FakeTables) -> None:
    tables.fingerprint = lambda: None  # type: ignore[method-assign]
    rig = Rig(tables)
    rig.full()
    assert rig.intact()


def test_large_clusters(rig: Rig) -> None:
    def sized(count: int) -> types.EndpointSlice:
        return endpoints("web", *(f"10.1.{i // 250}.{i % 250 + 1}" for i in range(count)))

    def commented() -> bool:
        return any("->" in rule for chain in rig.tables.tables["nat"].values() for rule in chain)

    others = sum(plan.ports[0].known_endpoints for key, plan in rig.plans().items() if key[1] != "web")
    others += sum(p.known_endpoints for plan in rig.plans().values() for p in plan.ports[1:])
    threshold = drivers.LARGE_CLUSTER_ENDPOINTS - others
    rig.tell(sized(threshold))
    rig.partial()
    assert commented()
    rig.tell(sized(threshold + 1))
    with pytest.raises(StaleError):
        rig.partial()
    assert rig.sent()[0][0] == "nat"
    assert not rig.full()
    assert not commented()
    assert rig.rules() == rig.fresh().rules()
    rig.sent()
    rig.tell(sized(threshold + 2))
    rig.partial()
    assert len(rig.sent()) == 1
    rig.tell(sized(threshold))
    with pytest.raises(StaleError):
        rig.partial()
    rig.full()
    assert commented()
    assert rig.rules() == rig.fresh().rules()


@pytest.mark.parametrize("find", [lambda line: line.startswith("-A KUBE-POSTROUTING"), lambda _: True])
def test_when_the_frame_is_refused_the_sync_fails(tables: FakeTables, find: Callable[[str], bool]) -> None:
    rig = Rig(tables)
    rig.tell(*rich())
    tables.refuse = lambda line: "no" if find(line) else None
    with pytest.raises(SyncError, match="no"):
        rig.full()
    tables.refuse = lambda _: None
    rig.full()
    assert rig.rules() == rig.fresh().rules()


def test_new_services_stand_before_the_jump_to_node_ports(rig: Rig) -> None:
    rig.tell(*(service(f"s{i}", f"10.97.0.{i}") for i in range(5)))
    rig.tell(*(endpoints(f"s{i}", "10.244.1.1") for i in range(5)))
    rig.partial()
    held = rig.tables.tables["nat"][names.SERVICES]
    assert [rule.endswith(f"-j {names.NODE_PORTS}") for rule in held] == [False] * (len(held) - 1) + [True]


def test_shared_chains_are_all_made(tables: FakeTables) -> None:
    Rig(tables).full()
    assert all(chain in tables.tables[table] for table, chain in SHARED)
