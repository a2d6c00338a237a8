"""bpf(2): each command as a function.

The arguments are fields of `union bpf_attr` (linux/bpf.h). Descriptors that are returned are closed on exec;
the caller must close them.
"""

import ctypes
import errno
import os
import struct
from functools import cache
from typing import Any, Final

_NUMBERS: Final = {
    "x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "s390x": 351,
    "armv7l": 386, "i686": 357,
}  # fmt: skip
"""The number of the system call on each architecture."""

_ATTR_BYTES: Final = 144
_NAME_BYTES: Final = 15
_LOG_BYTES: Final = 1 << 20

# enum bpf_cmd
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT = 0, 1, 2, 3, 4
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _TEST_RUN = 5, 6, 7, 10
_PROG_BY_ID, _INFO, _QUERY, _BTF_LOAD = 13, 15, 16, 18
_LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH, _LINK_CREATE, _LINK_UPDATE = 24, 26, 27, 28, 29

F_QUERY_EFFECTIVE: Final = 1
_INFO_BYTES: Final = 256


class VerifierError(OSError):
    """The kernel did not accept a program.

    Attributes:
        log: what the verifier wrote.
    """

    log: str = ""


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The system call.

    Returns:
        Its result, and the attributes, into which some commands write.

    Raises:
        OSError: the kernel refused.
    """
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), _ATTR_BYTES))
    return _call(command, buffer), buffer.raw


@cache
def _syscall() -> tuple[Any, int | None]:
    """The function of the C library, and the number of bpf(2)."""
    return ctypes.CDLL(None, use_errno=True).syscall, _NUMBERS.get(os.uname().machine)


def _call(command: int, buffer: "ctypes.Array[ctypes.c_char]") -> int:
    syscall, number = _syscall()
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) is not known for {os.uname().machine}")
    result: int = syscall(number, command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _at(buffer: "ctypes.Array[ctypes.c_char] | None") -> int:
    return 0 if buffer is None else ctypes.addressof(buffer)


def _buffer(data: bytes) -> "ctypes.Array[ctypes.c_char]":
    return ctypes.create_string_buffer(data, len(data))


def _name(name: str) -> bytes:
    return name.encode()[:_NAME_BYTES]


def create_map(
    kind: int,
    key: int,
    value: int,
    entries: int,
    *,
    flags: int = 0,
    name: str = "",
    types: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """Makes a map; returns its descriptor.

    Args:
        kind: enum bpf_map_type.
        key: the size of keys in bytes.
        value: the size of values in bytes.
        entries: how many it can hold.
        flags: BPF_F_*.
        name: its name; 15 bytes are used.
        types: the descriptor of its BTF and the types of key and value.
    """
    attributes = struct.pack(
        "=IIIIIII16sIIII", kind, key, value, entries, flags, 0, 0, _name(name), 0, *types
    )
    return bpf(_MAP_CREATE, attributes)[0]


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """The value of a key; None if there is none."""
    k, v = _buffer(key), ctypes.create_string_buffer(size)
    try:
        bpf(_MAP_LOOKUP, struct.pack("=I4xQQQ", fd, _at(k), _at(v), 0))
    except FileNotFoundError:
        return None
    return v.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Sets the value of a key."""
    k, v = _buffer(key), _buffer(value)
    bpf(_MAP_UPDATE, struct.pack("=I4xQQQ", fd, _at(k), _at(v), 0))


def delete(fd: int, key: bytes) -> bool:
    """Deletes a key; returns whether it was there."""
    k = _buffer(key)
    try:
        bpf(_MAP_DELETE, struct.pack("=I4xQ", fd, _at(k)))
    except FileNotFoundError:
        return False
    return True


def next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """The key after another one, or the first; None after the last."""
    k, n = None if key is None else _buffer(key), ctypes.create_string_buffer(size)
    try:
        bpf(_MAP_NEXT, struct.pack("=I4xQQ", fd, _at(k), _at(n)))
    except FileNotFoundError:
        return None
    return n.raw


