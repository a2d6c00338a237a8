"""An assembler for eBPF: each method appends an instruction, jumps lead to labels.

A program is a value: the same calls give the same bytes. Maps are referred to by name, and the loader inserts
their descriptors. `c` gives the line of C that the following instructions stand for. It is passed to the
kernel as line information, so that the verifier and `bpftool prog dump xlated linum` print it, too.

    a = Assembler("connect4")
    a.c("if (!front) return 1;")
    a.jump("==", R0, 0, "pass")

Source: RFC 9669 (BPF instruction set), Documentation/bpf/standardization/instruction-set.rst.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Final, Literal, Self

from msgspec import Struct


class Register(IntEnum):
    """R0 holds results, R1 to R5 arguments, R6 to R9 survive calls, R10 is the frame pointer."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = Register

Size = Literal[1, 2, 4, 8]
Condition = Literal["==", ">", ">=", "&", "!=", "<", "<="]
Operation = Literal["+=", "-=", "*=", "/=", "|=", "&=", "<<=", ">>=", "%=", "^=", "="]

SIZES: Final[Mapping[Size, int]] = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
CONDITIONS: Final[Mapping[Condition, int]] = {
    "==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0,
}  # fmt: skip
OPERATIONS: Final[Mapping[Operation, int]] = {
    "+=": 0x00, "-=": 0x10, "*=": 0x20, "/=": 0x30, "|=": 0x40, "&=": 0x50, "<<=": 0x60, ">>=": 0x70,
    "%=": 0x90, "^=": 0xA0, "=": 0xB0,
}  # fmt: skip

# Classes and modes of operation codes.
LDX, ST, STX, ALU32, JMP, JMP32, ALU64 = 0x61, 0x62, 0x63, 0x04, 0x05, 0x06, 0x07
FROM_REGISTER: Final = 0x08
ATOMIC: Final = 0xC3
WIDE: Final = 0x18
CALL: Final = 0x85
EXIT: Final = 0x95
PSEUDO_MAP: Final = 1
"""The source register of a wide load whose constant is the descriptor of a map."""

_INSTRUCTION = struct.Struct("=BBhi")
SIZE: Final = _INSTRUCTION.size


class Helper(IntEnum):
    """Functions of the kernel that programs call (bpf-helpers(7), the enumeration bpf_func_id)."""

    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    KTIME_GET_NS = 5
    GET_PRANDOM_U32 = 7
    GET_SOCKET_COOKIE = 46
    SK_RELEASE = 86
    SK_STORAGE_GET = 107
    GET_NETNS_COOKIE = 122
    SK_ASSIGN = 124
    SET_RETVAL = 187


class Instruction(Struct, frozen=True, gc=False):
    """One instruction of eight bytes; a wide one is two of them.

    Attributes:
        code: the operation code.
        target: the target register.
        source: the source register.
        offset: of memory, or of a jump in instructions.
        constant: the immediate value.
    """

    code: int
    target: int = 0
    source: int = 0
    offset: int = 0
    constant: int = 0

    def pack(self) -> bytes:
        """It as the kernel takes it."""
        return _INSTRUCTION.pack(
            self.code, self.source << 4 | self.target, self.offset, _signed(self.constant)
        )


class Assembled(Struct, frozen=True, gc=False):
    """An assembled program.

    Attributes:
        name: its name, 15 bytes at most.
        instructions: its instructions.
        labels: label -> index of the instruction that it is before.
        lines: index of an instruction -> the C that it and the following ones stand for.
        maps: index of a wide load -> name of the map whose descriptor it loads.
    """

    name: str
    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]
    lines: Mapping[int, str]
    maps: Mapping[int, str]

    def code(self, descriptors: Mapping[str, int]) -> bytes:
        """The bytes of the program.

        Args:
            descriptors: the descriptor of each map, by name.
        """
        whole = bytearray(b"".join([each.pack() for each in self.instructions]))
        for index, name in self.maps.items():
            struct.pack_into("=i", whole, index * SIZE + 4, descriptors[name])
        return bytes(whole)


