"""Every message and expression: written, listed again by the kernel, and read by stock nft."""

import errno
import json
import subprocess
from collections.abc import Iterator, Sequence
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

import pytest

from kubeproxy.backends.nftables import packing
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft import objects, text
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.kernel import NftKernel, TransactionRefusedError
from kubeproxy.netlink.nft.messages import Hook, NftMessage, TableName
from kubeproxy.netlink.nft.types import ADDRESS4, ADDRESS6, PROTOCOL, SERVICE, Type, below
from tests.lab import netns
from tests.machines import MACHINE

T4, T6 = TableName(m.IP, "t"), TableName(m.IP6, "t")
FRONT = (ADDRESS4, PROTOCOL, SERVICE)


@pytest.fixture
def kernel(space: str) -> Iterator[NftKernel]:
    """The nf_tables of a namespace of its own, in which the test runs."""
    with netns.inside(space), NftKernel(MACHINE) as found:
        yield found


def nft(*arguments: str) -> str:
    """What stock nft says."""
    done = subprocess.run(["nft", *arguments], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout


def listed(kind: str, table: TableName = T4) -> list[dict[str, Any]]:
    """The objects of a kind that stock nft lists in JSON."""
    found = json.loads(nft("-j", "list", "table", *str(table).split()))["nftables"]
    return [each[kind] for each in found if kind in each]


def ip(address: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def host(number: int) -> bytes:
    return packing.slot(number)


def test_a_table(kernel: NftKernel) -> None:
    kernel.commit([m.add_table(T4, "what it is for"), m.add_table(T6)])
    assert objects.table_comment(kernel, T4) == "what it is for"
    assert objects.table_comment(kernel, T6) == ""
    assert objects.table_comment(kernel, TableName(m.IP, "other")) is None
    assert nft("list", "tables").split("\n") == ["table ip t", "table ip6 t", ""]
    assert 'comment "what it is for"' in nft("list", "table", "ip", "t")
    kernel.commit([m.add_table(T4, "said again"), m.delete_table(T6)])
    assert objects.table_comment(kernel, T4) == "what it is for"
    assert objects.table_comment(kernel, T6) is None


def test_a_table_of_a_socket_goes_with_it(kernel: NftKernel) -> None:
    with NftKernel(MACHINE) as owner:
        owner.commit([m.add_table(T4, flags=m.OWNER)])
        with pytest.raises(TransactionRefusedError) as refused:
            kernel.commit([m.delete_table(T4)])
        assert refused.value.errno == errno.EPERM
        assert objects.table_comment(kernel, T4) == ""
    assert objects.table_comment(kernel, T4) is None


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        (Hook("filter", m.PREROUTING, -110), "prerouting"),
        (Hook("filter", m.INPUT, 0), "input"),
        (Hook("filter", m.FORWARD, 0), "forward"),
        (Hook("nat", m.OUTPUT, -100), "output"),
        (Hook("nat", m.POSTROUTING, 100), "postrouting"),
    ],
)
def test_a_base_chain(kernel: NftKernel, hook: Hook, name: str) -> None:
    kernel.commit([m.add_table(T6), m.add_chain(T6, "base", hook)])
    assert objects.chains(kernel, T6) == {"base": objects.ChainInfo("base", hook)}
    (found,) = listed("chain", T6)
    assert (found["type"], found["hook"], found["prio"], found["policy"]) == (
        hook.type,
        name,
        hook.priority,
        "accept",
    )


def test_chains_come_and_go(kernel: NftKernel) -> None:
    to_b = x.verdict(m.verdict(m.JUMP, "b"))
    kernel.commit(
        [
            m.add_table(T4),
            m.add_chain(T4, "b", comment="said"),
            m.add_chain(T4, "a"),
            m.add_rule(T4, "a", to_b),
        ]
    )
    assert list(objects.chains(kernel, T4)) == ["b", "a"]
    assert 'comment "said"' in nft("list", "chain", "ip", "t", "b")
    with pytest.raises(
        TransactionRefusedError, match="delete chain ip t b: Device or resource busy"
    ) as caught:
        kernel.commit([m.flush_chain(T4, "b"), m.delete_chain(T4, "b")])
    assert (caught.value.errno, caught.value.index) == (errno.EBUSY, 1)
    kernel.commit([m.flush_chain(T4, "a")])
    kernel.commit([m.delete_chain(T4, "b")])
    assert list(objects.chains(kernel, T4)) == ["a"]


