"""Services that are refused: found among all others, left as they were, told; everybody else gets what is due."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import types
from kubeproxy.backends.base import StaleError, SyncError
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import batches, names
from kubeproxy.backends.programs import InputRefusedError, Variant
from kubeproxy.log import V2
from kubeproxy.model.plan import Key
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.iptables.rig import VARIANTS, Rig, Rules, rich, suffix

Told = Literal["line", "no line", "the last line"]
TOLD: Sequence[Told] = ("line", "no line", "the last line")


class Refusing(FakeTables):
    """Tables that refuse whatever speaks of some Services.

    Attributes:
        bad: their names.
        where: the table in which they are refused, "" for every one.
        told: how the line at fault is told: the legacy programs only find out at COMMIT.
        taken: only lines that add something are refused.
    """

    def __init__(self, variant: Variant = "legacy", told: Told = "line") -> None:
        super().__init__(variant)
        self.bad: set[str] = set()
        self.where = ""
        self.told = told
        self.refuse = self._refuse

    def _refuse(self, line: str) -> str | None:
        if line.startswith(("-D", "-X", ":")):
            return None
        return (
            "bad" if any(f'"default/{name}{end}' in line for name in self.bad for end in (" ", '"')) else None
        )

    def restore(self, table: str, lines: Iterable[str]) -> None:
        given = list(lines)
        self.refuse = self._refuse if table == (self.where or table) else lambda _: None
        try:
            super().restore(table, given)
        except InputRefusedError as e:
            if self.told == "line":
                raise
            count = sum(line.count("\n") for line in given)
            raise InputRefusedError(str(e), count + 1 if self.told == "the last line" else 0) from e


def name(i: int) -> str:
    return f"s{i}"


def key(i: int) -> Key:
    return "default", name(i)


def tell(rig: Rig, i: int, ip: str, *addresses: str) -> None:
    rig.tell(service(name(i), ip), endpoints(name(i), *addresses))


def of(rules: Rules, i: int, *addresses: str) -> Rules:
    """A Service's own chains and fronts."""
    owner = f"default/{name(i)}"
    chains = {f"KUBE-SVC-{suffix(owner)}", *(f"KUBE-SEP-{suffix(owner, f'{a}:8080')}" for a in addresses)}
    found: Rules = {}
    for (table, chain), held in rules.items():
        mine = held if chain in chains else [rule for rule in held if f'"{owner} ' in rule]
        if mine or chain in chains:
            found[table, chain] = mine
    return found


some = st.sets(st.integers(0, 11), max_size=5)


@given(some, some, st.sampled_from(TOLD), st.sampled_from(VARIANTS), st.sampled_from(["", "nat", "filter"]))
def test_all_others_are_in_place(
    bad: set[int], idle: set[int], told: Told, variant: Variant, where: str
) -> None:
    """Services without endpoints stand in table filter, the others in nat."""
    rig = Rig(Refusing(variant, told))
    assert isinstance(rig.tables, Refusing)
    for i in range(12):
        tell(rig, i, f"10.96.0.{i + 1}", *(() if i in idle else ("10.244.1.1", "10.244.1.2")))
    rig.tables.bad, rig.tables.where = {name(i) for i in bad}, where
    refused = {i for i in bad if where in {"", "filter" if i in idle else "nat"}}
    failures = _until_it_happens(rig)
    assert set(failures) == {key(i) for i in refused}
    assert all("bad" in words for words in failures.values())
    expected = Rig(FakeTables(variant))
    for i in set(range(12)) - refused:
        tell(expected, i, f"10.96.0.{i + 1}", *(() if i in idle else ("10.244.1.1", "10.244.1.2")))
    expected.full()
    assert rig.rules() == expected.rules()
    rig.tables.bad = set()
    assert not rig.full()
    assert rig.rules() == rig.fresh().rules()


def _until_it_happens(rig: Rig) -> dict[Key, str]:
    """A first sync over legacy tables sends everything at once, and may have to be done again to find who is at fault."""
    try:
        return dict(rig.full())
    except SyncError:
        return dict(rig.full())


