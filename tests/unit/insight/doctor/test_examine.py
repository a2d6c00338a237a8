"""Each check finds its fault, and nothing on a node without faults; what cannot be read is never called good."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from kubeproxy.insight.doctor import rules
from kubeproxy.insight.doctor.check import NOTE
from kubeproxy.insight.doctor.examine import CHECKS, Examined, examine, failed
from kubeproxy.insight.doctor.facts import ConnectProgram, Facts, Part, UnreadError
from tests.unit.insight.doctor.faults import FAULTS
from tests.unit.insight.doctor.world import World

IDS = [each.id for each in CHECKS]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def bad(results: list[Examined]) -> dict[str, str]:
    """What is not as it should be, by id."""
    return {
        each.id: each.reason or "; ".join(f"{s.finding}: {s.evidence}" for s in each.found)
        for each in results
        if each.status not in {"ok", NOTE}
    }


def test_ids_are_unique_and_ordered() -> None:
    assert sorted(set(IDS)) == IDS
    assert len(IDS) >= 40
    assert FAULTS.keys() == set(IDS)


def test_nothing_is_found_on_a_node_without_faults(world: World) -> None:
    results = examine(world.facts())
    assert bad(results) == {}
    assert not failed(results)


@pytest.mark.parametrize("mode", ["iptables", "ipvs"])
def test_nothing_is_found_in_other_modes(world: World, mode: str) -> None:
    world.config["mode"] = mode
    world.comments.clear()
    world.machine.settings["net/ipv4/conf/all/route_localnet"] = "1"
    assert bad(examine(world.facts())) == {}


@pytest.mark.parametrize("number", IDS)
def test_each_check_finds_its_fault(world: World, number: str) -> None:
    FAULTS[number](world)
    (result,) = examine(world.facts(), {number})
    assert result.found, result.reason or result.status
    for symptom in result.found:
        assert symptom.finding
        assert symptom.evidence
        assert symptom.remedy
        assert symptom.severity
    assert result.page == f"docs/doctor.md#{number.lower()}"


@pytest.mark.parametrize("number", ["KP060", "KP061", "KP062", "KP064", "KP070", "KP080", "KP083", "KP087"])
def test_what_is_found_names_the_service(world: World, number: str) -> None:
    FAULTS[number](world)
    (result,) = examine(world.facts(), {number})
    assert {symptom.service for symptom in result.found} == {"shop/api"}


def test_only_the_service_that_is_asked_about(world: World) -> None:
    FAULTS["KP060"](world)
    world.more = [each for each in world.more if each["kind"] == "Service"]
    everything, one = (
        {s.service for e in examine(world.facts(**only), {"KP060"}) for s in e.found}
        for only in ({}, {"only": ("shop", "dns")})
    )
    assert everything == {"shop/api", "shop/dns"}
    assert one == {"shop/dns"}


def unread(facts: Facts) -> Facts:
    """The same node, of which nothing can be read."""
    names = [name for name in structs.fields(facts) if isinstance(getattr(facts, name.name), Part)]
    return structs.replace(
        facts, plans={}, **{name.name: Part[Any](reason="no permission") for name in names}
    )


def test_what_cannot_be_read_is_skipped_with_the_reason(world: World) -> None:
    results = examine(unread(world.facts()))
    assert {each.status for each in results} == {"skipped"}
    assert all("could not be looked at: " in each.reason for each in results)
    assert not failed(results)


@pytest.mark.parametrize(
    "name", ["tracking", "chains", "daemon", "snapshot", "probes", "legacy", "listeners", "links"]
)
def test_checks_that_lack_one_part_are_skipped_and_the_others_are_not(world: World, name: str) -> None:
    results = examine(structs.replace(world.facts(), **{name: Part[Any](reason="no permission")}))
    statuses = {each.status for each in results}
    assert statuses == {"ok", "skipped"} or statuses == {"ok", "skipped", NOTE}


def test_a_check_that_fails_does_not_hide_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubeproxy.insight.doctor import examine as module

    def broken(_: Facts) -> Any:
        raise ZeroDivisionError("oh")

    checks = (structs.replace(CHECKS[0], examine=broken), *CHECKS[1:])
    monkeypatch.setattr(module, "CHECKS", checks)
    results = examine(world.facts())
    assert results[0].status == "skipped"
    assert "the check itself failed: ZeroDivisionError: oh" in results[0].reason
    assert len(results) == len(CHECKS)


def test_a_part_that_was_not_read_says_why() -> None:
    with pytest.raises(UnreadError, match="no permission"):
        Part[int](reason="no permission")()
    assert Part(())() == ()


def test_a_refused_service_is_not_found_twice(world: World) -> None:
    FAULTS["KP010"](world)
    world.sample("kubeproxy_services", 1)
    assert bad(examine(world.facts())).keys() == {"KP010"}


@pytest.mark.parametrize(("part", "costly"), [("probes", "connections"), ("rules", "rules")])
def test_checks_say_what_they_need_of_what_takes_long(world: World, part: str, costly: str) -> None:
    facts = structs.replace(world.facts(), **{part: Part[Any](reason="it was not asked for")})
    skipped = {each.id for each in examine(facts) if each.status == "skipped"}
    assert skipped == {each.id for each in CHECKS if each.costly == costly}


def test_rules_that_lead_to_a_relay_are_compared_if_its_sockets_are_known(world: World) -> None:
    """The plans have the endpoints, and the kernel has the sockets of the relay."""
    world.config["mode"] = "userspace"
    found = asyncio.run(read_rules(world))
    assert "does not answer which sockets its relay has" in found


async def read_rules(world: World) -> str:
    facts = await asyncio.to_thread(world.facts)
    with pytest.raises(UnreadError) as raised:
        await rules.compare(world.machine, facts.snapshot(), facts.plans, None)
    return str(raised.value)


def test_connections_that_an_earlier_run_tried_are_no_finding(world: World) -> None:
    world.flow(300, "SYN_SENT", ("10.244.2.12", 8080), ("10.244.2.12", 8080))
    assert bad(examine(world.facts())) == {}


def test_answers_that_do_not_reach_clients(world: World) -> None:
    world.flow(5, "SYN_RECV", ("10.244.2.12", 8080), ("10.96.0.10", 80))
    (result,) = examine(world.facts(), {"KP083"})
    assert [symptom.finding for symptom in result.found] == [
        "shop/api: answers of endpoint 10.244.2.12:8080 do not reach clients"
    ]


@pytest.mark.parametrize(
    ("mode", "name", "severity"),
    [
        ("ebpf", "cil_sock4_connect", "error"),
        ("ebpf", "calico_connect_v4", "error"),
        ("nftables", "cil_sock6_sendmsg", "warning"),
        ("nftables", "kp_connect4", "error"),
        ("ebpf", "kp_connect4", None),
        ("iptables", "mine", NOTE),
        ("ebpf", "", NOTE),
    ],
)
def test_programs_where_sockets_connect(world: World, mode: str, name: str, severity: str | None) -> None:
    world.config["mode"] = mode
    world.changes["connectors"] = (ConnectProgram(7, name),)
    (result,) = examine(world.facts(), {"KP027"})
    assert [symptom.severity for symptom in result.found] == ([severity] if severity else [])


def test_a_bridge_is_suspected_if_most_connections_to_it_wait(world: World) -> None:
    FAULTS["KP032"](world)
    world.flow(2, "ESTABLISHED", ("10.244.1.11", 8080), ("10.96.0.10", 80))
    (result,) = examine(world.facts(), {"KP032"})
    assert result.status == NOTE


def test_connections_to_a_relay_are_not_those_to_endpoints(world: World) -> None:
    world.config["mode"] = "userspace"
    world.flow(5, "ESTABLISHED", ("192.0.2.1", 41507), ("10.96.0.10", 80))
    world.flow(5, "SYN_SENT", ("192.0.2.1", 41507), ("10.96.0.10", 80))
    world.flow(5, "UNREPLIED", ("192.0.2.1", 5353), ("10.96.0.53", 53), "UDP")
    results = examine(world.facts(), {"KP083", "KP084", "KP085", "KP086"})
    assert [each.status for each in results] == ["ok"] * 4
