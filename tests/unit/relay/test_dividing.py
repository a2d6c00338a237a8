"""How clients are divided among targets: by weights, by hash, by connections, near targets first."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends import relayed
from kubeproxy.model import maglev
from kubeproxy.model.distribution import Distribution, chosen, shares
from kubeproxy.model.jenkins import jhash, scaled
from kubeproxy.model.select import Endpoint
from kubeproxy.relay.dividing import Chooser, chooser, interleaved
from kubeproxy.relay.tallies import Tallies, TargetCounts
from kubeproxy.relay.values import Division, Target
from tests.fakes.carried import FakeConnection

GROUP = "default/web/TCP"
NOBODY = FakeConnection()
CLIENT, PORT = "192.0.2.7", 40_000


def endpoints(count: int, ipv6: bool = False) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(f"fd00::{i:x}" if ipv6 else f"10.244.1.{i}", 8080) for i in range(1, count + 1))


class Users:
    """Clients that connect, stay and go, and who divides them."""

    def __init__(self, count: int, distribution: Distribution | None) -> None:
        self.tallies = Tallies()
        self.targets = relayed.targets(endpoints(count))
        made = chooser(self.targets, relayed.division(endpoints(count), distribution), self.tallies, GROUP)
        assert made is not None
        self.chooser: Chooser = made
        self.open: list[TargetCounts] = []

    def connect(self) -> Target:
        """A client comes and stays."""
        found = self.chooser.choose(CLIENT, PORT)
        assert sorted(found) == sorted(self.targets), "all can be tried, each once"
        counts = self.tallies.of(GROUP, found[0])
        counts.attempt(NOBODY)
        counts.reached(NOBODY)
        self.open.append(counts)
        return found[0]

    def leave(self, target: Target) -> None:
        counts = next(each for each in self.open if each.target == target)
        self.open.remove(counts)
        counts.ended()

    def loads(self) -> list[int]:
        """The connections of each target, in their order."""
        count = Counter(each.target for each in self.open)
        return [count[target] for target in self.targets]


WEIGHTS = st.lists(st.integers(1, 1000), min_size=2, max_size=12).map(tuple)


@pytest.mark.parametrize("weights", [(1, 99), (3, 1), (1000, 999, 1), (7, 5, 3, 2, 2), ()])
def test_shares_are_right_over_100_000_connections(weights: tuple[int, ...]) -> None:
    distribution = Distribution(weights=weights) if weights else None
    count = len(weights) or 3
    users = Users(count, distribution)
    found = Counter(users.chooser.choose(CLIENT, PORT)[0] for _ in range(100_000))
    wanted = shares(endpoints(count), distribution)
    for target, share in zip(users.targets, wanted, strict=True):
        assert found[target] / 100_000 == pytest.approx(share, abs=0.01 * share + 2e-5)


@given(WEIGHTS)
def test_a_cycle_has_each_as_often_as_its_weight_and_no_bursts(weights: tuple[int, ...]) -> None:
    order = interleaved(weights)
    assert Counter(order) == dict(enumerate(weights))
    seen: Counter[int] = Counter()
    for i, number in enumerate(order, 1):
        seen[number] += 1
        assert abs(seen[number] - i * weights[number] / sum(weights)) <= len(weights)


@pytest.mark.parametrize("ipv6", [False, True])
def test_the_slot_of_a_client_is_that_of_the_model(ipv6: bool) -> None:
    """So explain says what the relay does, and every node does the same."""
    there = endpoints(7, ipv6)
    distribution = Distribution(method="maglev", weights=(2, 1, 1, 1, 1, 1, 1), table_size=1021)
    made = chooser(relayed.targets(there), relayed.division(there, distribution), Tallies(), GROUP)
    assert made is not None
    for i in range(300):
        client = f"2001:db8::{i:x}" if ipv6 else f"198.51.{i >> 8}.{i & 255}"
        wanted = chosen(there, distribution, client)
        assert wanted is not None
        assert {made.choose(client, port)[0] for port in (1024, 50_000)} == {(wanted.address, wanted.port)}
        assert sorted(made.choose(client, PORT)) == sorted(relayed.targets(there))


def test_a_hash_with_the_port_divides_the_connections_of_one_client() -> None:
    there = endpoints(4)
    distribution = Distribution(method="maglev", by_port=True, table_size=251)
    made = chooser(relayed.targets(there), relayed.division(there, distribution), Tallies(), GROUP)
    assert made is not None
    table = maglev.table(there, (), 251)
    found: Counter[Target] = Counter()
    for port in range(1024, 3024):
        slot = scaled(jhash(bytes([192, 0, 2, 7]) + port.to_bytes(2) + bytes(2)), 251)
        (first, *_) = made.choose(CLIENT, port)
        assert first == relayed.targets(there)[table[slot]]
        found[first] += 1
    assert len(found) == 4
    assert max(found.values()) < 2 * min(found.values())


@given(st.lists(st.integers(0, 5), max_size=80), st.integers(2, 6))
def test_with_least_connections_loads_are_as_equal_as_the_ends_allow(ends: list[int], count: int) -> None:
    users = Users(count, Distribution(method="least-connections"))
    for end in ends:
        before = users.loads()
        target = users.connect()
        assert before[users.targets.index(target)] == min(before)
        if end < count and users.loads()[end]:
            users.leave(users.targets[end])


def test_with_least_connections_of_equal_ones_each_is_used() -> None:
    """Short connections: none is open when the next client comes."""
    users = Users(5, Distribution(method="least-connections"))
    found: Counter[Target] = Counter()
    for _ in range(1000):
        target = users.connect()
        users.leave(target)
        found[target] += 1
    assert found == dict.fromkeys(users.targets, 200)


def test_with_least_connections_loads_are_in_proportion_to_weights() -> None:
    users = Users(3, Distribution(method="least-connections", weights=(5, 3, 2)))
    for _ in range(1000):
        users.connect()
    assert users.loads() == [500, 300, 200]


@pytest.mark.parametrize("method", ["random", "least-connections"])
@pytest.mark.parametrize("weights", [(), (3, 1, 1, 2)])
def test_near_targets_get_all_connections_until_they_have_enough(
    method: str, weights: tuple[int, ...]
) -> None:
    there = endpoints(4)
    near = there[:2]
    users = Users(4, Distribution(method=method, weights=weights, preferred=near, bound=10))  # type: ignore[arg-type]
    for _ in range(20):
        assert users.connect() in relayed.targets(near)
    assert users.loads() == [10, 10, 0, 0], "each up to the limit, whatever its weight"
    far = [users.connect() for _ in range(30)]
    assert set(far) == set(users.targets[2:])
    if not weights:
        assert users.loads() == [10, 10, 15, 15]
    users.leave(users.targets[1])
    assert users.connect() == users.targets[1], "one that has less again is used first"
    assert users.connect() in users.targets[2:]


def test_attempts_count_so_that_a_silent_target_does_not_get_all() -> None:
    users = Users(2, Distribution(method="least-connections"))
    for _ in range(10):
        users.tallies.of(GROUP, users.chooser.choose(CLIENT, PORT)[0]).attempt(NOBODY)
    assert [users.tallies.of(GROUP, target).waiting for target in users.targets] == [5, 5]


def test_counts_are_kept_while_they_are_read_and_forgotten_after() -> None:
    users = Users(3, Distribution(method="least-connections"))
    users.connect()
    assert len(users.tallies.take(100)) == 1
    assert len(users.tallies) == 3
    users.leave(users.open[0].target)
    users.tallies.take(100)
    assert len(users.tallies) == 3
    users.chooser.close()
    assert len(users.tallies) == 0


@given(
    st.integers(1, 8),
    st.sampled_from(["random", "least-connections", "maglev"]),
    st.integers(0, 3),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_whatever_is_asked_for_each_target_can_be_tried(
    count: int, method: str, near: int, weighted: bool, chance: random.Random
) -> None:
    there = endpoints(count)
    preferred = there[: near % count] if method != "maglev" else ()
    distribution = Distribution(
        method=method,  # type: ignore[arg-type]
        weights=tuple(chance.randint(1, 9) for _ in there) if weighted else (),
        table_size=251 if method == "maglev" else 0,
        preferred=preferred,
        bound=2 if preferred else 0,
    )
    users = Users(count, distribution)
    for _ in clients(30, chance):
        users.connect()


def clients(count: int, chance: random.Random) -> Iterator[str]:
    return (f"198.51.100.{chance.randint(1, 254)}" for _ in range(count))


def test_a_division_names_targets_by_number() -> None:
    there = endpoints(3)
    distribution = Distribution(method="least-connections", weights=(1, 2, 3), preferred=there[1:2], bound=7)
    assert relayed.division(there, distribution) == Division((1, 2, 3), least=True, preferred=(1,), bound=7)
    assert relayed.division(there, None) is None


def test_a_line_says_how_clients_are_divided() -> None:
    there = endpoints(2)
    for distribution, expected in (
        (None, "10.244.1.1:8080,10.244.1.2:8080"),
        (Distribution(weights=(3, 1)), "10.244.1.1:8080=3,10.244.1.2:8080=1"),
        (
            Distribution(method="maglev", table_size=251, by_port=True),
            "10.244.1.1:8080,10.244.1.2:8080 by hash of the source address and port, 251 slots",
        ),
        (
            Distribution(method="least-connections", preferred=there[1:], bound=4),
            "10.244.1.1:8080,10.244.1.2:8080 by fewest connections, 10.244.1.2:8080 up to 4 connections first",
        ),
    ):
        assert relayed.described(relayed.choice(there, distribution)) == expected