class Assembler:
    """Assembles one program."""

    def __init__(self, name: str) -> None:
        """Begins a program with this name."""
        self._name = name
        self._made: list[Instruction] = []
        self._labels: dict[str, int] = {}
        self._lines: dict[int, str] = {}
        self._maps: dict[int, str] = {}
        self._jumps: dict[int, str] = {}

    def c(self, line: str) -> Self:
        """The following instructions stand for this line of C."""
        self._lines[len(self._made)] = line
        return self

    def label(self, name: str) -> Self:
        """Jumps to this label lead here.

        Raises:
            ValueError: the label is used twice.
        """
        if name in self._labels:
            raise ValueError(f"label {name} is used twice")
        self._labels[name] = len(self._made)
        return self

    def set(self, target: Register, value: Register | int) -> Self:
        """Target = value, of 64 bits; a constant has 32 and is sign-extended."""
        return self.compute(target, "=", value)

    def compute(
        self, target: Register, operation: Operation, value: Register | int, *, bits: int = 64
    ) -> Self:
        """Target operation= value. With 32 bits, the upper half of the target becomes zero."""
        kind = (ALU64 if bits == 64 else ALU32) | OPERATIONS[operation]
        if isinstance(value, Register):
            return self._add(kind | FROM_REGISTER, target, value)
        return self._add(kind, target, constant=value)

    def load(self, target: Register, base: Register, offset: int, size: Size) -> Self:
        """Target = *(base + offset), with zeros above."""
        return self._add(LDX | SIZES[size], target, base, offset)

    def store(self, base: Register, offset: int, value: Register | int, size: Size) -> Self:
        """*(base + offset) = value."""
        if isinstance(value, Register):
            return self._add(STX | SIZES[size], base, value, offset)
        return self._add(ST | SIZES[size], base, offset=offset, constant=value)

    def atomic_add(self, base: Register, offset: int, value: Register) -> Self:
        """*(u64 *)(base + offset) += value, atomically."""
        return self._add(ATOMIC | SIZES[8], base, value, offset)

    def wide(self, target: Register, value: int) -> Self:
        """Target = value, a constant of 64 bits."""
        self._add(WIDE, target, constant=value & 0xFFFFFFFF)
        return self._add(0, constant=value >> 32 & 0xFFFFFFFF)

    def map(self, target: Register, name: str) -> Self:
        """Target = the map of this name."""
        self._maps[len(self._made)] = name
        self._add(WIDE, target, PSEUDO_MAP)
        return self._add(0)

    def call(self, helper: Helper) -> Self:
        """R0 = helper(R1, ...). R1 to R5 are undefined afterwards."""
        return self._add(CALL, constant=helper)

    def goto(self, label: str) -> Self:
        """Jumps."""
        self._jumps[len(self._made)] = label
        return self._add(JMP)

    def jump(
        self, condition: Condition, left: Register, right: Register | int, label: str, *, bits: int = 64
    ) -> Self:
        """Jumps if the unsigned comparison holds; `&` holds if the values have a common bit."""
        self._jumps[len(self._made)] = label
        kind = (JMP if bits == 64 else JMP32) | CONDITIONS[condition]
        if isinstance(right, Register):
            return self._add(kind | FROM_REGISTER, left, right)
        return self._add(kind, left, constant=right)

    def exit(self, result: int | None = None) -> Self:
        """Returns R0, or a constant."""
        if result is not None:
            self.set(R0, result)
        return self._add(EXIT)

    def assemble(self) -> Assembled:
        """The program.

        Raises:
            ValueError: a jump has no label, or leads too far.
        """
        made = list(self._made)
        for index, label in self._jumps.items():
            if label not in self._labels:
                raise ValueError(f"no label {label}")
            distance = self._labels[label] - index - 1
            if not -(2**15) <= distance < 2**15:
                raise ValueError(f"label {label} is too far away")
            each = made[index]
            made[index] = Instruction(each.code, each.target, each.source, distance, each.constant)
        return Assembled(self._name, tuple(made), dict(self._labels), dict(self._lines), dict(self._maps))

    def _add(self, code: int, target: int = 0, source: int = 0, offset: int = 0, constant: int = 0) -> Self:
        self._made.append(Instruction(code, int(target), int(source), offset, int(constant)))
        return self


def _signed(value: int) -> int:
    """A constant of 32 bits as a signed number."""
    return value - (1 << 32) if value >= 1 << 31 else value
