"""The names of maps, programs and links, and the version of their layout."""

import re
from collections.abc import Iterable
from typing import Final

from kubeproxy.api.addresses import IPV4, IPV6, Family

VERSION: Final = "v1"
"""The folder of pins below the one of the configuration. A layout that differs has another version."""

INFIX: Final = "kp_"
"""How names begin that `bpftool` lists."""


_TRANSLATORS: Final = re.compile(r"(cil_)?sock[46]_|cali|calico")
"""The names of Cilium's and Calico's programs with the same purpose."""


def translators(programs: Iterable[str]) -> list[str]:
    """Those of some names of programs that belong to network plugins, and connect sockets to endpoints."""
    return sorted({name for name in programs if _TRANSLATORS.match(name)})


def digit(family: Family) -> str:
    """What the names of a family end with."""
    return "4" if family == IPV4 else "6"


def link(program: str) -> str:
    """The pin of a program's link."""
    return f"link_{program}"


def program(name: str) -> str:
    """The pin of a program."""
    return f"prog_{name}"


_FAMILY_OF = re.compile(r"[a-z_]+?([46])(in6)?(_[0-9a-f]{12})?(_new)?")


def family_of(pin: str) -> Family | None:
    """The family that the pin of a map, program or link belongs to; None if it is not ours."""
    found = _FAMILY_OF.fullmatch(pin)
    return None if found is None else IPV4 if found[1] == "4" else IPV6
