"""Virtual servers, sets and addresses in the real kernel: what is written is what the system's programs print."""

import errno
import re
import socket
import subprocess
from collections.abc import Iterator

import pytest

from kubeproxy.api.addresses import FAMILIES, IPV4, IPV6, Family, pack
from kubeproxy.backends.ipvs.desired import Counted
from kubeproxy.backends.ipvs.fake import FakeIPVSKernel
from kubeproxy.backends.ipvs.kernel import IPVSKernel, LinuxIPVSKernel, ServerChange
from kubeproxy.backends.ipvs.names import CLUSTER_IP, SETS
from kubeproxy.backends.ipvs.sets import SetKeeper
from kubeproxy.netlink import ipset, ipvs, route
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import IPVSSocket, Load, Real, Settings, Timeouts, Virtual
from tests.lab import netns
from tests.machines import MACHINE

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def _inside(space: str) -> Iterator[None]:
    with netns.inside(space):
        yield


def run(command: str) -> list[str]:
    done = subprocess.run(command.split(), check=True, capture_output=True, text=True)
    return sorted(line.strip() for line in done.stdout.splitlines())


def test_virtual_servers_are_those_ipvsadm_prints() -> None:
    one = Virtual(ipvs.TCP, pack("10.96.0.1"), 80)
    two = Virtual(ipvs.SCTP, pack("fd00:10:96::1"), 443)
    near, far = Real(pack("10.244.1.11"), 8080), Real(pack("10.244.1.12"), 8080)
    with IPVSSocket(MACHINE) as kernel:
        assert not kernel.submit(
            [
                kernel.add(one, Settings("rr")),
                kernel.add_real(one, near),
                kernel.add_real(one, far),
                kernel.add(two, Settings("mh", ipvs.PERSISTENT | ipvs.SCHEDULER_2, 300)),
                kernel.add_real(two, Real(pack("fd00:10:244:1::b"), 8443), 0),
            ]
        )
        assert run("ipvsadm -Sn") == sorted(
            [
                "-A -t 10.96.0.1:80 -s rr",
                "-a -t 10.96.0.1:80 -r 10.244.1.11:8080 -m -w 1",
                "-a -t 10.96.0.1:80 -r 10.244.1.12:8080 -m -w 1",
                "-A --sctp-service [fd00:10:96::1]:443 -s mh -p 300 -b mh-port",
                "-a --sctp-service [fd00:10:96::1]:443 -r [fd00:10:244:1::b]:8443 -m -w 0",
            ]
        )
        assert kernel.virtuals() == {one: Settings("rr"), two: Settings("mh", 0x11, 300)}
        assert kernel.reals(one) == ipvs.table(MACHINE)[one] == {near: Load(1), far: Load(1)}
        assert (
            kernel.reals(two) == ipvs.table(MACHINE)[two] == {Real(pack("fd00:10:244:1::b"), 8443): Load(0)}
        )
        assert not kernel.submit(
            [
                kernel.edit(one, Settings("lc", ipvs.PERSISTENT, 60)),
                kernel.edit_real(one, near, 0),
                kernel.delete_real(one, far),
                kernel.delete(two),
            ]
        )
        assert run("ipvsadm -Sn") == [
            "-A -t 10.96.0.1:80 -s lc -p 60",
            "-a -t 10.96.0.1:80 -r 10.244.1.11:8080 -m -w 0",
        ]
        assert not kernel.submit([kernel.edit(one, Settings("rr"))])
        assert run("ipvsadm -Sn")[0] == "-A -t 10.96.0.1:80 -s rr"


def test_each_refusal_is_told_and_harms_nothing_else() -> None:
    good, bad = Virtual(ipvs.TCP, pack("10.96.0.1"), 80), Virtual(ipvs.TCP, pack("10.96.0.2"), 80)
    with IPVSSocket(MACHINE) as kernel:
        requests = [kernel.add(good._replace(port=i), Settings("rr")) for i in range(1, 2001)]
        requests[7] = kernel.add(bad, Settings("nosuch"))
        requests[1999] = kernel.delete(bad)
        refused = kernel.submit(requests)
        assert {at: error.errno for at, error in refused.items()} == {7: errno.ENOENT, 1999: errno.ESRCH}
        # Not by /proc/net/ip_vs: Linux leaves out entries there while other namespaces have some, too.
        assert len(kernel.virtuals()) == 1998