@given(some, some, some, st.sampled_from(TOLD), st.sampled_from(VARIANTS))
def test_who_is_refused_keeps_what_it_had(
    bad: set[int], moved: set[int], gone: set[int], told: Told, variant: Variant
) -> None:
    """Some move to other endpoints, some of all are refused, and some go."""
    rig = Rig(Refusing(variant, told))
    assert isinstance(rig.tables, Refusing)
    for i in range(12):
        tell(rig, i, f"10.96.0.{i + 1}", "10.244.1.1", "10.244.1.2")
    assert not rig.full()
    before = rig.rules()
    for i in moved:
        tell(rig, i, f"10.97.0.{i + 1}", "10.244.1.2", "10.244.1.3")
    for i in gone:
        rig.gone("Service", name(i))
    rig.tables.bad = {name(i) for i in bad}
    refused = bad & moved - gone
    if refused:
        with pytest.raises(StaleError):
            rig.partial()
        assert set(rig.full()) == {key(i) for i in refused}
    else:
        rig.partial()
    after = rig.rules()
    expected = rig.fresh().rules()
    for i in range(12):
        addresses = ["10.244.1.1", "10.244.1.2", "10.244.1.3"]
        assert of(after, i, *addresses) == of(before if i in refused else expected, i, *addresses), i
    rig.tables.bad = set()
    assert not rig.full()
    assert rig.rules() == expected


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("idle", [False, True])
def test_who_is_refused_gives_way_to_the_owner_of_a_front(variant: Variant, *, idle: bool) -> None:
    """What it had stays, but not at the fronts that belong to another Service now."""
    rig = Rig(Refusing(variant))
    assert isinstance(rig.tables, Refusing)
    some: dict[str, Any] = {"external_ips": ("203.0.113.1", "203.0.113.2"), "type": "NodePort"}
    port = types.ServicePort(80, node_port=30080)
    rig.tell(service("b", "10.96.0.2", ports=[port], **some))
    rig.tell(endpoints("b", *([] if idle else ["10.244.1.1"])))
    assert not rig.full()
    before = [rule for held in rig.rules().values() for rule in held if '"default/b' in rule]
    lost = [rule for rule in before if "-d 203.0.113.1/32" in rule or "--dport 30080" in rule]
    assert len(lost) == (2 if idle else 3)
    rig.tell(service("a", "10.96.0.1", ports=[port], external_ips=("203.0.113.1",), type="NodePort"))
    rig.tell(endpoints("a", "10.244.1.2"))
    rig.tables.bad = {"b"}
    rig.tell(service("b", "10.96.0.22", ports=[port], **some))
    with pytest.raises(StaleError):
        rig.partial()
    assert rig.full().keys() == {("default", "b")}
    after = [rule for held in rig.rules().values() for rule in held if '"default/b' in rule]
    assert after == [rule for rule in before if rule not in lost]
    rig.tables.bad = set()
    assert not rig.full()
    assert rig.rules() == rig.fresh().rules()


@pytest.mark.parametrize("names_it", ["a", "b"])
def test_a_front_that_changes_hands_is_never_without_a_rule(
    monkeypatch: pytest.MonkeyPatch, names_it: str
) -> None:
    """Also where the change is too large for one input of the programs, and whichever Service comes first in it."""
    monkeypatch.setattr(batches, "NF_TABLES_LINES", 1)
    owner, loser = ("a", "b") if names_it == "a" else ("c", "b")
    rig = Rig(FakeTables("nf_tables"))
    for name_, ip in ((owner, "10.96.0.1"), (loser, "10.96.0.2")):
        rig.tell(service(name_, ip), endpoints(name_, "10.244.1.1"))
    rig.tell(service(loser, "10.96.0.2", external_ips=("10.96.0.3",)))
    assert not rig.full()
    for there in (True, False):
        rig.sent()
        if there:
            rig.tell(service(owner, "10.96.0.3"))
        else:
            rig.gone("Service", owner)
        rig.partial()
        lines = [line for table, lines in rig.sent() if table == "nat" for line in lines]
        moved = [line[:2] for line in lines if "-d 10.96.0.3/32" in line and line.startswith(("-I", "-D"))]
        assert moved == ["-I", "-D"]


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_refused_service_that_loses_its_endpoints(variant: Variant, told: Told) -> None:
    """What must refuse packets is refused, so the way in stays."""
    rig = Rig(Refusing(variant, told))
    assert isinstance(rig.tables, Refusing)
    for i in range(3):
        tell(rig, i, f"10.96.0.{i + 1}", "10.244.1.1")
    rig.full()
    before = rig.rules()
    rig.tables.bad, rig.tables.where = {"s1"}, "filter"
    for i in range(3):
        rig.tell(endpoints(name(i)))
    assert set(rig.sync()) == {key(1)}
    assert of(rig.rules(), 1, "10.244.1.1") == of(before, 1, "10.244.1.1")
    assert ("nat", f"KUBE-SVC-{suffix('default/s0')}") not in rig.rules()


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_service_that_is_refused_in_one_table_is_not_half_there(variant: Variant, told: Told) -> None:
    """Its external packets are to be dropped, which is refused; so its ClusterIP is not served either."""
    rig = Rig(Refusing(variant, told))
    assert isinstance(rig.tables, Refusing)
    tell(rig, 0, "10.96.0.1", "10.244.1.1")
    rig.full()
    before = rig.rules()
    rig.tables.bad, rig.tables.where = {"s1"}, "filter"
    rig.tell(
        service(
            "s1",
            "10.96.0.2",
            type="NodePort",
            ports=[types.ServicePort(80, node_port=30080)],
            external_traffic_policy="Local",
        ),
        endpoints("s1", "10.244.2.1"),
    )
    assert set(rig.sync()) == {key(1)}
    assert rig.rules() == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_that_begin_alike_are_told_apart(variant: Variant) -> None:
    """The leftovers of web-2 go although web, which is refused, may have some."""
    rig = Rig(Refusing(variant))
    assert isinstance(rig.tables, Refusing)
    rig.tell(service("web", "10.96.0.1"), service("web-2", "10.96.0.2"))
    rig.full()
    rig.tell(service("web", "10.96.0.9"))
    rig.gone("Service", "web-2")
    rig.tables.bad = {"web"}
    assert set(rig.full()) == {("default", "web")}
    fronts = rig.rules()["filter", names.SERVICES]
    assert [rule.split(" ")[1] for rule in fronts] == ["10.96.0.1/32"]


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("variant", VARIANTS)
def test_when_everything_is_refused_the_sync_fails(variant: Variant, told: Told) -> None:
    rig = Rig(Refusing(variant, told))
    assert isinstance(rig.tables, Refusing)
    rig.tables.bad = {name(i) for i in range(200)}
    for i in range(200):
        tell(rig, i, f"10.96.0.{i + 1}", "10.244.1.1")
    with pytest.raises(SyncError, match="every Service is refused"):
        rig.full()
    assert len(rig.sent()) < 200, "it gives up early"
    rig.tables.bad = set()
    assert not rig.full()
    assert rig.rules() == rig.fresh().rules()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_few_that_are_all_refused_are_told_one_by_one(variant: Variant) -> None:
    rig = Rig(Refusing(variant))
    assert isinstance(rig.tables, Refusing)
    rig.tables.bad = {name(i) for i in range(3)}
    for i in range(3):
        tell(rig, i, f"10.96.0.{i + 1}", "10.244.1.1")
    assert set(rig.full()) == {key(i) for i in range(3)}


