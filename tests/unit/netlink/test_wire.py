"""Netlink messages against a socket whose other end is the test. With the real kernel: tests/kernel/test_netlink.py."""

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.netlink import wire
from kubeproxy.netlink.wire import NetlinkError
from tests.machines import MACHINE

INTERRUPTED, CAPPED, TLVS = 0x10, 0x100, 0x200
kinds = st.integers(0, 0x3FFF)
values = st.binary(max_size=70)


@given(st.lists(st.tuples(kinds, values)))
def test_attributes_round_trip(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(wire.attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert [(kind, bytes(value)) for kind, value in wire.attribute_list(data)] == pairs
    assert {kind: bytes(value) for kind, value in wire.attributes(data).items()} == dict(pairs)


@given(kinds, st.lists(st.tuples(kinds, values)))
def test_nested_attributes_round_trip(kind: int, pairs: list[tuple[int, bytes]]) -> None:
    data = wire.nested(kind, *(wire.attribute(k, v) for k, v in pairs))
    assert struct.unpack_from("=HH", data) == (len(data), kind | 0x8000), "it says that it is nested"
    ((found, inner),) = wire.attribute_list(data)
    assert found == kind
    assert [(k, bytes(v)) for k, v in wire.attribute_list(inner)] == pairs


@given(kinds, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_text_round_trips(kind: int, text: str) -> None:
    ((found, value),) = wire.attribute_list(wire.text(kind, text))
    assert (found, wire.string(value)) == (kind, text)
    assert bytes(value).endswith(b"\0")


def test_numbers_are_in_network_order() -> None:
    assert wire.be32(5, 0x01020304) == b"\x08\0\x05\0\x01\x02\x03\x04"
    assert wire.be64(5, 1) == b"\x0c\0\x05\0" + bytes(7) + b"\1"


@given(st.binary(max_size=60))
def test_attributes_of_any_bytes_end(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        for _, value in wire.attribute_list(data):
            assert len(value) <= len(data) - 4


@pytest.mark.parametrize("length", [0, 3, 9, 0xFFFF])
def test_an_attribute_of_impossible_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"attribute 7 at 8 claims {length} of 16 bytes"):
        wire.attributes(wire.be32(1, 1) + struct.pack("=HH", length, 7) + bytes(4))


class Rig:
    """A netlink socket whose kernel is a list of datagrams."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(30)
        self.socket = wire.Socket(MACHINE, wire.ROUTE)
        self.socket._socket.close()
        monkeypatch.setattr(self.socket, "_socket", ours)

    def answer(self, *datagrams: Sequence[bytes]) -> None:
        for messages in datagrams:
            self.kernel.send(b"".join(messages))


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(monkeypatch)
    with made.kernel, made.socket:
        yield made


def error(code: int, sequence: int, flags: int = 0, rest: bytes = bytes(16)) -> bytes:
    return wire.message(wire.ERROR, flags, struct.pack("=i", -code) + rest, sequence)


def done(sequence: int, code: int = 0, flags: int = 0) -> bytes:
    return wire.message(wire.DONE, flags, struct.pack("=i", -code), sequence)


def test_a_request_is_sent_and_its_answers_are_collected(rig: Rig) -> None:
    rig.answer(
        [wire.message(21, 0, b"aaaa", 7), error(errno.EPERM, 7)],  # of somebody else
        [wire.message(20, 0, b"bbbb", 1), wire.message(20, 0, b"cccc", 1)],
        [wire.message(20, 0, b"dddd", 1), error(0, 1)],
    )
    replies = rig.socket.request(18, b"body", wire.CREATE)
    assert [bytes(reply.body) for reply in replies] == [b"bbbb", b"cccc", b"dddd"]
    sent = rig.kernel.recv(100)
    assert wire.HEADER.unpack_from(sent) == (20, 18, wire.REQUEST | wire.ACK | wire.CREATE, 1, 0)
    assert sent[16:] == b"body"


def test_every_request_has_a_number_of_its_own(rig: Rig) -> None:
    rig.answer([error(0, 1)], [error(0, 1), error(0, 2)])
    rig.socket.request(1, b"")
    rig.socket.request(1, b"")
    numbers = [wire.HEADER.unpack_from(rig.kernel.recv(100))[3] for _ in range(2)]
    assert numbers == [1, 2]


def test_a_refusal_is_raised_with_the_kernel_s_words(rig: Rig) -> None:
    request = wire.HEADER.pack(20, 18, 0, 1, 0) + b"body"
    words = wire.text(1, "no such thing") + wire.attribute(2, struct.pack("=I", 36))
    rig.answer([error(errno.ENOENT, 1, TLVS, request + words)])
    with pytest.raises(NetlinkError) as caught:
        rig.socket.request(18, b"body")
    e = caught.value
    assert (e.errno, e.detail, e.sequence, e.offset) == (errno.ENOENT, "no such thing", 1, 36)
    assert str(e) == f"[Errno {errno.ENOENT}] No such file or directory (no such thing)"
    rig.answer([error(errno.EEXIST, 2, TLVS | CAPPED, request[:16] + words)])
    with pytest.raises(NetlinkError, match="no such thing"):
        rig.socket.request(18, b"body")
    rig.answer([error(errno.EEXIST, 3)])
    with pytest.raises(NetlinkError) as caught:
        rig.socket.request(18, b"body")
    assert (caught.value.detail, caught.value.offset) == ("", 0)


def test_a_dump_is_read_to_its_end(rig: Rig) -> None:
    rig.answer(
        [wire.message(20, 2, b"aaaa", 1), wire.message(20, 2, b"bbbb", 9)],
        [wire.message(20, 2, b"cccc", 1)],
        [done(1)],
    )
    assert [bytes(m.body) for m in rig.socket.dump(22, b"")] == [b"aaaa", b"cccc"]
    _, _, flags, _, _ = wire.HEADER.unpack_from(rig.kernel.recv(100))
    assert flags == wire.REQUEST | wire.DUMP


@pytest.mark.parametrize("where", [0, 1])
def test_a_dump_that_a_change_ran_into_is_told(rig: Rig, where: int) -> None:
    flags = [0, INTERRUPTED]
    rig.answer([wire.message(20, flags[where], b"aaaa", 1)], [done(1, flags=flags[1 - where])], [error(0, 2)])
    seen: list[bytes] = []
    with pytest.raises(NetlinkError) as caught:
        seen.extend(bytes(m.body) for m in rig.socket.dump(22, b""))
    assert caught.value.errno == errno.EINTR
    assert rig.socket.request(1, b"") == [], "it was read to its end; the next answer is the next one's"


def test_a_dump_that_fails_in_its_midst(rig: Rig) -> None:
    rig.answer([wire.message(20, 2, b"aaaa", 1), done(1, errno.ENOMEM)])
    with pytest.raises(NetlinkError) as caught:
        list(rig.socket.dump(22, b""))
    assert caught.value.errno == errno.ENOMEM


def test_a_dump_that_is_refused(rig: Rig) -> None:
    rig.answer([error(errno.EOPNOTSUPP, 1)])
    with pytest.raises(NetlinkError) as caught:
        list(rig.socket.dump(22, b""))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_dump_nobody_reads_on_does_not_disturb_the_next_request(rig: Rig) -> None:
    rig.answer([wire.message(20, 2, b"aaaa", 1)], [wire.message(20, 2, b"bbbb", 1), done(1)], [error(0, 2)])
    assert bytes(next(rig.socket.dump(22, b"")).body) == b"aaaa"
    assert rig.socket.request(1, b"") == []


def test_without_waiting_nothing_is_nothing(rig: Rig) -> None:
    assert list(rig.socket.receive(wait=False)) == []
    rig.answer([wire.message(20, 0, b"aaaa", 0)])
    assert [m.type for m in rig.socket.receive(wait=False)] == [20]


@pytest.mark.parametrize("length", [0, 15, 21, 1 << 31])
def test_a_message_of_impossible_length(rig: Rig, length: int) -> None:
    rig.answer([wire.message(20, 0, b"aaaa", 0), wire.HEADER.pack(length, 1, 0, 0, 0) + bytes(4)])
    with pytest.raises(ValueError, match=f"message 1 at 20 claims {length} of 40 bytes"):
        list(rig.socket.receive())


@given(data=st.binary(min_size=1, max_size=80))
def test_datagrams_of_any_bytes_end(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        rig = Rig(monkeypatch)
        with rig.kernel, rig.socket:
            rig.kernel.send(data)
            with contextlib.suppress(ValueError):
                assert sum(16 + len(m.body) for m in rig.socket.receive()) <= len(data)


def test_what_exceeds_the_buffer_is_sent_with_a_larger_one() -> None:
    with wire.Socket(MACHINE, wire.ROUTE) as kernel:
        noop = wire.message(wire.NOOP, 0, bytes(1 << 16), 0)
        kernel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        with pytest.raises(OSError, match="Message too long"):
            kernel._socket.send(noop * 4)
        kernel.send(noop * 4)


def test_a_failure_to_send_is_raised(rig: Rig) -> None:
    rig.kernel.close()
    with pytest.raises(BrokenPipeError):
        rig.socket.send(b"x")
