"""The score the kernel keeps of a process, on a process of our own."""

import subprocess
import sys
from pathlib import Path

import pytest

from kubeproxy.linux import oom

ROOT = Path(__file__).resolve().parents[3]


def adjusted(score: int, *prefix: str) -> str:
    """What a process that adjusts itself ends with: its score, and its child's, or the error."""
    program = (
        "import subprocess\n"
        "from kubeproxy.linux import oom\n"
        "try:\n"
        f"    oom.adjust({score})\n"
        "except OSError as e:\n"
        "    print(type(e).__name__)\n"
        "else:\n"
        "    print(subprocess.check_output(['cat', '/proc/self/oom_score_adj'], text=True).strip())\n"
    )
    return subprocess.run(
        [*prefix, sys.executable, "-c", program],
        check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")},
    ).stdout.strip()  # fmt: skip


@pytest.mark.parametrize("score", [0, 1, 1000])
def test_a_process_and_what_it_starts(score: int) -> None:
    assert adjusted(score) == str(score)


def test_without_the_right_to_it() -> None:
    unable = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    assert adjusted(-998, *unable) == "PermissionError"
    assert adjusted(900, *unable) == "900"


def test_a_score_that_is_right_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been given by a service manager, and not be ours to set."""
    file = tmp_path / "oom_score_adj"
    file.write_text("-999\n")
    monkeypatch.setattr(oom, "FILE", file)
    before = file.stat().st_mtime_ns
    oom.adjust(-999)
    assert (file.read_text(), file.stat().st_mtime_ns) == ("-999\n", before)
