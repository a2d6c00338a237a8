"""BTF: type information for maps and programs, with which bpftool prints keys and values by name.

A layout describes a structure: the names of its fields and their C types, in order. The fields must be
aligned and leave no gaps.

Source: Documentation/bpf/btf.rst, linux/btf.h.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from kubeproxy.linux.bpf.assembler import Assembled

INTEGERS: Final[Mapping[str, int]] = {
    "__u8": 1, "__be16": 2, "__u16": 2, "__be32": 4, "__u32": 4, "__u64": 8,
}  # fmt: skip
"""The sizes of the integer types in bytes."""

_MAGIC, _VERSION, _HEADER = 0xEB9F, 1, struct.Struct("=HBBIIIII")
_INT, _ARRAY, _STRUCT, _FUNC, _FUNC_PROTO = 1, 3, 4, 12, 13
_ARRAY_TYPE = re.compile(r"(\w+)\[(\d+)\]")

FUNC_INFO: Final = struct.Struct("=II")
"""struct bpf_func_info: the first instruction, the type of the function."""

LINE_INFO: Final = struct.Struct("=IIII")
"""struct bpf_line_info: instruction, file name, text, line and column."""


class Layout(Struct, frozen=True, gc=False):
    """A structure, or a single integer.

    Attributes:
        name: the name of the structure.
        fields: names and types of its fields; a type is in INTEGERS, or an array of one, e.g. "__u8[16]".
    """

    name: str
    fields: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return sum(_size(kind) for _, kind in self.fields)


def integer(kind: str) -> Layout:
    """A single integer."""
    return Layout("", (("", kind),))


def _size(kind: str) -> int:
    array = _ARRAY_TYPE.fullmatch(kind)
    return INTEGERS[array[1]] * int(array[2]) if array else INTEGERS[kind]


class TypeTable:
    """Collects types; `blob` is what the kernel takes. The first type has the number 1."""

    def __init__(self) -> None:
        """Begins without types."""
        self._types: list[bytes] = []
        self._strings = bytearray(b"\0")
        self._known: dict[object, int] = {}

    def string(self, text: str) -> int:
        """The offset of a string."""
        if not text:
            return 0
        known = self._known.get(("string", text))
        if known is None:
            known = self._known["string", text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return known

    def layout(self, layout: Layout) -> int:
        """The number of a layout's type."""
        if not layout.name:
            return self._type(layout.fields[0][1])
        if layout not in self._known:
            members, offset = b"", 0
            for name, kind in layout.fields:
                members += struct.pack("=III", self.string(name), self._type(kind), 8 * offset)
                offset += _size(kind)
            head = self._head(layout.name, _STRUCT, len(layout.fields), layout.size)
            self._known[layout] = self._add(head + members)
        return self._known[layout]

    def function(self, name: str) -> int:
        """The number of a function's type: it has a context and returns an integer."""
        result = self._type("__u32")
        argument = struct.pack("=II", self.string("ctx"), self._type("__u64"))
        prototype = self._add(self._head("", _FUNC_PROTO, 1, result) + argument)
        return self._add(self._head(name, _FUNC, 0, prototype))

    @property
    def blob(self) -> bytes:
        """Header, types and strings."""
        types = b"".join(self._types)
        head = _HEADER.pack(_MAGIC, _VERSION, 0, _HEADER.size, 0, len(types), len(types), len(self._strings))
        return head + types + self._strings

    def _type(self, kind: str) -> int:
        if kind not in self._known:
            array = _ARRAY_TYPE.fullmatch(kind)
            if array:
                of, index = self._type(array[1]), self._type("__u32")
                body = struct.pack("=III", of, index, int(array[2]))
                self._known[kind] = self._add(self._head("", _ARRAY, 0, 0) + body)
            else:
                size = INTEGERS[kind]
                body = struct.pack("=I", 8 * size)
                self._known[kind] = self._add(self._head(kind, _INT, 0, size) + body)
        return self._known[kind]

    def _head(self, name: str, kind: int, count: int, size_or_type: int) -> bytes:
        return struct.pack("=III", self.string(name), kind << 24 | count, size_or_type)

    def _add(self, made: bytes) -> int:
        self._types.append(made)
        return len(self._types)


class ProgramTypes(Struct, frozen=True, gc=False):
    """The type information of a program.

    Attributes:
        blob: its types, for BPF_BTF_LOAD.
        functions: its function, as an array of struct bpf_func_info.
        lines: its lines of C, as an array of struct bpf_line_info.
    """

    blob: bytes
    functions: bytes
    lines: bytes


def of_program(program: Assembled, file: str) -> ProgramTypes:
    """The type information of a program.

    Args:
        program: the program; it has a line at its first instruction.
        file: the file that its lines are said to be in.
    """
    table = TypeTable()
    function = table.function(program.name)
    lines = [
        LINE_INFO.pack(index, table.string(file), table.string(text), number << 10 | 1)
        for number, (index, text) in enumerate(sorted(program.lines.items()), 1)
    ]
    return ProgramTypes(table.blob, FUNC_INFO.pack(0, function), b"".join(lines))


def layouts(*wanted: Layout) -> tuple[bytes, Sequence[int]]:
    """The types of some layouts, and the number of each."""
    table = TypeTable()
    numbers = [table.layout(each) for each in wanted]
    return table.blob, numbers
