"""What deploy/ says fits the program: flags and configuration it takes, rights it is tested with, objects it asks for."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeproxy.config.commandline import parse
from kubeproxy.config.decode import decode
from kubeproxy.config.defaults import with_defaults, with_platform_defaults
from kubeproxy.config.load import load
from kubeproxy.config.validate import validate
from kubeproxy.sources import apiserver
from kubeproxy.sources.watch import Resource

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RIGHTS = {"NET_ADMIN", "NET_RAW"}
"""Those tests/kernel/test_rights.py runs it with."""


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The objects of the manifest by kind."""
    documents = yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def test_the_config_map_is_a_configuration(objects: dict[str, Any]) -> None:
    text = objects["ConfigMap"]["data"]["config.conf"]
    config, doubts = decode(text.encode(), "config.conf")
    assert doubts == ()
    assert validate(with_platform_defaults(with_defaults(config), "linux"), "linux") == []


def test_the_daemon_set_takes_the_config_map(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    values = parse([arg.replace("$(NODE_NAME)", "node") for arg in container["args"]], "linux")
    assert values == {"config": "/var/lib/kube-proxy/config.conf", "hostname-override": "node"}
    (init,) = pod["initContainers"]
    words = shlex.split(init["command"][2])
    assert parse(words[1 : words.index("||")], "linux") == {"init-only": True, "config": values["config"]}
    volumes = {volume["name"] for volume in pod["volumes"]}
    for each in (container, init):
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
        assert "/var/lib/kube-proxy" in {mount["mountPath"] for mount in each["volumeMounts"]}


def test_the_daemon_set_gives_no_more_rights_than_are_tested(pod: dict[str, Any]) -> None:
    context = pod["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": sorted(RIGHTS)}
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert "privileged" not in context
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_role_allows_what_is_asked(objects: dict[str, Any]) -> None:
    allowed = {
        (group, resource, verb)
        for rule in objects["ClusterRole"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    paths = [r.path for r in vars(apiserver).values() if isinstance(r, Resource)]
    assert len(paths) == 4
    for path in (*paths, "/api/v1/nodes"):
        *_, group, _, resource = path.split("/")
        for verb in ("list", "watch"):
            assert ("" if group == "api" else group, resource, verb) in allowed
    assert {("events.k8s.io", "events", verb) for verb in ("create", "patch")} <= allowed


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
    assert len(arguments) == 2
    flags = arguments[0].split()
    (start,) = given["ExecStart"]
    assert start.endswith(" $ARGS")
    options = load(parse(flags, "linux"), "linux")
    assert validate(options.config, "linux") == []
    assert given["OOMScoreAdjust"] == [str(options.config.oom_score_adj)]
    (before,) = given["ExecStartPre"]
    assert before == f"-+{start.removesuffix('$ARGS')}--init-only $ARGS"


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
