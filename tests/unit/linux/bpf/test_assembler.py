"""Programs as values: what is assembled, and how it is printed."""

import struct

import pytest

from kubeproxy.linux.bpf import btf
from kubeproxy.linux.bpf.assembler import FP, R0, R1, R2, R6, Assembler, Helper
from kubeproxy.linux.bpf.btf import Layout
from kubeproxy.linux.bpf.disassembly import listing
from kubeproxy.linux.bpf.programs import labelled


def program() -> Assembler:
    """Something of everything."""
    a = Assembler("sample")
    a.c("int sample(ctx)").set(R6, R1)
    a.c("key = ctx->port;").load(R1, R6, 24, 4).store(FP, -4, R1, 4).store(FP, -8, 7, 2)
    a.c("value = lookup(&ports, &key);").set(R2, FP).compute(R2, "+=", -4).map(R1, "ports")
    a.call(Helper.MAP_LOOKUP_ELEM).jump("==", R0, 0, "out")
    a.c("count").wide(R1, 0x1122334455667788).compute(R1, "%=", R2, bits=32).atomic_add(R0, 0, R1)
    a.jump("&", R1, R2, "out", bits=32).goto("out")
    a.label("out").exit(1)
    return a


GOLDEN = """\
    ; int sample(ctx)
   0: r6 = r1
    ; key = ctx->port;
   1: r1 = *(u32 *)(r6 +24)
   2: *(u32 *)(r10 -4) = r1
   3: *(u16 *)(r10 -8) = 7
    ; value = lookup(&ports, &key);
   4: r2 = r10
   5: r2 += -4
   6: r1 = map ports
   8: call map_lookup_elem#1
   9: if r0 == 0 goto out
    ; count
  10: r1 = 0x1122334455667788 ll
  12: w1 %= r2
  13: lock *(u64 *)(r0 +0) += r1
  14: if w1 & r2 goto out
  15: goto out
out:
  16: r0 = 1
  17: exit""".splitlines()


def test_a_program_is_printed_with_its_c() -> None:
    assert listing(program().assemble()) == GOLDEN


def test_the_code_is_that_of_the_specification() -> None:
    """Checked by hand against RFC 9669; a map's descriptor is inserted."""
    code = program().assemble().code({"ports": 5})
    assert len(code) == 8 * 18
    assert code[:8] == bytes.fromhex("bf16000000000000")
    assert code[8:16] == bytes.fromhex("6161180000000000")
    assert code[16:24] == bytes.fromhex("631afcff00000000")
    assert code[48:64] == bytes.fromhex("18110000050000000000000000000000")
    assert code[9 * 8 : 10 * 8] == bytes.fromhex("1500060000000000")
    assert code[13 * 8 : 14 * 8] == bytes.fromhex("db10000000000000")
    assert code[17 * 8 :] == bytes.fromhex("9500000000000000")


def test_a_label_that_is_missing_or_used_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="no label nowhere"):
        Assembler("a").goto("nowhere").assemble()
    with pytest.raises(ValueError, match="here is used twice"):
        Assembler("a").label("here").label("here")


def test_a_jump_that_is_too_long_is_refused() -> None:
    a = Assembler("a").goto("end")
    for _ in range(1 << 15):
        a.set(R0, 0)
    with pytest.raises(ValueError, match="too far"):
        a.label("end").exit().assemble()


def test_layouts_have_sizes_and_types() -> None:
    key = Layout("key", (("address", "__u8[16]"), ("port", "__be16"), ("zero", "__u8[6]")))
    assert key.size == 24
    blob, (number, same) = btf.layouts(key, key)
    assert number == same
    magic, version, _, head, _, types, at, strings = struct.unpack_from("=HBBIIIII", blob)
    assert (magic, version, at) == (0xEB9F, 1, types)
    assert len(blob) == head + types + strings
    for name in (b"key", b"address", b"port", b"__be16"):
        assert b"\0" + name + b"\0" in blob[head + types :]


def test_the_log_of_the_verifier_gets_our_labels() -> None:
    log = "0: R1=ctx() R10=fp0\n15: (05) goto pc+0\n16: (b7) r0 = 1\nprocessed 3 insns"
    assert labelled(program().assemble(), log).splitlines()[2:4] == ["out:", "16: (b7) r0 = 1"]
