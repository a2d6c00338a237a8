"""Netlink with the real kernel: what is written is there, what is read is what the system's programs print."""

import errno
import ipaddress
import json
import select
import socket
import struct
import subprocess
import sys

import pytest

from kubeproxy.linux import xtables
from kubeproxy.netlink import nfacct, route, wire
from kubeproxy.netlink.nft import kernel as nft
from kubeproxy.netlink.nft.messages import IP, IP6, TableName
from kubeproxy.netlink.wire import NetlinkError
from tests.lab import netns
from tests.lab.topology import ROOT
from tests.machines import MACHINE


def run(space: str, command: str, given: str = "") -> str:
    with netns.inside(space):
        return subprocess.run(command.split(), input=given, check=True, capture_output=True, text=True).stdout


def unprivileged(space: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a namespace with root's name but none of its rights; MACHINE is the host."""
    code = f"from kubeproxy.machine.linux import LinuxMachine; MACHINE = LinuxMachine(); {code}"
    with netns.inside(space):
        return subprocess.run(
            ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code],
            check=False,
            env={"PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            timeout=60,
        )


def test_a_refusal_comes_with_the_kernel_s_words(space: str) -> None:
    """RTM_NEWLINK of a kind there is none of."""
    kind = wire.nested(18, wire.text(1, "nosuchkind"))  # IFLA_LINKINFO, IFLA_INFO_KIND
    body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + wire.text(3, "x0") + kind
    with netns.inside(space), wire.Socket(MACHINE, wire.ROUTE) as kernel:
        with pytest.raises(NetlinkError) as caught:
            kernel.request(16, body, wire.CREATE | wire.EXCL)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert "device type" in caught.value.detail
        assert caught.value.detail in str(caught.value)
        assert kernel.request(16, body.replace(b"nosuchkind\0", b"bridge\0\0\0\0\0"), wire.CREATE) == []


def test_a_refusal_names_the_attribute(space: str) -> None:
    body = struct.pack(">BBH", 2, 0, 0) + wire.text(1, "nosuchtable")
    with netns.inside(space), wire.Socket(MACHINE, wire.NETFILTER) as kernel:
        with pytest.raises(NetlinkError) as caught:
            kernel.request(10 << 8 | 1, body)  # NFT_MSG_GETTABLE
        assert (caught.value.errno, caught.value.offset) == (errno.ENOENT, 20)


def test_tables_are_deleted(space: str) -> None:
    run(
        space,
        "nft -f -",
        "add table ip kube-proxy\nadd chain ip kube-proxy c\nadd table ip6 kube-proxy\nadd table ip other",
    )
    with netns.inside(space):
        assert nft.drop_table(MACHINE, TableName(IP, "kube-proxy"))
        assert not nft.drop_table(MACHINE, TableName(IP, "kube-proxy"))
        assert run(space, "nft list tables").splitlines() == ["table ip6 kube-proxy", "table ip other"]
        assert nft.drop_table(MACHINE, TableName(IP6, "kube-proxy"))
        assert not nft.drop_table(MACHINE, TableName(IP6, "kube-proxy"))
    assert run(space, "nft list tables").splitlines() == ["table ip other"]


def test_without_the_right_to_it_nothing_is_deleted_and_nobody_waits(space: str) -> None:
    run(space, "nft add table ip kube-proxy")
    done = unprivileged(
        space,
        "from kubeproxy.netlink.nft.kernel import drop_table; from kubeproxy.netlink.nft.messages import TableName;"
        "drop_table(MACHINE, TableName(2, 'kube-proxy'))",
    )
    assert "Operation not permitted" in done.stderr
    assert run(space, "nft list tables").splitlines() == ["table ip kube-proxy"]


def test_the_generation_changes_with_every_transaction(space: str) -> None:
    with netns.inside(space):
        seen = [nft.generation(MACHINE), nft.generation(MACHINE)]
        for command in ("add table ip a", "add chain ip a b", "delete table ip a"):
            run(space, f"nft {command}")
            seen.append(nft.generation(MACHINE))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4


def test_counters_count_and_are_made_once(space: str) -> None:
    with netns.inside(space):
        with pytest.raises(OSError) as caught:
            nfacct.packets(MACHINE, "pkts")
        assert caught.value.errno == errno.ENOENT
        nfacct.ensure(MACHINE, "pkts")
        assert nfacct.packets(MACHINE, "pkts") == 0
        run(space, "iptables-legacy -w 60 -A OUTPUT -p udp --dport 9 -m nfacct --nfacct-name pkts")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(5):
                sock.sendto(b"x", ("127.0.0.1", 9))
        assert nfacct.packets(MACHINE, "pkts") == 5
        nfacct.ensure(MACHINE, "pkts")
        assert nfacct.packets(MACHINE, "pkts") == 5
        nfacct.ensure(MACHINE, "other")
        assert nfacct.packets(MACHINE, "other") == 0


def test_counters_need_rights(space: str) -> None:
    done = unprivileged(space, "from kubeproxy.netlink import nfacct; nfacct.ensure(MACHINE, 'pkts')")
    assert "Operation not permitted" in done.stderr


def test_addresses_are_those_of_the_host(space: str) -> None:
    lines = [
        "link add d0 type bridge",
        "link set d0 up",
        "address add 192.0.2.1/24 dev d0",
        "address add 192.0.2.2/24 dev d0",
        "address add 10.0.0.1 peer 10.0.0.2/32 dev d0",
        "address add 2001:db8::1/64 dev d0 nodad",
        "address add fd00::1 peer fd00::2/128 dev d0 nodad",
        "link add d1 type bridge",
        *(f"address add 10.1.{i // 250}.{i % 250 + 1}/32 dev d1" for i in range(1000)),
        *(f"address add fd01::{i + 1:x}/128 dev d1 nodad" for i in range(200)),
    ]
    netns.finish(netns.ip_batch(*lines, namespace=space))
    with netns.inside(space):
        found = route.addresses(MACHINE)
    printed = [
        (ipaddress.ip_address(a["local"]).packed, a["prefixlen"], link["ifindex"])
        for link in json.loads(run(space, "ip -j address"))
        for a in link["addr_info"]
    ]
    assert sorted(found) == sorted(printed)
    assert len(found) > 1200


def test_a_monitor_hears_of_addresses(space: str) -> None:
    with netns.inside(space):
        monitor = route.monitor(MACHINE)
    with monitor:
        run(space, "ip link add d0 type bridge")
        assert select.select([monitor], [], [], 0)[0] == [], "a link is no address"
        for address in ("192.0.2.1/24", "2001:db8::1/64"):
            for verb, kind in (("add", route.NEW_ADDRESS), ("del", route.DELETE_ADDRESS)):
                run(space, f"ip address {verb} {address} dev d0")
                assert select.select([monitor], [], [], 30)[0] == [monitor]
                assert [m.type for m in monitor.receive(wait=False)] == [kind]


def drain(monitor: wire.Socket) -> None:
    while list(monitor.receive(wait=False)):
        pass


def test_a_monitor_that_was_flooded_says_so_and_goes_on(space: str) -> None:
    netns.finish(netns.ip_batch("link add d0 type bridge", namespace=space))
    with netns.inside(space):
        monitor = wire.Socket(MACHINE, wire.ROUTE, (route.GROUP_IPV4_ADDRESSES,), receive_buffer=1)
    with monitor:
        lines = [f"address add 10.1.{i}.1/32 dev d0" for i in range(200)]
        netns.finish(netns.ip_batch(*lines, namespace=space))
        with pytest.raises(OSError, match="No buffer space"):
            drain(monitor)
        drain(monitor)
        run(space, "ip address add 10.2.0.1/32 dev d0")
        assert [m.type for m in monitor.receive()] == [route.NEW_ADDRESS]


@pytest.mark.parametrize(
    ("domain", "program"), [(socket.AF_INET, "iptables-legacy"), (socket.AF_INET6, "ip6tables-legacy")]
)
def test_the_size_of_a_table_tells_of_changes(space: str, domain: int, program: str) -> None:
    def sizes() -> list[tuple[int, int]]:
        with netns.inside(space):
            return [xtables.table_size(MACHINE, domain, table) for table in ("mangle", "nat", "filter")]

    seen = [sizes()]
    assert sizes() == seen[0]
    assert all(count > 0 < size for count, size in seen[0])
    for command in ("-t nat -N A", "-t nat -A A -p tcp", "-A OUTPUT -p tcp", "-t mangle -N B", "-N C"):
        run(space, f"{program} -w 60 {command}")
        seen.append(sizes())
    assert len({tuple(each) for each in seen}) == 6
    for command in ("-X C", "-t mangle -X B", "-D OUTPUT 1", "-t nat -F A", "-t nat -X A"):
        run(space, f"{program} -w 60 {command}")
    assert sizes() == seen[0]


def test_the_size_of_no_table(space: str) -> None:
    with netns.inside(space), pytest.raises(FileNotFoundError):
        xtables.table_size(MACHINE, socket.AF_INET, "nosuchtable")
