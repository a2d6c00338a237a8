"""bpf(2): maps, programs, pins and links, on the real kernel."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.linux.bpf import maps, pins, programs, syscall
from kubeproxy.linux.bpf.assembler import FP, R0, R1, R2, R3, R6, Assembler, Helper
from kubeproxy.linux.bpf.btf import Layout, integer
from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces
from kubeproxy.linux.bpf.maps import BpfObject, HashMap, MapSpec, WordArray
from kubeproxy.linux.bpf.syscall import VerifierError
from kubeproxy.machine.linux import LinuxMachine
from tests.kernel import bpffs
from tests.kernel.daemons import until
from tests.machines import MACHINE

KEY = Layout("key", (("address", "__be32"), ("port", "__be16"), ("zero", "__u16")))
HASH = MapSpec("kp_test", "hash", KEY, integer("__u64"), 10_000)


@pytest.fixture
def places() -> Iterator[BpfPlaces]:
    with bpffs.places() as found:
        yield found


def test_a_hash_map_is_read_and_written_many_elements_at_once() -> None:
    table = HashMap(HASH.create())
    wanted = {i.to_bytes(8): (2 * i).to_bytes(8) for i in range(9_000)}
    table.put(wanted.items())
    assert dict(table.items()) == wanted
    table.delete([(7).to_bytes(8), bytes(7) + b"\xff"])
    assert table.get((7).to_bytes(8)) is None
    assert table.get((8).to_bytes(8)) == (16).to_bytes(8)
    with pytest.raises(OSError) as refused:
        table.put((i.to_bytes(8), bytes(8)) for i in range(20_000))
    assert refused.value.errno == errno.E2BIG


def test_an_array_is_memory() -> None:
    array = WordArray(MapSpec("kp_words", "array", integer("__u32"), integer("__u64"), 1000).create())
    array.words[999] = 7
    assert syscall.lookup(array.fd, (999).to_bytes(4, "little"), 8) == (7).to_bytes(8, "little")
    array.close()


def test_what_is_pinned_is_found_again_and_can_be_replaced(places: BpfPlaces) -> None:
    folder = BpfHost(MACHINE, places).folder("v1")
    assert folder.names() == []
    assert folder.get("table") is None
    first, second = HashMap(HASH.create()), HashMap(HASH.create())
    for each in (first, second):
        folder.put("table", each)
    found = folder.get("table")
    assert found is not None
    assert maps.info(found.fd).number == maps.info(second.fd).number
    assert HASH.fits(maps.info(found.fd))
    assert folder.names() == ["table"]
    assert folder.clear()
    assert not folder.clear()


def _refusing(result: int) -> Assembler:
    """connect4 to port 4444 is refused with an error."""
    a = Assembler("refusing").c("int refusing(ctx)").set(R6, R1)
    a.load(R1, R6, 24, 4).jump("!=", R1, socket.htons(4444), "pass")
    a.set(R1, -result).call(Helper.SET_RETVAL).exit(0)
    return a.label("pass").exit(1)


def _load(a: Assembler) -> BpfObject:
    return BpfObject(programs.load(a.assemble(), "connect4", {}, "test"))


def test_a_link_changes_its_program_and_ends_with_its_pin(places: BpfPlaces) -> None:
    host = BpfHost(MACHINE, places)
    folder, cgroup = host.folder("v1"), host.open_cgroup()

    def error() -> int:
        with bpffs.inside(places), socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", 4444))

    try:
        link = pins.attach(_load(_refusing(errno.EXDEV)), cgroup, "connect4")
        folder.put("link", link)
        assert error() == errno.EXDEV
        other = _load(_refusing(errno.EDOM))
        syscall.update_link(link.fd, other.fd)
        assert error() == errno.EDOM
        there = pins.linked(link.fd)
        assert (there.program, there.cgroup) == (pins.loaded(other.fd).number, os.fstat(cgroup).st_ino)
        assert pins.others(cgroup, {"connect4": frozenset()})[there.program] == "refusing"
        assert there.program not in pins.others(cgroup, {"connect4": frozenset({there.program})})
        link.close()
        assert error() == errno.EDOM, "the pin keeps it"
        folder.clear()
        until(lambda: error() == errno.ECONNREFUSED)  # the kernel detaches it a moment later
    finally:
        os.close(cgroup)


def test_a_refused_program_is_explained_with_our_labels_and_c() -> None:
    a = Assembler("wrong").c("int wrong(ctx)").set(R0, 1).jump("==", R0, 1, "bad").exit()
    a.label("bad").c("return *nothing;").load(R0, R3, 0, 8).exit()
    with pytest.raises(VerifierError) as refused:
        _load(a)
    text = str(refused.value)
    assert "program wrong" in text
    assert "return *nothing;" in text
    assert "bad:" in text
    assert "R3 !read_ok" in text


def test_a_program_runs_without_being_attached() -> None:
    """A program for sk_lookup, whose context is struct bpf_sk_lookup: it counts, and passes."""
    counts = WordArray(MapSpec("kp_count", "array", integer("__u32"), integer("__u64"), 1).create())
    a = Assembler("counting").c("int counting(ctx)")
    a.store(FP, -4, 0, 4).set(R2, FP).compute(R2, "+=", -4).map(R1, "counts").call(Helper.MAP_LOOKUP_ELEM)
    a.jump("==", R0, 0, "out").set(R1, 3).atomic_add(R0, 0, R1).label("out").exit(1)
    fd = BpfObject(programs.load(a.assemble(), "sk_lookup", {"counts": counts.fd}, "test"))
    context = bytearray(72)
    context[8:12] = int(socket.AF_INET).to_bytes(4, "little")
    context[12:16] = int(socket.IPPROTO_TCP).to_bytes(4, "little")
    assert syscall.run_program(fd.fd, b"", bytes(context)) == 1
    assert counts.words[0] == 3


def test_a_namespace_has_a_cookie_of_its_own(space: str) -> None:
    other = LinuxMachine(Path("/run/netns", space))
    assert BpfHost(MACHINE, BpfPlaces()).cookie() != BpfHost(other, BpfPlaces()).cookie()
