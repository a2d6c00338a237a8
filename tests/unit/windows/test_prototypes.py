"""The functions that are called have the names and arguments of the documented header."""

import re
from pathlib import Path

from kubeproxy.windows import binding

HEADER = Path(__file__).parents[2] / "oracle/windows/computenetwork.h"
"""The header of mingw-w64, which is in the public domain."""

KINDS = {
    "REFGUID": "id", "PCWSTR": "text", "PWSTR*": "out", "PHCN_NETWORK": "out", "PHCN_ENDPOINT": "out",
    "PHCN_LOADBALANCER": "out", "HCN_CALLBACK*": "out", "HCN_NETWORK": "handle", "HCN_ENDPOINT": "handle",
    "HCN_LOADBALANCER": "handle", "HCN_CALLBACK": "handle", "void*": "handle",
    "HCN_NOTIFICATION_CALLBACK": "callback",
}  # fmt: skip


def kind_of(argument: object) -> str:
    """What the type of an argument in `PROTOTYPES` is."""
    named = {
        binding._ID: "id",
        binding._TEXT: "text",
        binding._OUT: "out",
        binding.CALLBACK: "callback",
    }
    return named.get(argument, "handle")


def test_the_prototypes_are_those_of_the_header() -> None:
    found = dict(re.findall(r"HRESULT WINAPI (\w+) ?\(([^)]*)\);", HEADER.read_text()))
    for name, types in binding.PROTOTYPES.items():
        documented = [
            re.sub(r"\s*(\*?)\s*\w+$", r"\1", argument.strip()).replace(" ", "")
            for argument in found[name].split(",")
        ]
        assert [KINDS[each] for each in documented] == [kind_of(each) for each in types], name
