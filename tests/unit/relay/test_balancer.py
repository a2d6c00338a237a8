"""Which target a client gets."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.relay import balancer
from kubeproxy.relay.balancer import Balancer, Clients
from kubeproxy.relay.tallies import Tallies
from kubeproxy.relay.values import Choice, Listener, Target

A, B, C = (("10.0.0.1", 80), ("10.0.0.2", 80), ("10.0.0.3", 80))
CLIENT, OTHER = "192.0.2.7", "192.0.2.8"
PORT = 40_000


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def balanced(*targets: Target, affinity: int = 0, clients: Clients | None = None) -> Balancer:
    listener = Listener("web", "web", choices=(Choice(targets),), affinity=affinity)
    return Balancer(listener, Clients() if clients is None else clients, Tallies())


@given(st.integers(1, 6), st.integers(1, 30))
def test_everybody_is_first_equally_often_and_everybody_is_in_the_list(count: int, rounds: int) -> None:
    targets = [(f"10.0.0.{i}", 80) for i in range(count)]
    chosen = balanced(*targets)
    lists = [chosen.candidates(CLIENT, PORT) for _ in range(count * rounds)]
    assert all(sorted(each) == targets for each in lists)
    assert Counter(each[0] for each in lists) == dict.fromkeys(targets, rounds)


def test_a_client_stays_with_its_target_and_others_have_theirs() -> None:
    chosen = balanced(A, B, C, affinity=60)
    kept, other = chosen.candidates(CLIENT, PORT)[0], chosen.candidates(OTHER, PORT)[0]
    assert kept != other
    for _ in range(5):
        assert chosen.candidates(CLIENT, PORT)[0] == kept
        assert chosen.candidates(OTHER, PORT)[0] == other


def test_affinity_ends_when_the_client_was_not_seen_for_so_long() -> None:
    time = Time()
    clients = Clients(time)
    chosen = balanced(A, B, affinity=60, clients=clients)
    kept = chosen.candidates(CLIENT, PORT)[0]
    for _ in range(3):
        time.now += 59
        assert chosen.candidates(CLIENT, PORT)[0] == kept  # each connection makes it young again
    time.now += 60
    assert clients.target(CLIENT, 60) is None


def test_a_target_that_failed_or_went_is_forgotten() -> None:
    clients = Clients()
    chosen = balanced(A, B, affinity=60, clients=clients)
    kept = chosen.candidates(CLIENT, PORT)[0]
    chosen.failed(CLIENT, A if kept == B else B)  # not the one it has
    assert clients.target(CLIENT, 60) == kept
    chosen.failed(CLIENT, kept)
    assert clients.target(CLIENT, 60) is None
    chosen.reached(CLIENT, A)
    assert balanced(B, C, affinity=60, clients=clients).candidates(CLIENT, PORT)[0] in {B, C}


def test_listeners_of_a_group_share_what_is_known() -> None:
    clients = Clients()
    kept = balanced(A, B, C, affinity=60, clients=clients).candidates(CLIENT, PORT)[0]
    assert balanced(C, B, A, affinity=60, clients=clients).candidates(CLIENT, PORT)[0] == kept


def test_the_clients_not_seen_for_longest_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancer, "MOST_CLIENTS", 2)
    clients = Clients()
    for address in ("10.1.0.1", "10.1.0.2", "10.1.0.1", "10.1.0.3"):
        clients.remember(address, A)
    assert [clients.target(f"10.1.0.{i}", 60) for i in (1, 2, 3)] == [A, None, A]


def test_those_not_seen_for_too_long_are_forgotten_in_passing() -> None:
    time = Time()
    clients = Clients(time)
    for address in ("10.1.0.1", "10.1.0.2"):
        clients.remember(address, A)
        time.now += 30
    clients.forget_old(60)
    assert len(clients) == 1
    clients.forget_old(30)
    assert len(clients) == 0


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("10.1.2.3", [A]),
        ("192.0.2.1", [A]),
        ("192.0.2.2", [B]),
        ("fe80::1%eth0", [B]),
        ("2001:db8::1", [B]),
    ],
)
def test_the_first_choice_that_has_the_client_counts(client: str, expected: Sequence[Target]) -> None:
    listener = Listener("web", "web", choices=(Choice((A,), ("10.0.0.0/8", "192.0.2.1/32")), Choice((B,))))
    assert list(Balancer(listener, Clients(), Tallies()).candidates(client, PORT)) == expected


def test_who_has_no_choice_or_is_not_admitted_is_refused() -> None:
    own = Listener("web", "web", choices=(Choice((A,), ("10.0.0.0/8",)),))
    assert Balancer(own, Clients(), Tallies()).candidates(CLIENT, PORT) == ()
    limited = Listener("web", "web", choices=(Choice((A,)),), admitted=("198.51.100.0/24", "2001:db8::/32"))
    chosen = Balancer(limited, Clients(), Tallies())
    assert chosen.candidates(CLIENT, PORT) == ()
    assert (
        list(chosen.candidates("198.51.100.7", PORT)) == list(chosen.candidates("2001:db8::7", PORT)) == [A]
    )
    assert balanced().candidates(CLIENT, PORT) == ()
