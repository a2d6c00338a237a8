"""Distributions of numbers."""

from kubeproxy.figures import DURATIONS, Histogram


def test_a_histogram_counts_values_up_to_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0, -1.0):
        histogram.observe(value)
    assert histogram.cumulative() == [3, 5, 6]
    assert histogram.sum == 7.0


def test_durations_are_the_references_buckets() -> None:
    assert DURATIONS[:3] == (0.001, 0.002, 0.004)
    assert len(DURATIONS) == 15
    assert DURATIONS[-1] == 16.384
