"""Weights, least connections and Maglev hashing in the kernel's IPVS: which endpoint each new connection gets."""

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.ipvs.driver import IPVSDriver
from kubeproxy.backends.ipvs.kernel import EXPIRE, SLOPPY, LinuxIPVSKernel
from tests.fakes.cluster import Proxy, endpoints, service
from tests.lab import netns
from tests.machines import MACHINE
from tests.unit.backends.ipvs.rig import HERE

pytestmark = pytest.mark.vm

VIP, PODS = "10.96.0.1", [f"10.244.1.{i}" for i in range(11, 21)]


@contextlib.contextmanager
def node() -> Iterator[Proxy]:
    """A namespace with a route to Pods that do not answer, and a proxy with the real IPVS, without rules."""
    name = f"{netns.unique_prefix()}mh"
    netns.create([name])
    try:
        netns.finish(
            netns.ip_batch(
                "link set lo up",
                "link add pods type dummy",
                "link set pods up",
                "address add 10.244.1.1/24 dev pods",
                namespace=name,
            )
        )
        with netns.inside(name):
            kernel = LinuxIPVSKernel(MACHINE, IPV4)
            try:
                MACHINE.set_sysctl(EXPIRE, 1)
                proxy = Proxy(IPVSDriver(kernel, FakeTables(), HERE), HERE)
                assert not proxy.full()
                yield proxy
            finally:
                kernel.close()
    finally:
        netns.delete([name])


def tell(proxy: Proxy, pods: list[str], **annotations: str) -> None:
    """The Service has these endpoints and annotations now."""
    made = service("web", VIP)
    given = types.Annotations(**annotations)
    proxy.tell(
        replace(made, metadata=replace(made.metadata, annotations=given)),
        endpoints("web", *pods, local=PODS[:1]),
    )
    proxy.partial()


def connect(*ports: int) -> dict[int, str]:
    """Begins a connection from each port; returns the endpoint that the kernel chose for it."""
    for port in ports:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("10.244.1.1", port))
            client.setblocking(False)
            client.connect_ex((VIP, 80))
    known = connections()
    return {port: known[port] for port in ports}


def connections() -> dict[int, str]:
    """The endpoint of each connection, by the client's port."""
    with MACHINE.net("ip_vs_conn") as file:
        lines = file.read().decode().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {int(f[2], 16): str(ip_address(int(f[5], 16))) for f in fields}


def test_two_nodes_have_one_table_of_maglev() -> None:
    """To one of them endpoints came in another order, and one of them drains there.

    With the order in which they came, about seven of 1,000 connections would get another endpoint.
    """
    ports, pods, last = range(20000, 21500), PODS[:9], PODS[9]
    maglev = {"balancing": "maglev", "maglev_hash": "source-and-port"}
    with node() as one:
        tell(one, pods, **maglev)
        first = connect(*ports)
        assert MACHINE.sysctl(SLOPPY) == "1"
    with node() as two:
        tell(two, [last, pods[2]], **maglev)
        before = connect(*range(30000, 30020))
        assert set(before.values()) == {last, pods[2]}
        for some in (pods[6:], pods[:5], pods[3:]):
            tell(two, [last, pods[2], *some], **maglev)
        tell(two, [last, *pods], **maglev)
        tell(two, pods, **maglev)
        assert MACHINE.sysctl(EXPIRE) == "1"
        assert {port: at for port, at in connections().items() if port in before} == before
        second = connect(*ports)
    assert second == first
    assert min(Counter(first.values()).values()) > 100


def test_weights_and_a_scheduler_that_is_changed_in_place() -> None:
    with node() as proxy:
        tell(proxy, PODS[:2], weights=f"address:{PODS[0]}=3")
        assert Counter(connect(*range(20000, 20100)).values()) == {PODS[0]: 75, PODS[1]: 25}
        before = connections()
        tell(proxy, PODS[:3], balancing="least-connections")
        assert Counter(connect(*range(20100, 20120)).values()) == {PODS[2]: 20}
        assert before.items() <= connections().items()


def test_near_endpoints_come_first_up_to_their_limit() -> None:
    with node() as proxy:
        tell(proxy, PODS[:3], prefer="node", spill_over="5")
        assert Counter(connect(*range(20000, 20009)).values()) == {PODS[0]: 5, PODS[1]: 2, PODS[2]: 2}
        tell(proxy, PODS[:3], prefer="node", spill_over="7")
        assert Counter(connect(*range(20010, 20014)).values()) == {PODS[0]: 2, PODS[1]: 1, PODS[2]: 1}
