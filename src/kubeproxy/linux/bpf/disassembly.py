"""Programs as text: each instruction in the form of the kernel's verifier, below the C that it stands for."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from kubeproxy.linux.bpf.assembler import (
    ALU32,
    ALU64,
    ATOMIC,
    CALL,
    CONDITIONS,
    EXIT,
    FROM_REGISTER,
    JMP,
    JMP32,
    LDX,
    OPERATIONS,
    SIZES,
    ST,
    STX,
    WIDE,
    Assembled,
    Helper,
    Instruction,
)

_CLASS: Final = 0x07
_CODE: Final = 0xF0
_SIZE: Final = 0x18
_TYPES: Final = {code: f"u{8 * size}" for size, code in SIZES.items()}
_CONDITION_OF: Final = {code: text for text, code in CONDITIONS.items()}
_OPERATION_OF: Final = {code: text for text, code in OPERATIONS.items()}


def listing(program: Assembled) -> list[str]:
    """The lines of a program: its labels, the C, the instructions."""
    labels = defaultdict(list)
    for name, index in program.labels.items():
        labels[index].append(f"{name}:")
    return list(_lines(program, labels))


def _lines(program: Assembled, labels: dict[int, list[str]]) -> Iterator[str]:
    targets = {index: name for name, index in program.labels.items()}
    second = False
    for index, each in enumerate(program.instructions):
        yield from labels[index]
        if index in program.lines:
            yield f"    ; {program.lines[index]}"
        if second:
            second = False
            continue
        second = each.code == WIDE
        yield f"{index:4}: {_text(program, index, each, targets)}"


def _text(program: Assembled, index: int, each: Instruction, labels: dict[int, str]) -> str:
    target, source = f"r{each.target}", f"r{each.source}"
    kind, code = each.code & _CLASS, each.code & _CODE
    value = source if each.code & FROM_REGISTER else str(each.constant)
    memory = f"*({_TYPES[each.code & _SIZE]} *)"
    if each.code == WIDE:
        if index in program.maps:
            return f"{target} = map {program.maps[index]}"
        return f"{target} = {program.instructions[index + 1].constant << 32 | each.constant:#x} ll"
    if each.code == CALL:
        return f"call {Helper(each.constant).name.lower()}#{each.constant}"
    if each.code == EXIT:
        return "exit"
    if each.code == ATOMIC | SIZES[8]:
        return f"lock {memory}({target} {each.offset:+}) += {source}"
    if kind == LDX & _CLASS:
        return f"{target} = {memory}({source} {each.offset:+})"
    if kind == STX & _CLASS:
        return f"{memory}({target} {each.offset:+}) = {source}"
    if kind == ST & _CLASS:
        return f"{memory}({target} {each.offset:+}) = {each.constant}"
    if kind in {ALU64, ALU32}:
        return f"{target if kind == ALU64 else f'w{each.target}'} {_OPERATION_OF[code]} {value}"
    assert kind in {JMP, JMP32}
    goto = f"goto {labels[index + 1 + each.offset]}"
    if code == 0:
        return goto
    left = target if kind == JMP else f"w{each.target}"
    return f"if {left} {_CONDITION_OF[code]} {value} {goto}"
