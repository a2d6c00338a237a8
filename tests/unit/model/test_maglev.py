"""Maglev's tables: shares, what a change moves, and that nothing else decides."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.model.maglev import table
from kubeproxy.model.select import Endpoint

WANTED = (1, 2, 1, 0, 1, 2, 1, 2, 2, 0, 1, 1, 1, 2, 1, 2, 1, 0, 1, 0, 2, 1, 1, 0)


def endpoints(count):
    return tuple(Endpoint(f"10.244.{number // 250}.{number % 250}", 8080) for number in range(count))


@pytest.mark.parametrize(("count", "moved"), [(2, 0.0), (3, 0.02), (10, 0.04), (100, 0.05)])
def test_an_endpoint_that_leaves_moves_few_slots_of_others(count, moved):
    them, size = endpoints(count), 1021
    before = [them[number] for number in table(them, (), size)]
    for gone in them[:: max(1, count // 10)]:
        rest = tuple(each for each in them if each != gone)
        after = [rest[number] for number in table(rest, (), size)]
        others = sum(old not in {gone, new} for old, new in zip(before, after, strict=True))
        assert others / size <= moved


@pytest.mark.parametrize(("count", "size", "off"), [(3, 251, 1), (10, 1021, 2), (100, 4093, 2)])
def test_shares_are_equal(count, size, off):
    slots = Counter(table(endpoints(count), (), size))
    assert sum(slots.values()) == size
    assert all(abs(slots[number] - size / count) <= off for number in range(count))


@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=20), size=st.sampled_from([251, 1021, 4093])
)
def test_shares_follow_weights(weights, size):
    slots = Counter(table(endpoints(len(weights)), tuple(weights), size))
    assert sum(slots.values()) == size
    for number, weight in enumerate(weights):
        assert slots[number] >= 1
        assert abs(slots[number] - size * weight / sum(weights)) <= len(weights) / 2 + 1


def test_equal_weights_are_no_weights():
    them = endpoints(7)
    assert table(them, (3,) * 7, 1021) == table(them, (), 1021)


def test_whether_an_endpoint_is_local_does_not_matter():
    there = endpoints(5)
    here = tuple(Endpoint(each.address, each.port, local=True) for each in there)
    assert table(here, (), 251) == table(there, (), 251)


def test_the_table_is_the_same_in_every_version():
    them = (Endpoint("10.244.1.2", 80), Endpoint("10.244.1.3", 80), Endpoint("fd00::1", 80))
    assert table(them, (), 251).tolist()[:24] == list(WANTED)


def test_more_endpoints_than_slots():
    assert set(table(endpoints(300), (), 251)) == set(range(251))