@pytest.mark.parametrize("told", TOLD)
def test_many_refused_in_one_place_do_not_count_in_another(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs are sent in pieces and stages: what was refused before says nothing of the next."""
    monkeypatch.setattr(batches, "NF_TABLES_LINES", 50)
    monkeypatch.setattr(batches, "NF_TABLES_FIRST_LINES", 50)
    rig = Rig(Refusing("nf_tables", told))
    assert isinstance(rig.tables, Refusing)
    bad = set(range(0, 60, 3))
    rig.tables.bad = {name(i) for i in bad}
    for i in range(60):
        tell(rig, i, f"10.96.0.{i + 1}", "10.244.1.1")
    assert set(rig.full()) == {key(i) for i in bad}


@pytest.mark.parametrize("variant", VARIANTS)
def test_few_inputs_find_who_is_at_fault(variant: Variant) -> None:
    rig = Rig(Refusing(variant))
    assert isinstance(rig.tables, Refusing)
    for i in range(250):
        tell(rig, i, f"10.96.0.{i + 1}", "10.244.1.1")
    rig.full()
    rig.sent()
    rig.tables.bad = {"s100"}
    for i in range(250):
        tell(rig, i, f"10.96.0.{i + 1}", "10.244.1.2")
    assert set(rig.full()) == {key(100)}
    assert len(rig.sent()) < 10


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_race_with_others_is_no_refusal(times: int, caplog: pytest.LogCaptureFixture) -> None:
    """Another program changes the tables between our look and our input, and something is refused: it is tried again."""
    caplog.set_level(V2, "kubeproxy")
    rig = Rig(FakeTables("nf_tables"))
    rig.tell(*rich())
    left = times

    def gone(_: str) -> str | None:
        nonlocal left
        if not left:
            return None
        left -= 1
        rig.tables.others += 1
        return "No chain/target/match by that name"

    rig.tables.refuse = gone
    if times == 3:
        with pytest.raises(SyncError, match="No chain/target/match"):
            rig.full()
    else:
        assert not rig.full()
        assert rig.rules() == rig.fresh().rules()
    said = [
        r.levelno for r in caplog.records if "trying again now, another program changed" in r.getMessage()
    ]
    assert said == [V2] * min(times, 2)


def test_a_refusal_while_nobody_else_does_anything_is_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(V2, "kubeproxy")
    rig = Rig(FakeTables("nf_tables"))
    rig.tables.refuse = lambda _: "Bad rule"
    with pytest.raises(SyncError, match="Bad rule"):
        rig.full()
    assert "trying again" not in caplog.text