def test_a_rule_s_userdata(kernel: NftKernel) -> None:
    comment = "ä" * 100
    drop = x.verdict(m.verdict(m.DROP))
    kernel.commit(
        [
            m.add_table(T4),
            m.add_chain(T4, "a"),
            m.add_rule(T4, "a", drop, comment=comment, digest=b"12345678"),
            m.add_rule(T4, "a", drop),
        ]
    )
    first, second = objects.rules(kernel, T4)
    assert (first.chain, first.digest, second.digest) == ("a", b"12345678", b"")
    assert listed("rule")[0]["comment"] == "ä" * 63, "cut to what nft prints, and not within a character"


NO_PACKETS = " packets 0 bytes 0"
"""What nft prints behind a counter, and we do not."""

STEPS: Sequence[tuple[TableName, tuple[bytes, ...], str]] = [
    (T4, (x.payload(0, x.NETWORK_HEADER, 12, 4), x.compare(0, ip("10.0.0.1"))), "ip saddr 10.0.0.1"),
    (T4, (x.payload(1, x.NETWORK_HEADER, 16, 4), x.compare(1, ip("10.0.0.1"), x.NOT_EQUAL)), "ip daddr != 10.0.0.1"),
    (T6, (x.payload(0, x.NETWORK_HEADER, 8, 16), x.compare(0, ip("fd00::1"))), "ip6 saddr fd00::1"),
    (T6, (x.payload(4, x.NETWORK_HEADER, 24, 16), x.compare(4, ip("fd00::1"))), "ip6 daddr fd00::1"),
    (T4, (x.payload(0, x.NETWORK_HEADER, 12, 4), x.bitwise(0, ip("255.255.240.0"), bytes(4)), x.compare(0, ip("10.1.16.0"))), "ip saddr 10.1.16.0/20"),
    (T6, (x.payload(0, x.NETWORK_HEADER, 8, 16), x.bitwise(0, ip("ffff:f000::"), bytes(16)), x.compare(0, ip("fd00::"))), "ip6 saddr fd00::/20"),
    (T4, (x.meta(0, x.META_INPUT_NAME), x.compare(0, b"cni0".ljust(16, b"\0"))), 'iifname "cni0"'),
    (T4, (x.meta(0, x.META_INPUT_NAME), x.compare(0, b"cali", x.NOT_EQUAL)), 'iifname != "cali*"'),
    (T4, (x.meta(0, x.META_L4PROTO), x.compare(0, b"\x84")), "meta l4proto sctp"),
    (T4, (x.meta(0, x.META_MARK), x.bitwise(0, host(~0x4000 & 0xFFFFFFFF), host(0x4000)), x.set_meta(0, x.META_MARK)), "meta mark set meta mark | 0x00004000"),
    (T4, (x.meta(0, x.META_MARK), x.bitwise(0, host(0xFFFFFFFF), host(0x4000)), x.set_meta(0, x.META_MARK)), "meta mark set meta mark ^ 0x00004000"),
    (T4, (x.meta(0, x.META_MARK), x.bitwise(0, host(0x4000), host(0)), x.compare(0, host(0), x.NOT_EQUAL)), "meta mark & 0x00004000 != 0x00000000"),
    (T4, (x.ct(0, x.CT_STATE), x.bitwise(0, host(x.CT_NEW), host(0)), x.compare(0, host(0), x.NOT_EQUAL)), "ct state new"),
    (T4, (x.ct(0, x.CT_STATUS), x.bitwise(0, host(x.CT_DNAT), host(0)), x.compare(0, host(0), x.NOT_EQUAL)), "ct status dnat"),
    (T4, (x.meta(0, x.META_L4PROTO), x.compare(0, b"\x06"), x.counter()), "meta l4proto tcp counter"),
    (T4, (x.number(0, 5), x.compare(0, host(0))), "numgen random mod 5 0"),
    (T4, (x.fib_type(0, destination=False), x.compare(0, host(x.LOCAL))), "fib saddr type local"),
    (T6, (x.fib_type(0, destination=True), x.compare(0, host(x.LOCAL))), "fib daddr type local"),
    (T4, (x.payload(0, x.NETWORK_HEADER, 12, 4), x.lookup("clients", 0)), "ip saddr @clients"),
    (T4, (x.payload(0, x.NETWORK_HEADER, 12, 4), x.lookup("clients", 0, inverted=True)), "ip saddr != @clients"),
    (T4, (x.payload(0, x.NETWORK_HEADER, 12, 4), x.update("clients", 0)), "update @clients { ip saddr }"),
    (T4, (x.payload(0, x.NETWORK_HEADER, 16, 4), x.meta(1, x.META_L4PROTO), x.payload(2, x.TRANSPORT_HEADER, 2, 2), x.lookup_verdict("fronts", 0)), "ip daddr . meta l4proto . th dport vmap @fronts"),
    (T4, (x.payload(0, x.NETWORK_HEADER, 16, 4), x.number(1, 7), x.lookup("endpoints", 0, 0), x.dnat(m.IP, 0, 1)), "dnat ip to ip daddr . numgen random mod 7 map @endpoints"),
    (T4, (x.meta(0, x.META_L4PROTO), x.compare(0, b"\x06"), x.immediate(0, ip("10.0.0.1")), x.immediate(1, b"\x1f\x90"), x.dnat(m.IP, 0, 1)), "meta l4proto tcp dnat to 10.0.0.1:8080"),
    (T6, (x.meta(0, x.META_L4PROTO), x.compare(0, b"\x11"), x.immediate(0, ip("fd00::1")), x.immediate(4, b"\0\x35"), x.dnat(m.IP6, 0, 4)), "meta l4proto udp dnat to [fd00::1]:53"),
    (T4, (x.reject(m.IP),), "reject"),
    (T6, (x.reject(m.IP6),), "reject"),
    (T4, (x.verdict(m.verdict(m.DROP)),), "drop"),
    (T4, (x.verdict(m.verdict(m.ACCEPT)),), "accept"),
    (T4, (x.verdict(m.verdict(m.RETURN)),), "return"),
    (T4, (x.verdict(m.verdict(m.JUMP, "b")),), "jump b"),
    (T4, (x.verdict(m.verdict(m.GOTO, "b")),), "goto b"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "steps", "words"), STEPS, ids=[words for *_, words in STEPS])
