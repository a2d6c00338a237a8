"""Source ranges as intervals, and what a change of a Service that has many of them sends."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import types
from kubeproxy.backends.nftables import firewall as module
from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.firewall import Firewall
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.nftables.rig import Rig
from tests.unit.backends.nftables.test_changes import sent, started

NODE, BALANCERS = "192.0.2.1", ("203.0.113.5", "10.1.2.3")
MANY = tuple(f"198.18.{i >> 6}.{i % 64 * 4}/30" for i in range(500))
small = st.builds(
    lambda first, length: str(ipaddress.ip_network((first << 24 | 0x10000 * (first % 7), length), strict=False)),
    st.sampled_from([10, 192, 203]),
    st.integers(1, 32),
)  # fmt: skip
small6 = st.builds(
    lambda first, length: str(ipaddress.ip_network((0x20010DB8 << 96 | first << 64, length), strict=False)),
    st.integers(0, 9),
    st.integers(1, 128),
)


def lb(*ranges: str, count: int = 3) -> types.Service:
    ports = [types.ServicePort(80 + i, f"p{i}") for i in range(count)]
    return service(
        "lb", "10.96.0.1", ports=ports, type="LoadBalancer", balancer=BALANCERS[:1], load_balancer_source_ranges=ranges
    )  # fmt: skip


def slices(*addresses: str, count: int = 3) -> list[types.EndpointSlice]:
    return [endpoints("lb", *addresses, port_name=f"p{i}", name=f"lb-{i}") for i in range(count)]


@given(st.one_of(st.lists(small, min_size=1, max_size=30), st.lists(small6, min_size=1, max_size=30)))
def test_intervals_are_disjoint_and_hold_what_the_ranges_hold(ranges: list[str]) -> None:
    version = ipaddress.ip_network(ranges[0]).version
    own = BALANCERS if version == 4 else ("2001:db8::5",)
    node = NODE if version == 4 else "2001:db8:2::1"
    networks = [ipaddress.ip_network(each) for each in ranges]
    found = [
        (int.from_bytes(a), int.from_bytes(b)) for a, b in Firewall(tuple(ranges), own, node).intervals(b"")
    ]
    expected = [(int(n[0]), int(n[-1])) for n in ipaddress.collapse_addresses(networks)]  # type: ignore[type-var]
    if any(ipaddress.ip_address(node) in n for n in networks):
        expected += [(int(a), int(a)) for a in map(ipaddress.ip_address, own)]
    assert all(one[1] < other[0] for one, other in zip(sorted(found), sorted(found)[1:], strict=False))
    assert _joined(found) == _joined(expected)


def _joined(intervals: list[tuple[int, int]]) -> list[list[int]]:
    """Intervals as few as possible."""
    out: list[list[int]] = []
    for first, last in sorted(intervals):
        if out and first <= out[-1][1] + 1:
            out[-1][1] = max(out[-1][1], last)
        else:
            out.append([first, last])
    return out


def test_a_change_of_endpoints_reads_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = started(lb(*MANY), *slices("10.244.1.1", "10.244.1.2"))

    def never(_: str) -> tuple[bytes, bytes]:
        raise AssertionError("a range was read")

    monkeypatch.setattr(module, "ends_of", never)
    rig.tell(*slices("10.244.1.1", "10.244.1.3"))
    rig.partial()
    assert {name for _, name in sent(rig)} == {"endpoints-2"}


def test_a_range_that_comes_is_one_element_a_front_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = started(lb(*MANY), *slices("10.244.1.1"))
    reads = []
    ends = module.ends_of

    def counted(cidr: str) -> tuple[bytes, bytes]:
        reads.append(cidr)
        return ends(cidr)

    monkeypatch.setattr(module, "ends_of", counted)
    rig.tell(lb(*MANY[1:], "198.51.100.0/24"))
    rig.partial()
    assert sent(rig) == {("add", layout.FIREWALL_SOURCES): 3, ("delete", layout.FIREWALL_SOURCES): 3}
    assert len(reads) == 2 * len(MANY), (
        "each once as it was and once as it is to be, for all three ports together"
    )
    assert rig.table() == rig.fresh().table()


def test_without_endpoints_other_clients_are_dropped_first() -> None:
    rig = Rig()
    rig.tell(lb("198.51.100.0/24", count=1))
    assert not rig.full()
    found = rig.table()
    assert len(found["elements", layout.FIREWALL_IPS]) == len(found["elements", layout.FIREWALL_SOURCES]) == 1
    assert len(found["elements", layout.REJECT_SERVICES]) == 2
