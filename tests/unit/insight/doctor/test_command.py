"""`kube-proxy doctor` as people and programs call it. The manifests are of another node, so nothing of this host is looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.insight.doctor.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def doctor(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    world.facts()  # writes the files
    folder = world.folder
    return subprocess.run(
        [sys.executable, "-m", "kubeproxy", "doctor", *arguments,
         f"--config={folder}/config.yaml", f"--manifests={folder}/manifests", "--hostname-override=n1"],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_finding_for_people(world: World) -> None:
    world.api_slice["endpoints"] = []
    done = doctor(world)
    assert done.returncode == 2, done.stderr
    assert "!   KP060  shop/api has no endpoints" in done.stdout
    assert "(docs/doctor.md#kp060)" in done.stdout
    assert "could not look" in done.stdout
    assert "could not be looked at: " in done.stdout
    assert "\x1b" not in done.stdout


def test_findings_for_programs(world: World) -> None:
    world.api_slice["endpoints"] = []
    done = doctor(world, "--json", "--check", "kp060", "--check", "KP050")
    answer = json.loads(done.stdout)
    assert done.returncode == 2
    assert answer["healthy"] is False
    assert answer["skipped"] == 1
    tracking, endpoints = answer["checks"]
    assert (tracking["id"], tracking["status"]) == ("KP050", "skipped")
    assert "the answer is for another node" in tracking["reason"]
    assert endpoints["status"] == "warning"
    (found,) = endpoints["found"]
    assert found.keys() == {"finding", "evidence", "remedy", "service", "severity"}


def test_every_check_with_all(world: World) -> None:
    done = doctor(world, "--all", "--check", "KP062")
    assert done.returncode == 0
    assert done.stdout.startswith("ok  KP062  ports of Services have endpoints\n")


def test_one_service(world: World) -> None:
    world.api_slice["endpoints"] = []
    assert doctor(world, "shop/dns", "--check", "KP060").returncode == 0
    assert doctor(world, "api.shop", "--check", "KP060").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "KP999"], "there is no check KP999; docs/doctor.md lists them, KP001 to "),
        (["shop/apu"], "there is no Service shop/apu; did you mean shop/api?"),
        (
            ["api"],
            "'api': a Service is written as NAMESPACE/NAME or NAME.NAMESPACE, e.g. shop/api or api.shop; did you mean shop/api?",
        ),
        (["default/api"], "there is no Service default/api; did you mean shop/api?"),
        (["shop/none"], "Service shop/none is not served by kube-proxy: it is headless"),
    ],
)
def test_a_wrong_question_gets_one_line(world: World, arguments: list[str], message: str) -> None:
    headless = yaml.safe_load(
        "{apiVersion: v1, kind: Service, metadata: {name: none, namespace: shop}, spec: {clusterIP: None}}"
    )
    headless["spec"]["clusterIP"] = "None"
    world.more.append(headless)
    done = doctor(world, *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line
