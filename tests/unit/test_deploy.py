"""The systemd unit fits the program: flags it takes, rights it is tested with. Manifests are tested in tests/deploy."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kubeproxy.config.commandline import parse
from kubeproxy.config.load import load
from kubeproxy.config.validate import validate

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RIGHTS = {"NET_ADMIN", "NET_RAW"}
"""Those tests/kernel/test_rights.py runs it with."""


def unit() -> dict[str, list[str]]:
    """The settings of the service, each with all it is given."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd/kube-proxy.service").read_text().splitlines():
        if match := re.fullmatch(r"([A-Z]\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_the_unit() -> None:
    given = unit()
    assert {f"CAP_{right}" for right in RIGHTS} == set(given["CapabilityBoundingSet"][0].split())
    assert given["EnvironmentFile"] == ["/etc/default/kube-proxy"]
    assert given["StartLimitIntervalSec"] == ["0"]
    arguments = re.findall(
        r"^(?:# )?ARGS=\"(.*)\"$", (DEPLOY / "systemd/kube-proxy.default").read_text(), re.MULTILINE
    )
    assert len(arguments) == 3
    flags = arguments[0].split()
    (start,) = given["ExecStart"]
    assert start.endswith(" $ARGS")
    options = load(parse(flags, "linux"), "linux")
    assert validate(options.config, "linux") == []
    assert given["OOMScoreAdjust"] == [str(options.config.oom_score_adj)]
    (before,) = given["ExecStartPre"]
    assert before == f"-+{start.removesuffix('$ARGS')}--init-only $ARGS"
    journals = [parse(each.split(), "linux").get("journal") for each in arguments]
    (folder,) = given["StateDirectory"]  # it can be written, everything else cannot
    assert journals == [None, None, f"/var/lib/{folder}"]
    assert (given["ProtectSystem"], given["StateDirectoryMode"]) == (["strict"], ["0700"])


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (
        (DEPLOY / "systemd/kube-proxy.service")
        .read_text()
        .replace("/opt/kube-proxy/bin/kube-proxy", "/bin/true")
    )
    (tmp_path / "kube-proxy.service").write_text(text)
    if shutil.which("systemd-analyze") is None:
        pytest.fail("this test needs systemd-analyze: apt-get install systemd", pytrace=False)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "kube-proxy.service")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "kube-proxy.service:" not in done.stderr
