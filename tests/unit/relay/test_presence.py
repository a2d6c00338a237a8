"""Connections to targets that were removed end, and no other ones, whatever is removed in which order."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends.base import Change
from kubeproxy.backends.shared import presence as told
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.relay import presence
from kubeproxy.relay.loop import PollLoop
from kubeproxy.relay.presence import PresenceTable, RemovedTargets
from kubeproxy.relay.tallies import Tallies
from kubeproxy.relay.values import Message, Presence, Target
from tests.fakes.carried import FakeConnection
from tests.fakes.relay import FakeRelay

TARGETS: list[Target] = [(f"10.244.1.{i}", 80) for i in range(4)]
GROUPS = ["default/web/TCP", "default/plain/TCP"]


class Ends:
    """The process' side, with some connections of two groups to each target, and a clock that is called."""

    def __init__(self) -> None:
        self.tallies = Tallies()
        self.loop = PollLoop()
        self.due: list[Callable[[], None]] = []
        self.loop.after = lambda _, call: self.due.append(call)  # type: ignore[method-assign, assignment, return-value]
        self.removed = RemovedTargets(self.loop, self.tallies)
        self.connections = {
            (group, target): [FakeConnection(), FakeConnection()] for group in GROUPS for target in TARGETS
        }
        for (group, target), both in self.connections.items():
            counts = self.tallies.of(group, target)
            for each in both:
                counts.attempt(each)

    def present(self, group: str, *targets: Target) -> None:
        self.removed.change(Presence(group, targets))

    def pass_time(self) -> None:
        while self.due:
            self.due.pop(0)()

    def over(self) -> set[tuple[str, Target]]:
        """The groups and targets whose connections have ended."""
        found = {at for at, both in self.connections.items() if any(each.lost for each in both)}
        assert all(each.lost for at in found for each in self.connections[at])
        return found


def test_only_connections_to_removed_targets_of_the_group_end() -> None:
    ends = Ends()
    ends.present(GROUPS[0], *TARGETS)
    ends.present(GROUPS[0], *TARGETS[1:])
    assert not ends.over(), "it may come back"
    ends.pass_time()
    assert ends.over() == {(GROUPS[0], TARGETS[0])}
    assert ends.removed.ended == 2
    ends.present(GROUPS[0])
    ends.pass_time()
    assert ends.over() == {(GROUPS[0], target) for target in TARGETS}


def test_who_comes_back_in_time_keeps_its_connections() -> None:
    ends = Ends()
    ends.present(GROUPS[0], *TARGETS)
    ends.present(GROUPS[0], *TARGETS[1:])
    ends.present(GROUPS[0], *TARGETS)
    ends.pass_time()
    assert not ends.over()


@pytest.mark.parametrize("before", [True, False])
def test_a_group_that_comes_or_goes_keeps_its_connections(before: bool) -> None:
    """The annotation is set or removed, or the Service is deleted."""
    ends = Ends()
    if before:
        ends.present(GROUPS[0], *TARGETS)
        ends.present(GROUPS[0], *TARGETS[1:])
        ends.removed.change(Presence(GROUPS[0], None))
    else:
        ends.present(GROUPS[0], *TARGETS[2:])
    ends.pass_time()
    assert not ends.over()


SETS = st.none() | st.sets(st.sampled_from(TARGETS))


@given(st.lists(st.tuples(st.sampled_from(GROUPS), SETS, st.booleans()), max_size=12))
def test_what_ends_was_there_and_is_gone(steps: list[tuple[str, set[Target] | None, bool]]) -> None:
    ends = Ends()
    there: dict[str, set[Target] | None] = {}
    was: dict[str, set[Target]] = {group: set() for group in GROUPS}
    expected: set[tuple[str, Target]] = set()
    for group, targets, passes in steps:
        if targets is None:
            was[group].clear()
        elif there.get(group) is not None:
            was[group] |= there[group] or set()
        there[group] = targets
        ends.removed.change(Presence(group, None if targets is None else tuple(targets)))
        if passes:
            ends.pass_time()
            for name, now in there.items():
                expected |= {(name, target) for target in was[name] - (now or set()) if now is not None}
                was[name].clear()
    assert ends.over() == expected


class Process:
    """What has arrived at a process that reads when it wants to."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[Target, ...] | None] = {}
        self.room = 0

    def take(self, message: Message, _: object) -> bool:
        if not self.room:
            return False
        self.room -= 1
        assert isinstance(message, Presence)
        self.groups[message.group] = message.targets
        return True


@given(
    st.lists(
        st.tuples(st.sampled_from(["change", "replace", "read", "restart"]), st.sampled_from(GROUPS), SETS),
        max_size=30,
    )
)
def test_the_process_gets_the_last_state(steps: list[tuple[str, str, set[Target] | None]]) -> None:
    table, process = PresenceTable(), Process()
    wanted: dict[str, tuple[Target, ...]] = {}
    for what, group, targets in steps:
        if what == "change":
            table.change({group: None if targets is None else tuple(targets)})
            if targets is None:
                wanted.pop(group, None)
            else:
                wanted[group] = tuple(targets)
        elif what == "replace":
            kept = [each for each in GROUPS if each != group] if targets else []
            wanted = {each: wanted[each] for each in kept if each in wanted} | {group: tuple(targets or ())}
            table.replace({group: tuple(targets or ())}, kept)
        elif what == "restart":
            process = Process()
            table.restart()
        else:
            process.room = 1
            table.send(process.take)
    process.room = 100
    assert table.send(process.take)
    assert {group: targets for group, targets in process.groups.items() if targets is not None} == wanted


class Listening(FakeRelay):
    """Keeps what it is told of groups."""

    @property
    def groups(self) -> dict[str, presence.Targets]:
        return self._presence._groups


def plan(name: str, *addresses: str, ends: bool = True) -> ServicePlan:
    present = tuple(Endpoint(address, 80) for address in addresses) if ends else None
    return ServicePlan(
        "default", name, (PortPlan(f"default/{name}", "TCP", 80, "10.96.0.1", present=present),)
    )


def test_drivers_say_which_endpoints_there_are_of_services_that_ask_for_it() -> None:
    relay = Listening()
    web, plain = plan("web", "10.1.0.1", "10.1.0.2"), plan("plain", "10.1.0.1", ends=False)
    told.synced(relay, {web.key: web, plain.key: plain}, ())
    assert relay.groups == {"default/web/TCP": (("10.1.0.1", 80), ("10.1.0.2", 80))}
    less = plan("web", "10.1.0.2")
    told.changed(relay, [Change(web.key, web, less), Change(plain.key, plain, None)])
    assert relay.groups == {"default/web/TCP": (("10.1.0.2", 80),)}
    told.synced(relay, {web.key: plan("web")}, [web.key])
    assert relay.groups == {"default/web/TCP": (("10.1.0.2", 80),)}, "it was refused"
    told.changed(relay, [Change(web.key, less, plan("web", ends=False))])
    assert relay.groups == {}
    told.changed(relay, [Change(web.key, None, web)])
    told.synced(relay, {}, ())
    assert relay.groups == {}
