"""Which host has an address: by a table, the same as by looking at every subnet."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends.kernelspace.subnets import SubnetTable
from kubeproxy.windows.values import RemoteSubnet

HOSTS = st.sampled_from(["192.0.2.2", "192.0.2.3", "10.0.0.1", ""])
PREFIXES = st.one_of(
    st.builds(lambda a, n: f"10.0.{a}.0/{n}", st.integers(0, 3), st.integers(20, 32)),
    st.builds(lambda a, n: f"fd00::{a:x}/{n}", st.integers(0, 3), st.integers(110, 128)),
    st.sampled_from(["nothing", "10.0.0.0/33", ""]),
)
ADDRESSES = st.one_of(
    st.builds(lambda a, b: f"10.0.{a}.{b}", st.integers(0, 3), st.integers(0, 3)),
    st.builds(lambda a: f"fd00::{a:x}", st.integers(1, 5)),
    HOSTS.filter(bool),
)


def slowly(subnets: list[RemoteSubnet], address: str) -> str:
    """What the reference does."""
    found = ""
    if any(subnet.provider == address for subnet in subnets):
        return address
    for subnet in subnets:
        try:
            network = ipaddress.ip_network(subnet.prefix, strict=False)
        except ValueError:
            continue
        if ipaddress.ip_address(address) in network:
            found = subnet.provider
    return found


@given(st.lists(st.builds(RemoteSubnet, PREFIXES, HOSTS), max_size=8), ADDRESSES)
def test_the_host_of_an_address(subnets: list[RemoteSubnet], address: str) -> None:
    assert SubnetTable(subnets).provider(address) == slowly(subnets, address)


def test_what_is_no_address_has_no_host() -> None:
    assert SubnetTable([RemoteSubnet("10.0.0.0/8", "192.0.2.2")]).provider("web") == ""
