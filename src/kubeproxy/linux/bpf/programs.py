"""Loads assembled programs. What the verifier objects to is reported with our labels and lines of C."""

import os
import re
from collections.abc import Mapping
from typing import Final, Literal

from kubeproxy.linux.bpf import btf, syscall
from kubeproxy.linux.bpf.assembler import Assembled
from kubeproxy.linux.bpf.syscall import VerifierError

Attach = Literal[
    "connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6",
    "sk_lookup",
]  # fmt: skip

ATTACH: Final[Mapping[Attach, int]] = {
    "connect4": 10, "connect6": 11, "sendmsg4": 14, "sendmsg6": 15, "recvmsg4": 19, "recvmsg6": 20,
    "getpeername4": 29, "getpeername6": 30, "sk_lookup": 36,
}  # fmt: skip
"""enum bpf_attach_type"""

_SOCK_ADDR, _SK_LOOKUP = 18, 30
_AT = re.compile(r"^(?:from \d+ to )?(\d+)(?:: |$)", re.MULTILINE)
_LINES: Final = 40


def load(program: Assembled, attach: Attach, descriptors: Mapping[str, int], file: str) -> int:
    """Loads a program; returns its descriptor.

    Args:
        program: the program.
        attach: where it will be attached.
        descriptors: the descriptor of each map it uses, by name.
        file: the file that the lines of C are said to be in.

    Raises:
        VerifierError: the kernel refused it. Its text has the end of the verifier's log, with our labels.
        OSError: the type information was refused.
    """
    types = btf.of_program(program, file)
    fd = syscall.load_btf(types.blob)
    try:
        return syscall.load_program(
            _SK_LOOKUP if attach == "sk_lookup" else _SOCK_ADDR,
            ATTACH[attach],
            program.code(descriptors),
            name=program.name,
            btf=fd,
            functions=types.functions,
            lines=types.lines,
        )
    except VerifierError as e:
        text = labelled(program, e.log)
        refused = VerifierError(e.errno, f"program {program.name}: {e.strerror}\n{text}".rstrip())
        refused.log = e.log
        raise refused from None
    finally:
        os.close(fd)


def labelled(program: Assembled, log: str) -> str:
    """The end of a verifier's log, in which our labels stand before their instructions."""
    names: dict[int, list[str]] = {}
    for name, index in program.labels.items():
        names.setdefault(index, []).append(f"{name}:")
    found: list[str] = []
    for line in log.splitlines():
        at = _AT.match(line)
        if at is not None:
            found += names.get(int(at[1]), ())
        found.append(line)
    return "\n".join(found[-_LINES:])