def test_timeouts() -> None:
    with IPVSSocket(MACHINE) as kernel:
        before = kernel.timeouts()
        kernel.set_timeouts(Timeouts(1000, 0, 20))
        assert kernel.timeouts() == Timeouts(1000, before.tcp_fin, 20)
        assert run("ipvsadm -L --timeout") == [f"Timeout (tcp tcpfin udp): 1000 {before.tcp_fin} 20"]


def _elements(family: Family) -> dict[str, list[Element]]:
    a, b = ("10.96.0.1", "10.0.0.0") if family == IPV4 else ("fd00:10:96::1", "fd00::")
    address, net = pack(a), pack(b)
    return {
        ipset.HASH_IP: [Element(address)],
        ipset.HASH_IP_PORT: [Element(address, p, 80) for p in (ipvs.TCP, ipvs.UDP, ipvs.SCTP)],
        ipset.HASH_IP_PORT_IP: [Element(address, ipvs.TCP, 80, address)],
        ipset.HASH_IP_PORT_NET: [Element(address, ipvs.TCP, 80, net, prefix) for prefix in (8, 31, 32)],
        ipset.BITMAP_PORT: [Element(port=port) for port in (0, 80, 65535)],
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_sets_are_those_ipset_prints(family: Family) -> None:
    domain = socket.AF_INET if family == IPV4 else socket.AF_INET6
    with ipset.Sets(MACHINE) as kernel:
        for kind, elements in _elements(family).items():
            kernel.create(kind, kind, domain)
            kernel.create(kind, kind, domain)
            assert not kernel.add(kind, elements)
            assert not kernel.add(kind, elements)
            assert kernel.elements(kind) == set(elements)
            assert kernel.headers()[kind].size == len(elements)
        saved = [re.sub(r" (initval|bucketsize) \S+", "", line) for line in run("ipset save")]
        a, b = ("10.96.0.1", "10.0.0.0") if family == IPV4 else ("fd00:10:96::1", "fd00::")
        inet = "inet" if family == IPV4 else "inet6"
        size = f"family {inet} hashsize 1024 maxelem 65536"
        whole = "" if family == IPV4 else "/32"
        assert saved == sorted(
            [
                *(f"create {kind} {kind} {size}" for kind in _elements(family) if kind.startswith("hash")),
                "create bitmap:port bitmap:port range 0-65535",
                f"add hash:ip {a}",
                *(f"add hash:ip,port {a},{protocol}:80" for protocol in ("tcp", "udp", "sctp")),
                f"add hash:ip,port,ip {a},tcp:80,{a}",
                *(f"add hash:ip,port,net {a},tcp:80,{b}{end}" for end in ("/8", "/31", whole)),
                *(f"add bitmap:port {port}" for port in (0, 80, 65535)),
            ]
        )
        for kind, elements in _elements(family).items():
            assert not kernel.delete(kind, elements)
            assert not kernel.delete(kind, elements)
            assert kernel.elements(kind) == set()
            kernel.destroy(kind)
        assert run("ipset save") == []


def test_addresses_of_a_dummy_interface() -> None:
    index = route.ensure_dummy(MACHINE, "kube-ipvs0")
    assert route.ensure_dummy(MACHINE, "kube-ipvs0") == index == MACHINE.interface("kube-ipvs0")
    some = [pack("10.96.0.1"), pack("10.96.0.2"), pack("fd00:10:96::1")]
    assert not route.add_addresses(MACHINE, index, some)
    assert not route.add_addresses(MACHINE, index, some)
    shown = " ".join(run("ip -o address show dev kube-ipvs0"))
    assert re.findall(r"inet6? (\S+)", shown) == ["10.96.0.1/32", "10.96.0.2/32", "fd00:10:96::1/128"]
    assert not route.delete_addresses(MACHINE, index, some[1:])
    assert not route.delete_addresses(MACHINE, index, some[1:])
    assert re.findall(r"inet6? (\S+)", " ".join(run("ip -o address show dev kube-ipvs0"))) == ["10.96.0.1/32"]
    assert route.delete_interface(MACHINE, "kube-ipvs0")
    assert not route.delete_interface(MACHINE, "kube-ipvs0")
    assert MACHINE.interface("kube-ipvs0") == 0


def test_a_set_grows_beyond_its_size_while_rules_look_into_it() -> None:
    wanted: Counted[Element] = Counted()
    contents: dict[str, Counted[Element]] = {name: Counted() for name in SETS}
    contents[CLUSTER_IP] = wanted
    kernel = LinuxIPVSKernel(MACHINE, IPV4)
    keeper = SetKeeper(kernel, IPV4)
    elements = [
        Element(pack(f"10.96.{i >> 8 & 255}.{i & 255}"), ipvs.TCP, 80 + (i >> 16)) for i in range(66_000)
    ]
    for element in elements[:65_000]:
        wanted.take(element)
    assert keeper.adopt(contents, keeper.read()) == ({}, {})
    run("iptables -A OUTPUT -m set --match-set KUBE-CLUSTER-IP dst,dst")
    for element in elements[65_000:]:
        wanted.take(element)
    assert not keeper.add(CLUSTER_IP, elements[65_000:], wanted)
    header = kernel.headers()["KUBE-CLUSTER-IP"]
    assert (header.size, header.limit, header.references) == (66_000, 1 << 17, 1)
    assert keeper.intact(contents, {})
    kernel.close()


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_the_kernel_in_memory_is_like_the_real_one(family: Family) -> None:
    real, fake = LinuxIPVSKernel(MACHINE, family), FakeIPVSKernel()
    assert _drill(real, family) == _drill(fake, family)
    real.close()


def _drill(kernel: IPVSKernel, family: Family) -> list[object]:
    """Does all sorts of things, and tells what came of it."""
    base = "10.96.0." if family == IPV4 else "fd00:10:96::"
    virtual = Virtual(ipvs.TCP, pack(f"{base}1"), 80)
    a, b = Real(pack(f"{base}11"), 8080), Real(pack(f"{base}12"), 8080)
    change = ServerChange
    told: list[object] = []
    refused = kernel.change_servers(
        [
            change("delete", virtual),
            change("add", virtual, real=a),
            change("add", virtual, Settings("nosuch")),
            change("edit", virtual, Settings("rr")),
            change("add", virtual, Settings("rr")),
            change("add", virtual, Settings("rr")),
            change("edit", virtual, Settings("lc", ipvs.PERSISTENT, 60)),
            change("add", virtual, real=a),
            change("add", virtual, real=a),
            change("edit", virtual, real=b, weight=0),
            change("delete", virtual, real=b),
            change("add", virtual, real=b, weight=0),
            change("edit", virtual, real=a, weight=2),
        ]
    )
    told += [{at: error.errno for at, error in refused.items()}, kernel.servers(), kernel.settings()]
    told += [kernel.reals(virtual), kernel.reals(virtual._replace(port=9))]
    kernel.create_set("KUBE-X", ipset.HASH_IP_PORT, 2)
    element = Element(pack(f"{base}1"), ipvs.TCP, 80)
    for _ in range(2):
        told.append(kernel.add_elements("KUBE-X", [element, element._replace(port=81)]))
    told.append([e.errno for e in kernel.add_elements("KUBE-X", [element._replace(port=82)]).values()])
    told += [kernel.elements("KUBE-X"), kernel.headers()["KUBE-X"]._replace(family=0, references=0)]
    kernel.create_set("KUBE-Y", ipset.HASH_IP_PORT, 8)
    kernel.swap_sets("KUBE-X", "KUBE-Y")
    told += [kernel.elements("KUBE-X"), kernel.elements("KUBE-Y"), kernel.headers()["KUBE-X"].limit]
    told += [kernel.delete_elements("KUBE-Y", [element, element]), kernel.elements("KUBE-Y")]
    kernel.destroy_set("KUBE-Z")
    for work in (
        lambda: kernel.create_set("KUBE-X", ipset.HASH_IP, 8),
        lambda: kernel.elements("KUBE-Z"),
    ):
        with pytest.raises(OSError) as caught:
            work()
        told.append(caught.value.errno)
    for _ in range(2):
        told += [kernel.bind([virtual.address, a.address]), kernel.addresses()]
    for _ in range(2):
        told += [kernel.unbind([a.address]), kernel.addresses()]
    return told
