"""Elements: how their bytes are made, and how they are told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.backends.nftables import names, packing
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import objects, types

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
protocols = st.sampled_from(["TCP", "UDP", "SCTP"])
ports = st.integers(1, 65535)


@given(addresses, protocols, ports, st.integers(1, 5000), st.data())
def test_slots_of_a_front(address: str, protocol: str, port: int, count: int, data: st.DataObject) -> None:
    family: Family = IPV6 if ":" in address else IPV4
    front = packing.front(address, protocol, port)
    packer = packing.EndpointElements(family, len(front))
    tails = [packer.tail(address, 1 + i % 65535) for i in range(count)]
    elements = packer.elements(front, tails)
    slot = data.draw(st.integers(0, count - 1))
    found = wire.attributes(wire.attributes(elements[slot])[1])
    assert bytes(wire.attributes(found[1])[1]) == front + packing.slot(slot)
    assert bytes(wire.attributes(found[2])[1])[-4:-2] == (1 + slot % 65535).to_bytes(2)
    assert len(set(map(objects.key_of, elements))) == count
    assert objects.split(b"".join(elements)) == elements


ELEMENTS = (
    packing.member(bytes(4)),
    packing.member(bytes(4), "said"),
    packing.member(bytes(16), "said otherwise"),
    packing.goto(bytes(4), "chain"),
    packing.goto(bytes(12), "another-chain", "said"),
    packing.between(bytes(16), bytes(15) + b"\1"),
    packing.boundary(bytes(4), end=False),
    packing.boundary(bytes(4), end=True),
)


@given(st.lists(st.sampled_from(ELEMENTS), max_size=12))
def test_a_list_of_elements_is_split(elements: list[bytes]) -> None:
    assert objects.split(b"".join(elements)) == elements


def test_a_key_is_all_that_tells_elements_apart() -> None:
    key_of = objects.key_of
    one, other = bytes(4), b"\0\0\0\1"
    assert key_of(packing.member(one)) == key_of(packing.member(one, "said"))
    assert (
        key_of(packing.goto(one, "a"))
        == key_of(packing.goto(one, "b", "said"))
        != key_of(packing.goto(other, "a"))
    )
    assert key_of(packing.between(one, one)) != key_of(packing.between(one, other))
    assert key_of(packing.boundary(one, end=True)) != key_of(packing.boundary(one, end=False))


@pytest.mark.parametrize("length", [126, 127, 128, 400])
def test_a_comment_is_cut_to_what_nft_prints(length: int) -> None:
    """One of more than 128 bytes is refused, and with it a whole transaction (kubernetes/kubernetes#139516)."""
    element = packing.member(bytes(4), "x" * length)
    said = wire.attributes(wire.attributes(element)[1])[6]
    assert types.comment(said) == "x" * min(length, 127)


def test_names_of_affinity_are_the_reference_s() -> None:
    assert names.port("ns1/svc1:p80", "TCP") == "ULMVA6XW-ns1/svc1/tcp/p80"
    assert (
        names.endpoint("ns5/svc5:p80", "TCP", "10.180.0.3", 80) == "GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80"
    )
    assert names.endpoint("a/b", "UDP", "fd00::1", 53).endswith("-a/b/udp/__fd00..1/53")
    assert len(names.port(f"{'n' * 63}/{'s' * 200}:p", "TCP")) == 240
