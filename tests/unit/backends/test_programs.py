"""Which programs are used, and how their answers are understood; with scripts in their place."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.backends import programs
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.backends.programs import InputRefusedError, Programs, Variant
from kubeproxy.linux import xtables
from tests.machines import MACHINE

Install = Callable[..., None]
LEGACY, NFT = "iptables v1.8.9 (legacy)", "iptables v1.8.9 (nf_tables)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    for program in ("sh", "cat", "echo"):
        (tmp_path / "bin" / program).symlink_to(f"/bin/{program}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


@pytest.fixture
def install(folder: Path) -> Install:
    def write(program: str, script: str) -> None:
        path = folder / "bin" / program
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def install(base: str, version: str, save: str = ":", restore: str = "cat > /dev/null") -> None:
        write(base, f"echo '{version}'")
        write(f"{base}-save", save)
        write(f"{base}-restore", restore)

    return install


def answering(folder: Path, restore: str, save: str = ":") -> Programs:
    """Programs that answer so."""
    for program, script in (("r", restore), ("s", save)):
        path = folder / program
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return Programs(MACHINE, IPV4, str(folder / "s"), str(folder / "r"), "legacy")


@pytest.mark.parametrize(
    ("version", "variant"), [(LEGACY, "legacy"), (NFT, "nf_tables"), ("iptables v1.6.2", "legacy")]
)
def test_the_variant_is_told_by_the_version(install: Install, version: str, variant: str) -> None:
    install("iptables", version)
    assert programs.find(MACHINE, IPV4).variant == variant


def test_ipv6_has_programs_of_its_own(install: Install) -> None:
    install("iptables", LEGACY)
    with pytest.raises(UnsupportedError, match="program ip6tables is not in PATH"):
        programs.find(MACHINE, IPV6)
    install("ip6tables", NFT.replace("iptables", "ip6tables"))
    assert programs.find(MACHINE, IPV6).variant == "nf_tables"


@pytest.mark.parametrize("missing", ["iptables", "iptables-save", "iptables-restore"])
def test_a_program_that_is_missing_is_named(install: Install, folder: Path, missing: str) -> None:
    install("iptables", LEGACY)
    (folder / "bin" / missing).unlink()
    with pytest.raises(UnsupportedError, match=rf"program {missing} is not in PATH; install iptables"):
        programs.find(MACHINE, IPV4)


@pytest.mark.parametrize("version", ["iptables v1.6.1", "iptables v1.4.21", "iptables v0.9"])
def test_programs_that_are_too_old(install: Install, version: str) -> None:
    install("iptables", version)
    with pytest.raises(UnsupportedError, match=rf"iptables is {version}; at least v1.6.2 is needed"):
        programs.find(MACHINE, IPV4)


def test_programs_that_are_something_else(install: Install) -> None:
    install("iptables", "BusyBox")
    with pytest.raises(UnsupportedError, match="prints 'BusyBox', which is no version"):
        programs.find(MACHINE, IPV4)


def test_programs_that_do_not_run(install: Install, folder: Path) -> None:
    install("iptables", LEGACY)
    (folder / "bin/iptables").write_text("#!/bin/sh\necho 'no such library' >&2; exit 127\n")
    with pytest.raises(UnsupportedError, match="iptables does not run: iptables: no such library"):
        programs.find(MACHINE, IPV4)


@pytest.mark.parametrize(
    ("code", "error"),
    [(1, UnsupportedError), (3, UnsupportedError), (4, SyncError)],
    ids=["no", "no such table", "not now"],
)
def test_what_cannot_work_is_found_out_at_once(install: Install, code: int, error: type[Exception]) -> None:
    """That somebody holds the lock for long is no reason to do without a family for ever."""
    install("iptables", NFT, restore=f"cat > /dev/null; echo 'the  words' >&2; exit {code}")
    with pytest.raises(error) as caught:
        programs.find(MACHINE, IPV4)
    where = "table nat: " if error is UnsupportedError else ""
    assert str(caught.value) == f"iptables cannot run for IPv4: {where}iptables-restore: the words"


HINT = "echo '*mangle'; echo ':KUBE-IPTABLES-HINT - [0:0]'"
OLD_HINT = "echo '*mangle'; echo ':KUBE-KUBELET-CANARY - [0:0]'"


@pytest.mark.parametrize(
    ("nft", "legacy", "variant"),
    [(HINT, ":", "nf_tables"), (":", HINT, "legacy"), (":", OLD_HINT, "legacy"), (":", ":", "nf_tables"),
     ("exit 1", HINT, "legacy"), (HINT, HINT, "nf_tables")],
)  # fmt: skip
def test_of_two_variants_the_kubelet_s_is_used(install: Install, nft: str, legacy: str, variant: str) -> None:
    install("iptables", NFT)
    install("iptables-nft", NFT, save=nft)
    install("iptables-legacy", LEGACY, save=legacy)
    assert programs.find(MACHINE, IPV4).variant == variant


def test_one_named_variant_alone_does_not_count(install: Install) -> None:
    install("iptables", NFT)
    install("iptables-legacy", LEGACY, save=HINT)
    assert programs.find(MACHINE, IPV4).variant == "nf_tables"


def test_programs_with_plain_names_are_of_the_variant_they_say(install: Install) -> None:
    install("iptables", NFT)
    assert [(name, tables.variant) for name, tables in programs.installed(MACHINE)] == [
        ("iptables", "nf_tables")
    ]
    install("iptables-legacy", LEGACY)
    install("ip6tables", LEGACY)
    assert [(name, tables.variant) for name, tables in programs.installed(MACHINE)] == [
        ("iptables-legacy", "legacy"), ("iptables", "nf_tables"), ("ip6tables", "legacy")
    ]  # fmt: skip
    install("iptables-nft", NFT)
    assert [name for name, _ in programs.installed(MACHINE)][:2] == ["iptables-legacy", "iptables-nft"]


def test_an_input_is_one_table_and_a_commit(folder: Path) -> None:
    tables = answering(folder, f'echo "$@" > {folder}/argv; cat > {folder}/input')
    tables.restore("nat", (line for line in [":A - [0:0]\n", "-A A -p tcp\n-A A -p udp\n"]))
    assert (folder / "argv").read_text() == "-w 5 --noflush\n"
    assert (folder / "input").read_text() == "*nat\n:A - [0:0]\n-A A -p tcp\n-A A -p udp\nCOMMIT\n"


def test_a_long_input_is_not_changed_by_being_long(folder: Path) -> None:
    tables = answering(folder, f"cat > {folder}/input")
    lines = [f"-A KUBE-SVC-{i} -p tcp\n" for i in range(30_000)]
    tables.restore("nat", iter(lines))
    assert (folder / "input").read_text() == "".join(["*nat\n", *lines, "COMMIT\n"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("iptables-restore: line 4 failed", 3),
        ("iptables-restore v1.8.9 (legacy): Couldn't load match `x'\nError occurred at line: 5", 4),
        ("iptables-nft-restore: line 2 failed: Bad rule.", 1),
        (
            "iptables-restore v1.8.9 (nf_tables): \nline 7: RULE_APPEND failed (Invalid argument): rule in A",
            6,
        ),
        ("iptables-restore: COMMIT expected", 0),
        ("", 0),
    ],
)
@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_refusal_names_the_line_of_the_input(folder: Path, code: int, words: str, line: int) -> None:
    (folder / "words").write_text(words)
    tables = answering(folder, f"cat > /dev/null; cat {folder}/words >&2; exit {code}")
    with pytest.raises(InputRefusedError) as caught:
        tables.restore("nat", ["-A A\n"] * 9)
    assert caught.value.line == line
    assert words.partition("\n")[0].strip() in str(caught.value)


def test_a_refusal_names_the_table_and_quotes_the_line(folder: Path) -> None:
    words = "iptables-nft-restore: line 6 failed: No chain/target/match by that name"
    tables = answering(folder, f"cat > /dev/null; echo '{words}' >&2; exit 1")
    lines = [":A - [0:0]\n", "-A A -p tcp\n-A A -p udp\n", *(f"-A A -j KUBE-{i}\n" for i in range(3))]
    with pytest.raises(InputRefusedError) as caught:
        tables.restore("nat", lines)
    assert str(caught.value) == f"table nat: r: {words} (line 6 is: -A A -j KUBE-1)"
    with pytest.raises(InputRefusedError) as caught:
        tables.restore("filter", ["-A A\n"] * 4)
    assert str(caught.value) == f"table filter: r: {words} (line 6 is: COMMIT)"
    with pytest.raises(InputRefusedError) as caught:
        tables.restore("filter", [])
    assert str(caught.value) == f"table filter: r: {words}"


def test_a_long_line_is_cut_and_of_a_long_input_the_beginning_is_known(folder: Path) -> None:
    tables = answering(folder, "cat > /dev/null; echo 'line 2 failed' >&2; exit 1")
    with pytest.raises(InputRefusedError) as caught:
        tables.restore("nat", ["x" * 1000 + "\n"])
    assert str(caught.value) == f"table nat: r: line 2 failed (line 2 is: {'x' * 300})"
    with pytest.raises(InputRefusedError, match="line 2 is: x"):
        tables.restore("nat", ["x" * 1000 + "\n"] * 20_000)


def test_what_the_kernel_refuses_the_nf_tables_programs_call_a_problem_of_resources(folder: Path) -> None:
    words = "line 12: RULE_INSERT failed (No such file or directory): rule in chain KUBE-NODEPORTS"
    tables = answering(folder, f"cat > /dev/null; echo '{words}' >&2; exit 4")
    with pytest.raises(InputRefusedError) as caught:
        tables.restore("nat", [])
    assert caught.value.line == 11


@pytest.mark.parametrize("restore", ["echo 'holding the xtables lock' >&2; exit 4", "kill -KILL $$"])
def test_what_could_not_be_tried_is_no_refusal(folder: Path, restore: str) -> None:
    tables = answering(folder, restore)
    with pytest.raises(SyncError):
        tables.restore("nat", [])


def test_programs_that_vanish(folder: Path) -> None:
    tables = Programs(MACHINE, IPV4, str(folder / "s"), str(folder / "r"), "legacy")
    with pytest.raises(SyncError, match="cannot run"):
        tables.restore("nat", [])
    with pytest.raises(SyncError, match="cannot read the tables"):
        list(tables.save())


def test_tables_that_cannot_be_read(folder: Path) -> None:
    tables = answering(folder, ":", save="echo '*nat'; echo 'no memory' >&2; exit 1")
    lines = tables.save()
    assert next(lines) == "*nat"
    with pytest.raises(SyncError, match="cannot read the tables: s: no memory"):
        next(lines)


@pytest.mark.parametrize("variant", ["legacy", "nf_tables"])
def test_a_kernel_that_does_not_tell_whether_tables_changed(
    monkeypatch: pytest.MonkeyPatch, variant: Variant
) -> None:
    def cannot(*_: object) -> object:
        raise OSError(errno.ENOPROTOOPT, "not here")

    monkeypatch.setattr(programs, "generation", cannot)
    monkeypatch.setattr(xtables, "table_size", cannot)
    tables = Programs(MACHINE, IPV4, "save", "restore", variant)
    assert tables.fingerprint() is None
    assert tables.entries() == {}
