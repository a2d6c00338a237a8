"""Jenkins' hash: the values of its author, and the range of a scaled hash. The kernel's are in tests/kernel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.model.jenkins import jhash, scaled


@pytest.mark.parametrize(
    ("data", "seed", "wanted"),
    [
        (b"", 0, 0xDEADBEEF),
        (b"Four score and seven years ago", 0, 0x17770551),  # lookup3.c, driver5
        (b"Four score and seven years ago", 1, 0xCD628161),
    ],
)
def test_values_of_the_author(data, seed, wanted):
    assert jhash(data, seed) == wanted


@given(data=st.binary(max_size=40), size=st.integers(1, 65521))
def test_a_hash_is_scaled_to_a_slot(data, size):
    value = jhash(data)
    assert 0 <= value < 1 << 32
    assert 0 <= scaled(value, size) < size
