"""What drivers say of the kernel without changing it: read, difference, describe, on kernels in memory."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.backends.base import HeldState, LoadSteps, Readable
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.ipvs import mode as ipvs_mode
from kubeproxy.backends.ipvs.steps import ServerSteps
from kubeproxy.backends.nftables.steps import TableSteps
from kubeproxy.backends.shared.held_rules import RuleSteps
from kubeproxy.netlink.nft import messages
from tests import strategies
from tests.fakes.cluster import Proxy, endpoints, service
from tests.unit.backends.iptables.rig import Rig as IPTablesRig
from tests.unit.backends.iptables.rig import rich
from tests.unit.backends.ipvs.rig import Rig as IPVSRig
from tests.unit.backends.nftables.rig import Rig as NFTablesRig
from tests.unit.backends.userspace_rig import UserspaceRig

RIGS: dict[str, Callable[[], Any]] = {
    "nftables": NFTablesRig,
    "iptables-legacy": lambda: IPTablesRig(FakeTables("legacy")),
    "iptables-nf_tables": lambda: IPTablesRig(FakeTables("nf_tables")),
    "ipvs": IPVSRig,
}
RELAYS: dict[str, Callable[[], Any]] = {
    "userspace": lambda: UserspaceRig(rules=True),
    "userspace-listen": lambda: UserspaceRig(rules=False),
}
ALL = {**RIGS, **RELAYS}


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    """Threads run at once."""

    async def at_once(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return work(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", at_once)
        yield


@pytest.fixture(params=ALL)
def rig(request: pytest.FixtureRequest) -> Any:
    return ALL[request.param]()


def read(rig: Proxy) -> HeldState:
    assert isinstance(rig.backend, Readable)
    return asyncio.run(rig.backend.read())


def difference(rig: Proxy) -> LoadSteps:
    """What a full sync would do now."""
    assert isinstance(rig.backend, Readable)
    return rig.backend.difference(read(rig), rig.node, rig.plans())


def send(rig: Any, steps: LoadSteps) -> None:
    match steps:
        case TableSteps():
            steps.send(rig.kernel)
        case RuleSteps():
            steps.send(rig.tables)
        case ServerSteps():
            steps.send(rig.kernel, rig.tables)


def everything(rig: Any) -> object:
    """What the kernel holds, whatever order it came in."""
    return (
        rig.table() if hasattr(rig, "table") else rig.rules() if hasattr(rig, "rules") else rig.everything()
    )


def test_what_is_read_is_a_value(rig: Any) -> None:
    rig.tell(*rich())
    rig.full()
    held = read(rig)
    assert held == read(rig)
    rig.tell(service("more", "10.96.0.200"), endpoints("more", "10.244.1.11"))
    rig.partial()
    assert held != read(rig)
    assert any("10.96.0.200" in line for line in read(rig).lines())
    # Where a relay listens, the host's own addresses are named as clients, too.
    assert not any("10.96.0.200" in line.partition(" from ")[0] for line in held.lines())


def test_reading_and_comparing_changes_nothing(rig: Any) -> None:
    rig.tell(*rich())
    rig.full()
    rig.tell(service("more", "10.96.0.200"), endpoints("more", "10.244.1.11"))
    before = everything(rig)
    assert difference(rig)
    assert everything(rig) == before
    rig.partial()
    assert not difference(rig)


def test_the_difference_names_what_is_missing(rig: Any) -> None:
    rig.tell(*rich())
    rig.full()
    rig.tell(service("more", "10.96.0.200"), endpoints("more", "10.244.1.99"))
    lines = difference(rig).lines()
    assert any("10.96.0.200" in line for line in lines)
    assert any("10.244.1.99" in line for line in lines)
    rig.partial()
    rig.gone("Service", "more")
    assert any("10.96.0.200" in line for line in difference(rig).lines())


@pytest.mark.parametrize("name", RIGS)
def test_the_steps_from_nothing_are_a_load(name: str) -> None:
    rig = RIGS[name]()
    rig.tell(*rich())
    send(rig, difference(rig))
    assert everything(rig) == everything(rig.fresh())


HISTORIES = st.one_of(strategies.histories(), strategies.contests())


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25)
@given(history=HISTORIES)
def test_after_a_load_nothing_differs(name: str, history: list[list[strategies.Event]]) -> None:
    rig = ALL[name]()
    assert not rig.full()
    for batch in history:
        for event in batch:
            rig.hear(event)
        steps = difference(rig)
        assert bool(steps) == bool(steps.lines())
        rig.sync()
        assert not difference(rig), difference(rig).lines()
    rig.full()
    assert not difference(rig), difference(rig).lines()


@pytest.mark.parametrize("name", RIGS)
@settings(max_examples=25)
@given(history=HISTORIES)
def test_the_steps_lead_where_a_load_does(name: str, history: list[list[strategies.Event]]) -> None:
    rig = RIGS[name]()
    assert not rig.full()
    for batch in history:
        for event in batch:
            rig.hear(event)
    send(rig, difference(rig))
    assert everything(rig) == everything(rig.fresh())


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25)
@given(history=HISTORIES)
def test_what_a_service_needs_is_among_what_is_held(name: str, history: list[list[strategies.Event]]) -> None:
    rig = ALL[name]()
    for batch in history:
        for event in batch:
            rig.hear(event)
    rig.full()
    held = set(commands(rig))
    for plan in rig.plans().values():
        for line in rig.backend.describe(rig.node, plan):
            assert line in held, line


def commands(rig: Any) -> list[str]:
    """What is held, as commands."""
    if isinstance(rig, UserspaceRig):
        return rig.commands()
    held = read(rig)
    if isinstance(rig, NFTablesRig):
        return TableSteps(commits=(held.made,)).lines()  # type: ignore[attr-defined]
    return held.lines()


def test_ipvs_settings_are_part_of_it() -> None:
    rig = IPVSRig()
    rig.tell(service("web", "10.96.0.1", session_affinity="ClientIP"), endpoints("web", "10.244.1.11"))
    rig.full()
    assert "-A -t 10.96.0.1:80 -s rr -p 10800" in read(rig).lines()
    assert rig.node.ipvs is not None
    other = replace(rig.node, ipvs=replace(rig.node.ipvs, scheduler="lc"))
    steps = rig.backend.difference(read(rig), other, rig.plans())  # type: ignore[attr-defined]
    assert steps.lines() == ["-E -t 10.96.0.1:80 -s lc -p 10800"]
    assert ipvs_mode.MODE.name == "ipvs"


def test_what_cannot_be_read_is_not_compared() -> None:
    from kubeproxy.backends.base import SyncError
    from kubeproxy.backends.shared.held_rules import HeldRules

    held = HeldRules("IPv4", "nf_tables", ("# Table `nat' is incompatible, use 'nft' tool.",))
    rig = IPTablesRig(FakeTables("nf_tables"))
    with pytest.raises(SyncError, match="Table `nat' is incompatible"):
        rig.backend.difference(held, rig.node, {})  # type: ignore[attr-defined]


def test_a_table_laid_out_differently_is_replaced() -> None:
    rig = NFTablesRig()
    table = messages.TableName(messages.IP, "kube-proxy")
    rig.kernel.commit([messages.add_table(table, "rules for kube-proxy"), messages.add_chain(table, "old")])
    lines = difference(rig).lines()
    assert lines[0] == "delete table ip kube-proxy"
    assert "add chain ip kube-proxy services" in lines