def test_a_step(kernel: NftKernel, table: TableName, steps: tuple[bytes, ...], words: str) -> None:
    """By nft's reading and by ours, of what we wrote and of what the kernel lists."""
    nat = any(b"nat\0" in step for step in steps)
    hook = Hook("nat", m.PREROUTING, -100) if nat else Hook("filter", m.INPUT, 0)
    _one_rule(kernel, table, hook, steps, words)


def test_masquerading(kernel: NftKernel) -> None:
    _one_rule(kernel, T4, Hook("nat", m.POSTROUTING, 100), (x.masquerade(),), "masquerade fully-random")


def _one_rule(kernel: NftKernel, table: TableName, hook: Hook, steps: tuple[bytes, ...], words: str) -> None:
    address = ADDRESS4 if table is T4 else ADDRESS6
    around = [
        m.add_table(table),
        m.add_set(table, "clients", (address,), flags=m.TIMEOUT | m.EVAL, timeout=10_000, size=100),
        m.add_set(table, "fronts", (address, PROTOCOL, SERVICE), ()),
        m.add_set(table, "endpoints", (address, below(7)), (address, SERVICE)),
        m.add_chain(table, "b"),
        m.add_chain(table, "a", hook),
    ]
    written = m.add_rule(table, "a", *steps)
    kernel.commit([*around, written])
    (body,) = kernel.dump(m.GETRULE, table.family, wire.text(1, "t"))
    assert _first_rule(nft("list", "chain", *str(table).split(), "a")) == words
    for rule in written, NftMessage(m.NEWRULE, 0, table.family, bytes(body), ""):
        assert _first_rule(text.render([*around, rule]).partition("chain a {")[2]) == words


def _first_rule(listing: str) -> str:
    return listing.replace(NO_PACKETS, "").partition("policy accept;\n")[2].partition("\n")[0].strip()


