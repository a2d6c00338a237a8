"""Programs that do what programs do: read, write, complain, fail, hang."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.linux import run
from kubeproxy.linux.run import ProgramError
from tests.machines import MACHINE

NOISY = "head -c 3000000 /dev/zero | tr '\\0' x"


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_a_program_is_fed_everything_in_order(tmp_path: Path) -> None:
    chunks = [b"%d\n" % i * 5000 for i in range(100)]
    MACHINE.feed(sh(f"cat > {tmp_path}/got"), chunks)
    assert (tmp_path / "got").read_bytes() == b"".join(chunks)


def test_input_is_made_while_the_program_reads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "echo")

    def chunks() -> Iterator[bytes]:
        yield b"hello\n" + bytes(1 << 16)
        assert (tmp_path / "echo").read_bytes() == b"hello\n", "it has read this before the next is made"
        yield b"bye\n"

    MACHINE.feed(sh(f"read line; echo $line > {tmp_path}/echo; cat > /dev/null"), chunks())


def test_a_program_need_not_read_all() -> None:
    made = []

    def chunks() -> Iterator[bytes]:
        for i in range(1000):
            made.append(i)
            yield bytes(1 << 16)

    MACHINE.feed(["true"], chunks())
    assert len(made) < 1000


def test_lines_come_while_the_program_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    lines = MACHINE.lines(sh(f"echo one; read x < {tmp_path}/go; echo two; printf three"))
    assert next(lines) == "one"
    (tmp_path / "go").write_text("go\n")
    assert list(lines) == ["two", "three"]


def test_output_is_the_lines() -> None:
    assert run.output(MACHINE.lines(["printf", "a\nb\n"])) == "a\nb"
    assert run.output(MACHINE.lines(["true"])) == ""


def test_bytes_that_are_no_text_are_read_nevertheless() -> None:
    assert run.output(MACHINE.lines(sh("printf 'a\\377b'"))) == "a�b"


def test_nobody_waits_for_our_terminal() -> None:
    assert run.output(MACHINE.lines(["cat"])) == ""


def test_a_failure_is_told_with_the_program_s_words() -> None:
    with pytest.raises(ProgramError) as caught:
        MACHINE.feed(
            ["/bin/sh", "-c", "cat > /dev/null; echo 'bad  line 3' >&2; echo try again >&2; exit 4"], [b"x"]
        )
    assert (caught.value.program, caught.value.code) == ("sh", 4)
    assert str(caught.value) == "sh: bad line 3 try again", "on one line, for the log"


def test_a_failure_without_words_is_told_with_its_code() -> None:
    with pytest.raises(ProgramError, match=r"^false: exit code 1$"):
        run.output(MACHINE.lines(["false"]))


def test_a_failure_is_told_after_the_last_line() -> None:
    lines = MACHINE.lines(sh("echo one; exit 2"))
    assert next(lines) == "one"
    with pytest.raises(ProgramError):
        next(lines)


def test_a_program_that_dies_of_a_signal() -> None:
    with pytest.raises(ProgramError) as caught:
        run.output(MACHINE.lines(sh("kill -TERM $$")))
    assert caught.value.code == -signal.SIGTERM


@pytest.mark.parametrize(
    "call", [lambda argv: MACHINE.feed(argv, []), lambda argv: run.output(MACHINE.lines(argv))]
)
def test_a_program_that_is_missing(call) -> None:
    with pytest.raises(FileNotFoundError):
        call(["no-such-program-anywhere"])


def test_a_program_that_complains_at_length_before_it_reads() -> None:
    with pytest.raises(ProgramError) as caught:
        MACHINE.feed(sh(f"{NOISY} >&2; cat > /dev/null; echo at last >&2; exit 1"), [bytes(1 << 22)])
    assert str(caught.value).endswith("at last")
    assert len(str(caught.value)) < 10_000, "the log is for people"


def test_a_program_that_complains_at_length_before_it_answers() -> None:
    assert run.output(MACHINE.lines(sh(f"{NOISY} >&2; echo done"))) == "done"


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LIMIT_SECONDS", 0.1)
    with pytest.raises(ProgramError) as caught:
        run.output(MACHINE.lines(["sleep", "600"]))
    assert caught.value.code == -signal.SIGKILL


def test_when_the_input_cannot_be_made_the_program_is_ended(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield str(tmp_path).encode() + b"/started\n" + bytes(1 << 16)
        while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
            pass
        raise LookupError("no more")

    with pytest.raises(LookupError):
        MACHINE.feed(sh('read name; echo $$ > "$name"; exec sleep 600'), chunks())
    pid = int((tmp_path / "started").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_reader_that_loses_interest_leaves_nothing_behind() -> None:
    lines = MACHINE.lines(sh("echo $$; exec sleep 600"))
    pid = int(next(lines))
    lines.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nothing_is_left_open() -> None:
    run.output(MACHINE.lines(["true"]))
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        MACHINE.feed(["cat"], [b"x"])
        with pytest.raises(ProgramError):
            run.output(MACHINE.lines(["false"]))
    assert set(Path("/proc/self/fd").iterdir()) == before
