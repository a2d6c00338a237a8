"""Modes as values, by name."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kubeproxy
from kubeproxy import backends
from kubeproxy.backends.base import UnsupportedError
from kubeproxy.backends.mode import Mode
from kubeproxy.config.types import (
    LINUX_MODES,
    WINDOWS_MODES,
    IPTables,
    KubeProxyConfiguration,
    NFTables,
)
from kubeproxy.machine.base import Machine
from tests.fakes.cluster import NODE
from tests.machines import MACHINE

NAMES = {*LINUX_MODES, *WINDOWS_MODES, "userspace-listen", "ebpf"}
SOURCES = Path(kubeproxy.__file__).parent
FLAG = "userspace-listen"
"""The name of a flag, too: options are looked up by it."""

ENUMERATION = {"config/types.py", "config/flags.py"}
"""Where the configuration lists the modes and the fields of each."""


@pytest.mark.parametrize("name", [*LINUX_MODES, "userspace-listen"])
def test_a_mode_is_one_value(name: str) -> None:
    mode = backends.mode(name)
    assert mode.name == name
    assert mode is backends.mode(name)
    assert "linux" in mode.platforms
    with pytest.raises(AttributeError):
        mode.name = "another"  # type: ignore[misc]


def test_a_mode_there_is_not_cannot_be_opened() -> None:
    mode = backends.mode("carrier-pigeon")
    assert (mode.section, list(mode.problems(KubeProxyConfiguration())), mode.replaces) == (
        "iptables",
        [],
        (),
    )
    with pytest.raises(
        UnsupportedError, match=r"proxy mode carrier-pigeon is not available; available: .*iptables"
    ):
        mode.open(MACHINE, NODE)


@pytest.mark.parametrize("name", [*LINUX_MODES, "userspace-listen"])
def test_no_mode_replaces_itself(name: str) -> None:
    mode = backends.mode(name)
    replaced = [backends.mode(each) for each in mode.replaces]
    assert name not in mode.replaces
    assert all(each.cleanup is not None for each in replaced)


def test_only_the_chosen_mode_is_imported(tmp_path: Path) -> None:
    import subprocess

    script = (
        "import sys\nfrom kubeproxy import backends\nbackends.mode('nftables')\n"
        "print(*(name for name in sys.modules if name.startswith('kubeproxy.backends.') and name.count('.') > 2))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["kubeproxy.backends.nftables.mode"]


def test_what_the_kernel_does_not_tell_may_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from kubeproxy.backends.nftables import cleanup

    def fails(_: Machine) -> bool:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(cleanup, "serves", fails)
    assert backends.serves(MACHINE, backends.mode("nftables"))
    assert "Cannot read whether rules of nftables mode are in the kernel" in caplog.text


@pytest.mark.parametrize(
    ("name", "section", "bit", "everything"),
    [("", "iptables", 1, True), ("iptables", "iptables", 1, True), ("ipvs", "ipvs", 1, True),
     ("userspace", "iptables", 1, True), ("nftables", "nftables", 2, False)],
)  # fmt: skip
def test_each_mode_reads_its_own_sections(name: str, section: str, bit: int, everything: bool) -> None:
    config = KubeProxyConfiguration(
        iptables=IPTables(masquerade_bit=1, masquerade_all=True), nftables=NFTables(masquerade_bit=2)
    )
    mode: Mode = backends.mode(name)
    assert (mode.section, mode.masquerade_bit(config), mode.masquerade_all(config)) == (
        section,
        bit,
        everything,
    )


def test_no_module_compares_the_name_of_a_mode() -> None:
    """What differs between modes outside `backends` is a field of the mode's value."""
    found = [
        f"{name}:{line}"
        for file in sorted(SOURCES.rglob("*.py"))
        if not (name := str(file.relative_to(SOURCES))).startswith("backends/") and name not in ENUMERATION
        for line in compared(file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'x = mode == "ipvs"', 'x = "nftables" != mode', 'x = mode in {"ipvs", "iptables"}', 'x = mode not in ("ipvs",)',
        'match mode:\n    case "ipvs" | "nftables":\n        pass', 'x = {"ipvs": 1}[mode]', 'x = {"a": 1, "userspace": 2}',
        'x = table["ipvs"]', 'x = table.get("ipvs")', 'x = mode.startswith("userspace")', "x = dict(ipvs=1)[mode]",
    ],
)  # fmt: skip
def test_a_comparison_is_found(line: str) -> None:
    assert list(compared(line))


@pytest.mark.parametrize(
    "line", ['x = "ipvs"', "x = mode == other", "x = config.ipvs", 'log.info("%s", "ipvs")']
)
def test_other_uses_of_a_word_are_none(line: str) -> None:
    assert not list(compared(line))


def compared(source: str) -> Iterator[int]:
    """The lines of a source that decide something by the literal name of a mode."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, comparators=others):
                parts: list[ast.AST | None] = [left, *others]
            case ast.MatchValue(value=value):
                parts = [value]
            case ast.Dict(keys=keys):
                parts = [*keys]
            case ast.Subscript(slice=index):
                parts = [index]
            case ast.Call(func=ast.Attribute(attr="get" | "startswith" | "endswith" | "pop"), args=arguments):
                parts = [a for a in arguments if not (isinstance(a, ast.Constant) and a.value == FLAG)]
            case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
                parts = [ast.Constant(k.arg) for k in keywords]
            case _:
                continue
        if any(named(part) for part in parts if part is not None):
            yield getattr(node, "lineno", getattr(getattr(node, "value", None), "lineno", 0))


def named(part: ast.AST) -> bool:
    """Whether an expression is the name of a mode, or a collection with one."""
    if isinstance(part, ast.Constant):
        return part.value in NAMES
    return isinstance(part, ast.Tuple | ast.List | ast.Set) and any(named(each) for each in part.elts)