ROUND: Sequence[tuple[tuple[Type, ...], tuple[Type, ...] | None, int, list[bytes], list[str]]] = [
    ((ADDRESS4,), None, 0, [packing.member(ip("10.0.0.1")), packing.member(ip("10.0.0.2"), "a/b")], ["10.0.0.1", '10.0.0.2 comment "a/b"']),
    ((ADDRESS6, ADDRESS6, PROTOCOL, SERVICE), None, 0, [packing.member(2 * ip("fd00::1") + packing.node_port("SCTP", 9))], ["fd00::1 . fd00::1 . sctp . 9"]),
    (FRONT, (), 0, [packing.goto(packing.front("10.0.0.1", "UDP", 53), "b", "a/b:dns"), packing.goto(packing.front("10.0.0.1", "TCP", 53), "b")], ['10.0.0.1 . udp . 53 comment "a/b:dns" : goto b', "10.0.0.1 . tcp . 53 : goto b"]),
    ((*FRONT, below(2)), (ADDRESS4, SERVICE), 0, packing.EndpointElements("IPv4", 12).elements(packing.front("10.0.0.1", "TCP", 80), [packing.EndpointElements("IPv4", 12).tail("10.1.0.9", 8080)] * 2), ["10.0.0.1 . tcp . 80 . 0 : 10.1.0.9 . 8080", "10.0.0.1 . tcp . 80 . 1 : 10.1.0.9 . 8080"]),
    ((PROTOCOL, SERVICE, below(1)), (ADDRESS6, SERVICE), 0, packing.EndpointElements("IPv6", 8).elements(packing.node_port("TCP", 30000), [packing.EndpointElements("IPv6", 8).tail("fd00::9", 1)]), ["tcp . 30000 . 0 : fd00::9 . 1"]),
    ((*FRONT, below(1)), (ADDRESS4, SERVICE), 0, packing.EndpointElements("IPv4", 12, counted=True).elements(packing.front("10.0.0.2", "TCP", 80), [packing.EndpointElements("IPv4", 12, counted=True).tail("10.1.0.9", 8080)]), ["10.0.0.2 . tcp . 80 . 0 counter : 10.1.0.9 . 8080"]),
    ((ADDRESS4,), None, m.INTERVAL, [packing.boundary(ip("10.0.0.0"), end=False), packing.boundary(ip("10.1.0.0"), end=True), packing.boundary(ip("10.2.0.3"), end=False), packing.boundary(ip("10.2.0.6"), end=True)], ["10.0.0.0/16", "10.2.0.3-10.2.0.5"]),
    ((*FRONT, ADDRESS4), None, m.INTERVAL, [packing.between(packing.front("10.0.0.1", "TCP", 80) + ip("10.1.0.0"), packing.front("10.0.0.1", "TCP", 80) + ip("10.1.0.255")), packing.between(packing.front("10.0.0.1", "TCP", 80) + ip("10.2.0.1"), packing.front("10.0.0.1", "TCP", 80) + ip("10.2.0.3"))], ["10.0.0.1 . tcp . 80 . 10.1.0.0/24", "10.0.0.1 . tcp . 80 . 10.2.0.1-10.2.0.3"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "data", "flags", "elements", "words"), ROUND, ids=[words[0] for *_, words in ROUND]
)
def test_sets_and_elements(
    kernel: NftKernel,
    key: tuple[Type, ...],
    data: tuple[Type, ...] | None,
    flags: int,
    elements: list[bytes],
    words: list[str],
) -> None:
    """What we pack is, to the byte, what the kernel lists."""
    around = [m.add_table(T4), m.add_chain(T4, "b")]
    made = m.add_set(T4, "s", key, data, flags=flags, comment="what it holds")
    added = m.add_elements(T4, "s", elements)
    kernel.commit([*around, made, *added])
    assert sorted(objects.elements(kernel, T4, "s")) == sorted(elements)
    printed = _elements(nft("list", "table", "ip", "t"))
    assert printed == _elements(text.render([*around, made, *added])) == sorted(words)
    assert 'comment "what it holds"' in nft("list", "table", "ip", "t")
    kind = "map" if data is not None else "set"
    assert [found["name"] for found in listed(kind)] == ["s"]
    kernel.commit([*m.delete_elements(T4, "s", elements[:1] if flags == 0 else elements)])
    assert sorted(objects.elements(kernel, T4, "s")) == sorted(elements[1:] if flags == 0 else [])
    kernel.commit([m.delete_set(T4, "s")])
    assert objects.sets(kernel, T4) == {}


def _elements(listing: str) -> list[str]:
    listing = listing.replace(NO_PACKETS, "")
    found = listing.partition("elements = {")[2].partition("}")[0].split(",")
    return sorted(" ".join(each.split()) for each in found if each.strip())


def test_a_set_that_forgets(kernel: NftKernel) -> None:
    kernel.commit(
        [
            m.add_table(T4),
            m.add_set(T4, "s", (ADDRESS4,), flags=m.TIMEOUT | m.EVAL, timeout=90_061_000, size=65535),
        ]
    )
    found = objects.sets(kernel, T4)["s"]
    assert (found.flags, found.timeout, found.key_type, found.data_type) == (
        m.TIMEOUT | m.EVAL,
        90_061_000,
        7,
        0,
    )
    listing = nft("list", "table", "ip", "t").split()
    assert {"1d1h1m1s", "65535", "dynamic,timeout"} <= set(listing)


def test_a_long_list_of_elements_takes_several_messages(kernel: NftKernel) -> None:
    """An attribute has at most 65,535 bytes."""
    elements = [packing.member(number.to_bytes(4), "x" * 120) for number in range(5000)]
    added = m.add_elements(T4, "s", elements)
    assert len(added) > 10
    kernel.commit([m.add_table(T4), m.add_set(T4, "s", (ADDRESS4,)), *added])
    assert sorted(objects.elements(kernel, T4, "s")) == sorted(elements)
    kernel.commit(m.delete_elements(T4, "s", elements))
    assert list(objects.elements(kernel, T4, "s")) == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (m.delete_table(TableName(m.IP, "none")), errno.ENOENT),
        (m.add_chain(TableName(m.IP, "none"), "c"), errno.ENOENT),
        (m.delete_chain(T4, "none"), errno.ENOENT),
        (m.flush_chain(T4, "none"), errno.ENOENT),
        (m.add_rule(T4, "none"), errno.ENOENT),
        (m.add_rule(T4, "a", x.payload(0, x.NETWORK_HEADER, 12, 4), x.lookup("none", 0)), errno.ENOENT),
        (m.add_rule(T4, "a", x.verdict(m.verdict(m.GOTO, "none"))), errno.ENOENT),
        (m.add_set(TableName(m.IP, "none"), "s", (ADDRESS4,)), errno.ENOENT),
        (m.delete_set(T4, "none"), errno.ENOENT),
        (m.add_elements(T4, "none", [packing.member(bytes(4))])[0], errno.ENOENT),
        (m.delete_elements(T4, "s", [packing.member(bytes(4))])[0], errno.ENOENT),
        (m.add_elements(T4, "v", [packing.goto(bytes(4), "none")])[0], errno.ENOENT),
        (m.add_elements(T4, "v", [packing.goto(ip("10.0.0.1"), "a")])[0], errno.EEXIST),
        (m.add_elements(T4, "s", [packing.member(bytes(8))])[0], errno.EINVAL),
    ],
    ids=lambda value: value.about if isinstance(value, NftMessage) else errno.errorcode[value],
)
def test_a_refusal_names_its_message_and_nothing_is_done(
    kernel: NftKernel, message: NftMessage, code: int
) -> None:
    """The kernel in memory refuses the same."""
    before = [
        m.add_table(T4),
        *(m.add_chain(T4, name) for name in "ab"),
        m.add_set(T4, "s", (ADDRESS4,)),
        m.add_set(T4, "v", (ADDRESS4,), ()),
        *m.add_elements(T4, "v", [packing.goto(ip("10.0.0.1"), "b")]),
    ]
    many = [m.add_chain(T4, f"new-{i}") for i in range(300)]
    for each in (kernel, FakeNftKernel()) if code != errno.EINVAL else (kernel,):
        each.commit(before)
        generation = each.generation()
        with pytest.raises(TransactionRefusedError) as caught:
            each.commit([*many, message, m.add_chain(T4, "last")])
        assert (caught.value.message, caught.value.index, caught.value.errno) == (message, 300, code)
        assert str(caught.value).startswith(f"[Errno {code}] {message.about}: ")
        assert each.generation() == generation
        assert list(objects.chains(each, T4)) == ["a", "b"]
        each.commit(many)
        assert len(objects.chains(each, T4)) == 302
