"""When an endpoint is silent: what its connections and those of the others say, and never too many at once."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.model.planning import answering
from kubeproxy.model.select import Endpoint
from kubeproxy.model.silence import FAILURES, Address, PortSilence, Seen, SilenceChange

A, B, C, D = ENDPOINTS = [(f"10.244.1.{i}", 8080) for i in range(1, 5)]


class Port:
    """A port with four endpoints, and a clock."""

    def __init__(self, *endpoints: Address) -> None:
        self.endpoints = set(endpoints or ENDPOINTS)
        self.found = PortSilence()
        self.now = 100.0

    def look(
        self,
        *answered: Address,
        failed: dict[Address, int] | None = None,
        after: float = 0.25,
        watched: bool = True,
    ) -> list[SilenceChange]:
        self.now += after
        return self.found.look(self.endpoints, Seen(failed or {}, answered), self.now, watched=watched)

    def kinds(
        self, *answered: Address, failed: dict[Address, int] | None = None, after: float = 0.25
    ) -> list[str]:
        return [each.kind for each in self.look(*answered, failed=failed, after=after)]


def test_an_endpoint_whose_connections_fail_while_others_answer_is_silent() -> None:
    port = Port()
    assert not port.look(failed={A: FAILURES - 1})
    assert port.look(B, failed={A: 1}) == [SilenceChange(A, "silent", 0.0, FAILURES, 1.0)]
    assert port.found.silent == (A,)


def test_nobody_is_silent_if_nobody_answers() -> None:
    port = Port()
    for _ in range(20):
        assert not port.look(failed=dict.fromkeys(ENDPOINTS, 3))
    assert port.found.silent == ()


def test_an_answer_ends_the_doubt() -> None:
    port = Port()
    port.look(B, failed={A: FAILURES - 1})
    assert not port.look(A, B, failed={A: 5})
    assert not port.look(B, failed={A: FAILURES - 1})
    assert port.kinds(failed={A: 1}) == ["silent"]


def test_a_doubt_ends_by_itself() -> None:
    port = Port()
    port.look(B, failed={A: FAILURES - 1})
    port.look(after=20.0)
    assert not port.found.doubts


def test_trials_are_single_connections_with_growing_intervals() -> None:
    port = Port()
    port.look(B, failed={A: 3})
    begun = []
    for _ in range(4000):
        for change in port.look():
            if change.kind == "trial":
                begun.append(port.now)
                assert A not in port.found.silent
                assert [each.kind for each in port.found.connected(A, port.now)] == ["tried"]
                assert A in port.found.silent
                assert port.found.connected(A, port.now) == []
    waits = [round(b - a) for a, b in pairwise(begun)]
    assert waits[:6] == [4, 6, 10, 18, 34, 62]  # two seconds until it has failed, then 2, 4, 8, ...
    assert set(waits[6:]) == {62}


def test_a_trial_that_is_answered_ends_it() -> None:
    port = Port()
    port.look(B, failed={A: 3})
    assert port.kinds(after=2.0) == ["trial"]
    port.found.connected(A, port.now)
    (change,) = port.look(A)
    assert (change.endpoint, change.kind, change.seconds) == (A, "answers", 2.25)
    assert not port.found.doubts


def test_a_trial_that_is_refused_has_failed_at_once() -> None:
    port = Port()
    port.look(B, failed={A: 3})
    assert port.kinds(after=2.0) == ["trial"]
    assert port.kinds(failed={A: 1}) == ["trial failed"]


def test_no_trial_begins_unless_its_answer_would_be_seen() -> None:
    port = Port()
    port.look(B, failed={A: 3})
    assert not port.look(after=2.0, watched=False)
    assert port.kinds() == ["trial"]


def test_an_endpoint_that_leaves_is_forgotten() -> None:
    port = Port()
    port.look(B, failed={A: 3})
    port.endpoints.discard(A)
    assert not port.look()
    assert port.found.silent == ()


LOOKS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(ENDPOINTS), st.integers(1, 3)),
        st.sets(st.sampled_from(ENDPOINTS)),
        st.sampled_from([0.25, 1.0, 5.0]),
    ),
    max_size=40,
)


@given(LOOKS, st.integers(1, 4))
def test_at_most_half_are_silent_and_only_those_that_failed_last(looks: list, count: int) -> None:  # type: ignore[type-arg]
    port = Port(*ENDPOINTS[:count])
    last: Counter[Address] = Counter()
    for failed, answered, after in looks:
        port.look(*answered, failed=failed, after=after)
        last.update(failed)
        for at in answered:
            del last[at]
        assert len(port.found.unanswering) <= count // 2
        assert all(last[at] >= FAILURES for at in port.found.unanswering)


@given(st.lists(st.integers(1, 9), unique=True, max_size=9), st.lists(st.integers(1, 12), unique=True))
def test_at_most_half_are_left_out_of_a_plan(present: list[int], silent: list[int]) -> None:
    endpoints = tuple(Endpoint(f"10.244.1.{i}", 80) for i in present)
    left = answering(endpoints, [(f"10.244.1.{i}", 80) for i in silent])
    assert set(left) <= set(endpoints)
    assert 2 * len(left) >= len(endpoints)
    assert bool(left) == bool(endpoints)
    assert {e.address for e in endpoints} - {e.address for e in left} <= {f"10.244.1.{i}" for i in silent}
    assert len(left) == len(endpoints) - min(len(endpoints) // 2, len(set(present) & set(silent)))
