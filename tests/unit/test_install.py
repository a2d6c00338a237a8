"""`make install` and `make uninstall` touch nothing but an installation of this program, wherever it is."""

import subprocess
from pathlib import Path

import pytest

from tests.lab.topology import ROOT


def make(target: str, path: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """Runs make, with everything it writes below a path."""
    given = {
        "UNITS": path / "units",
        "MANUALS": path / "man",
        "DEFAULTS": path / "default" / "kube-proxy",
        "SYSTEMCTL": "true",
        **variables,
    }
    command = ["make", "--silent", "--directory", str(ROOT), target, *(f"{k}={v}" for k, v in given.items())]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("prefix", ["", "relative", "/", "/usr/local/", "/none of ours", "//"])
def test_a_prefix_that_is_none(tmp_path: Path, prefix: str) -> None:
    done = make("prefix", tmp_path, PREFIX=prefix)
    assert done.returncode != 0
    assert (
        f"PREFIX must be an absolute path, without white space and / at its end, not '{prefix}'"
        in done.stderr
    )


@pytest.mark.parametrize("file", ["data", "pyvenv.cfg", "bin/python", "bin/kube-proxy"])
def test_what_is_not_ours_is_neither_used_nor_removed(tmp_path: Path, file: str) -> None:
    prefix = tmp_path / "prefix"
    (prefix / file).parent.mkdir(parents=True)
    (prefix / file).touch(mode=0o755)
    for target in ("prefix", "uninstall"):
        done = make(target, tmp_path, PREFIX=prefix)
        assert done.returncode != 0
        assert f"{prefix} is in use, and not by an installation of kube-proxy" in done.stderr
    assert (prefix / file).exists()


@pytest.mark.parametrize("files", [[".kube-proxy"], ["pyvenv.cfg", "bin/kube-proxy"], []])
def test_ours_is_removed_and_a_second_time_nothing(tmp_path: Path, files: list[str]) -> None:
    prefix = tmp_path / "prefix"
    for file in files:
        (prefix / file).parent.mkdir(parents=True, exist_ok=True)
        (prefix / file).touch(mode=0o755)
    assert make("unit", tmp_path, PREFIX=prefix).returncode == 0
    for _ in range(2):
        done = make("uninstall", tmp_path, PREFIX=prefix)
        assert (done.returncode, done.stderr) == (0, "")
        assert not prefix.exists()
        assert list((tmp_path / "units").iterdir()) == []
        assert (tmp_path / "default" / "kube-proxy").exists(), "the arguments are kept"


def test_the_unit_names_what_was_installed(tmp_path: Path) -> None:
    assert make("unit", tmp_path, PREFIX="/srv/proxy").returncode == 0
    unit = (tmp_path / "units" / "kube-proxy.service").read_text()
    assert "\nExecStart=/srv/proxy/bin/kube-proxy $ARGS\n" in unit
    assert f"\nEnvironmentFile={tmp_path}/default/kube-proxy\n" in unit
    assert "/opt/kube-proxy" not in unit
    assert make("unit", tmp_path).returncode == 0
    assert (tmp_path / "units" / "kube-proxy.service").read_text() == (
        (ROOT / "deploy/systemd/kube-proxy.service").read_text()
        .replace("/etc/default/kube-proxy", f"{tmp_path}/default/kube-proxy")
    )  # fmt: skip