def update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Sets the values of keys; all up to the first that is refused."""
    k, v = _buffer(keys), _buffer(values)
    bpf(_UPDATE_BATCH, struct.pack("=QQQQIIQQ", 0, 0, _at(k), _at(v), count, fd, 0, 0))


def lookup_batch(
    fd: int, token: bytes | None, sizes: tuple[int, int], count: int
) -> tuple[bytes, bytes, bytes, bool]:
    """Some keys and values of a hash map.

    Args:
        fd: the map.
        token: what the last call returned; None at the beginning.
        sizes: the sizes of keys and values.
        count: how many to read at most; more than a bucket of the hash table has.

    Returns:
        The token, keys, values, and whether these were the last ones.
    """
    before = None if token is None else _buffer(token)
    after = ctypes.create_string_buffer(max(8, sizes[0]))
    k, v = ctypes.create_string_buffer(count * sizes[0]), ctypes.create_string_buffer(count * sizes[1])
    attributes = struct.pack("=QQQQIIQQ", _at(before), _at(after), _at(k), _at(v), count, fd, 0, 0)
    buffer = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    ended = False
    try:
        _call(_LOOKUP_BATCH, buffer)
    except FileNotFoundError:
        ended = True
    got: int = struct.unpack_from("=I", buffer, 32)[0]
    return after.raw, k.raw[: got * sizes[0]], v.raw[: got * sizes[1]], ended


def load_btf(blob: bytes) -> int:
    """Loads type information; returns its descriptor."""
    data, log = _buffer(blob), ctypes.create_string_buffer(1 << 16)
    try:
        return bpf(_BTF_LOAD, struct.pack("=QQIII", _at(data), 0, len(blob), 0, 0))[0]
    except OSError as e:
        error = VerifierError(e.errno, e.strerror)
        try:
            bpf(_BTF_LOAD, struct.pack("=QQIII", _at(data), _at(log), len(blob), len(log), 1))
        except OSError:
            error.log = log.value.decode(errors="replace")
        raise error from e


def load_program(
    kind: int,
    attach: int,
    code: bytes,
    *,
    name: str = "",
    btf: int = 0,
    functions: bytes = b"",
    lines: bytes = b"",
) -> int:
    """Loads a program; returns its descriptor.

    Args:
        kind: enum bpf_prog_type.
        attach: enum bpf_attach_type.
        code: the instructions.
        name: its name; 15 bytes are used.
        btf: the descriptor of its types.
        functions: an array of struct bpf_func_info.
        lines: an array of struct bpf_line_info.

    Raises:
        VerifierError: the kernel refused it; with the verifier's log.
    """
    c, license_, log = _buffer(code), _buffer(b"GPL\0"), ctypes.create_string_buffer(_LOG_BYTES)
    f, li = _buffer(functions), _buffer(lines)

    def attributes(level: int) -> bytes:
        size, at = (len(log), _at(log)) if level else (0, 0)
        head = struct.pack(
            "=IIQQIIQII16sII", kind, len(code) // 8, _at(c), _at(license_), level, size, at, 0, 0, _name(name), 0, attach
        )  # fmt: skip
        types = struct.pack("=IIQIIQI", btf, 8, _at(f), len(functions) // 8, 16, _at(li), len(lines) // 16)
        return head + (types if btf else b"")

    try:
        return bpf(_PROG_LOAD, attributes(0))[0]
    except OSError as e:
        error = VerifierError(e.errno, e.strerror)
        try:
            os.close(bpf(_PROG_LOAD, attributes(1))[0])
        except OSError:
            error.log = log.value.decode(errors="replace")
        raise error from e


def run_program(fd: int, data: bytes, context: bytes = b"") -> int:
    """Runs a program once on some data or a context (BPF_PROG_TEST_RUN); returns its result."""
    d, c = (_buffer(data) if data else None), (_buffer(context) if context else None)
    attributes = struct.pack(
        "=IIIIQQIIIIQQ", fd, 0, len(data), 0, _at(d), 0, 0 if context else 1, 0, len(context), 0, _at(c), 0
    )
    found: int = struct.unpack_from("=I", bpf(_TEST_RUN, attributes)[1], 4)[0]
    return found


def pin(fd: int, path: str) -> None:
    """Gives an object a name in a BPF file system."""
    name = _buffer(path.encode() + b"\0")
    bpf(_OBJ_PIN, struct.pack("=QII", _at(name), fd, 0))


def get(path: str) -> int:
    """The descriptor of the object with a name in a BPF file system."""
    name = _buffer(path.encode() + b"\0")
    return bpf(_OBJ_GET, struct.pack("=QII", _at(name), 0, 0))[0]


def create_link(program: int, target: int, attach: int) -> int:
    """Attaches a program to a cgroup or a network namespace; returns the link's descriptor."""
    return bpf(_LINK_CREATE, struct.pack("=IIII", program, target, attach, 0))[0]


def update_link(link: int, program: int) -> None:
    """Replaces the program of a link at once."""
    bpf(_LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))


def info(fd: int) -> bytes:
    """What the kernel reports of an object: struct bpf_map_info, bpf_prog_info or bpf_link_info."""
    found = ctypes.create_string_buffer(_INFO_BYTES)
    bpf(_INFO, struct.pack("=IIQ", fd, len(found), _at(found)))
    return found.raw


def program_info(fd: int, most: int) -> tuple[int, tuple[int, ...], str]:
    """The ID of a program, the IDs of its maps, and its name.

    Args:
        fd: its descriptor.
        most: how many maps it may have.
    """
    found, maps = ctypes.create_string_buffer(_INFO_BYTES), ctypes.create_string_buffer(4 * most)
    struct.pack_into("=IQ", found, 52, most, _at(maps))
    bpf(_INFO, struct.pack("=IIQ", fd, len(found), _at(found)))
    count: int = struct.unpack_from("=I", found, 52)[0]
    name = found.raw[64:80].partition(b"\0")[0].decode(errors="replace")
    return struct.unpack_from("=I", found, 4)[0], struct.unpack_from(f"={count}I", maps), name


def attached(cgroup: int, attach: int, *, effective: bool) -> list[int]:
    """The IDs of the programs of a kind that are attached to a cgroup.

    Args:
        cgroup: its descriptor.
        attach: enum bpf_attach_type.
        effective: also those of the cgroups above, which are run, too.
    """
    ids = ctypes.create_string_buffer(4 * 64)
    flags = F_QUERY_EFFECTIVE if effective else 0
    attributes = bpf(_QUERY, struct.pack("=IIIIQI4x", cgroup, attach, flags, 0, _at(ids), 64))[1]
    count: int = struct.unpack_from("=I", attributes, 24)[0]
    return list(struct.unpack_from(f"={count}I", ids))


def program_by_id(number: int) -> int:
    """The descriptor of the program with an ID. This needs CAP_SYS_ADMIN."""
    return bpf(_PROG_BY_ID, struct.pack("=III", number, 0, 0))[0]
