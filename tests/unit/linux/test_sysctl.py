"""Settings in a folder that looks like /proc/sys."""

from pathlib import Path

import pytest

from kubeproxy.linux import sysctl


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "net/forward").write_text("0\n")
    return tmp_path


def test_read() -> None:
    assert sysctl.read("net/forward") == "0"


def test_a_setting_is_changed_once(root: Path) -> None:
    assert sysctl.ensure("net/forward", 1)
    assert (root / "net/forward").read_text() == "1"
    assert not sysctl.ensure("net/forward", 1)


def test_what_is_right_is_not_written(root: Path) -> None:
    before = (root / "net/forward").stat().st_mtime_ns
    assert not sysctl.ensure("net/forward", 0)
    assert (root / "net/forward").stat().st_mtime_ns == before
    assert (root / "net/forward").read_text() == "0\n"


def test_a_setting_the_kernel_does_not_have() -> None:
    with pytest.raises(FileNotFoundError):
        sysctl.ensure("net/no_such", 1)
    with pytest.raises(FileNotFoundError):
        sysctl.read("net/no_such")
