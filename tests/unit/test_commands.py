"""What all commands have in common."""

import json
import subprocess
import sys

import pytest

from kubeproxy import cli
from kubeproxy.cli import command

MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
"""


@pytest.fixture
def manifests(tmp_path):
    (tmp_path / "a.yaml").write_text(MANIFEST)
    return tmp_path


def kube_proxy(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "kubeproxy", *arguments], check=False, capture_output=True, text=True, timeout=120, **settings
    )  # fmt: skip


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help_with_examples_and_statuses(name):
    found = command.load(name)
    assert found.name == name
    done = kube_proxy(name, "--help")
    assert done.returncode == 0, done.stderr
    assert found.examples
    for _, line in found.examples:
        assert line in done.stdout
    for status, _ in (*found.statuses, *command.COMMON_STATUSES):
        assert f"  {status:<4} " in done.stdout


def test_flags_of_the_daemon_are_told_from_those_of_the_command():
    own, others = command.divide(
        [
            "--from",
            "node",
            "--cluster-cidr",
            "10.0.0.0/8",
            "--json",
            "--cleanup",
            "--proxy_mode=nftables",
            "x",
            "--help",
        ]
    )
    assert own == ["--from", "node", "--json", "x", "--help"]
    assert others == ["--cluster-cidr", "10.0.0.0/8", "--cleanup", "--proxy_mode=nftables"]


def test_a_value_may_begin_with_a_minus():
    given = ["--at", "-10m", "--live", "-1", "--json", "-v2", "--x=1", "-3", "--", "-4"]
    assert command.with_negative_values(given) == [
        "--at=-10m",
        "--live=-1",
        "--json",
        "-v2",
        "--x=1",
        "-3",
        "--",
        "-4",
    ]


def test_an_answer_for_programs_and_one_for_people(manifests):
    question = (
        "explain",
        "--from",
        "node",
        "--to",
        "api.shop",
        "--manifests",
        str(manifests),
        "--hostname-override",
        "n1",
    )
    done = kube_proxy(*question, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["verdict"], answer["service"]) == (4, "reject", "shop/api")
    assert {
        "from",
        "to",
        "port",
        "protocol",
        "mode",
        "node",
        "verdict",
        "reason",
        "service",
        "portName",
        "front",
    } <= answer.keys()
    assert {"masquerade", "endpoints", "excluded", "kernel", "differences"} <= answer.keys()
    done = kube_proxy(*question)
    assert done.returncode == 4
    assert "\x1b" not in done.stdout
    assert "Service shop/api, port http, ClusterIP" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain"], "the following arguments are required: --from, --to; see kube-proxy explain --help"),
        (["explain", "--form", "node"], "see kube-proxy explain --help"),
        (
            ["explain", "--from", "node", "--to", "api.shop", "--manifests", "/nowhere"],
            "/nowhere does not exist",
        ),
        (
            ["explain", "--from", "node", "--to", "apu.shop", "--manifests", "MANIFESTS"],
            "did you mean shop/api?",
        ),
        (["explain", "--from", "node", "--to", ":1", "--live", "0"], "--live 0: a number from 1 to 1000"),
        (["explain", "--from", "node", "--to", ":1", "--live", "x"], "argument --live: invalid int value"),
        (["explain", "--from", "node", "--to", ":1", "--timeout", "nan"], "--timeout nan: seconds, above 0"),
        (
            ["explain", "--from", "node", "--to", "api.shop", "--journal", "/nowhere", "--at", "-10m"],
            "the journal in /nowhere cannot be read: No such file or directory",
        ),
        (
            ["explain", "--from", "node", "--to", "api.shop", "--journal", "/nowhere", "--at", "nine"],
            "'nine' is no moment; write 03:12:07,",
        ),
        (
            ["explain", "--from", "node", "--to", "api.shop", "--at", "09:00", "--live"],
            "show what happens now",
        ),
        (["verify", "--manifests", ""], "--manifests: a path is empty"),
        (["replay", "/nowhere"], "the journal in /nowhere cannot be read: No such file or directory"),
        (["replay", "/nowhere", "--since", "-1m", "--until", "-2m"], "--since -1m is after --until -2m"),
        (["replay", "/nowhere", "--service", "api"], "a Service is written as NAMESPACE/NAME"),
        (["completion", "fish"], "invalid choice"),
        (["explian", "--from", "node"], "there is no command 'explian'; did you mean 'explain'?"),
        (
            ["plan", "--manifests", "MANIFESTS", "--hostname-override", "n1", "--against", "/nowhere"],
            "--against /nowhere: there is no such file or folder",
        ),
        (
            ["explain", "--from", "node", "--to", ":1", "--live", "--from", "10.0.0.1", "--connect"],
            "--from node",
        ),
    ],
)
def test_a_wrong_question_gets_one_line(manifests, arguments, message):
    done = kube_proxy(*[str(manifests) if a == "MANIFESTS" else a for a in arguments])
    assert done.returncode == command.FAILED
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert "Traceback" not in done.stderr


def test_programs_get_json_when_the_question_is_wrong(manifests):
    sources = ("--manifests", str(manifests), "--hostname-override", "n1")
    for arguments, message in (
        (["explain", "--from", "node", "--to", "apu.shop", *sources], "there is no Service shop/apu"),
        (["explain", "--to", "api.shop"], "--from"),
        (["doctor", "--check", "KP999", *sources], "there is no check KP999"),
        (["verify", "--config", "/nowhere"], "/nowhere"),
        (["plan", *sources, "--mode", "none"], "--mode none"),
        (["top", "api", *sources], "did you mean shop/api?"),
        (["replay", "/nowhere"], "/nowhere"),
    ):
        done = kube_proxy(*arguments, "--json")
        assert done.returncode == command.FAILED
        assert message in json.loads(done.stdout)["error"]
        assert message in done.stderr


def test_an_api_server_that_does_not_answer_is_named_once(tmp_path):
    (tmp_path / "kubeconfig").write_text(
        "{apiVersion: v1, kind: Config, current-context: d, contexts: [{name: d, context: {cluster: c, user: u}}],"
        ' clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}], users: [{name: u, user: {token: x}}]}'
    )
    done = kube_proxy("verify", "--kubeconfig", str(tmp_path / "kubeconfig"), "--hostname-override", "n1")
    assert done.returncode == command.FAILED
    kinds = "Service, EndpointSlice, Node, ServiceCIDR"
    assert done.stderr == (
        f"Error: the API server cannot be read: cannot connect to 127.0.0.1:1: Connection refused ({kinds})\n"
    )


def test_manifests_that_cannot_be_used_are_named(manifests):
    (manifests / "b.yaml").write_text("kind: [")
    question = (
        "--from",
        "node",
        "--to",
        "api.shop",
        "--manifests",
        str(manifests),
        "--hostname-override",
        "n1",
    )
    done = kube_proxy("explain", *question)
    assert done.returncode == 4
    notes = [line for line in done.stderr.splitlines() if "b.yaml" in line]
    assert len(notes) == 1
    assert notes[0].startswith(f"Note: {manifests}/b.yaml cannot be used: line ")
    assert "starting" not in done.stderr


def test_flags_that_a_configuration_file_excludes_are_an_error(manifests, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n")
    sources = ("--config", str(file), "--manifests", str(manifests), "--hostname-override", "n1")
    done = kube_proxy("verify", *sources, "--proxy-mode", "nftables", "--cluster-cidr", "10.0.0.0/8")
    assert done.returncode == command.FAILED
    assert f"--proxy-mode, --cluster-cidr: no effect with the configuration file {file}" in done.stderr
    assert (
        json.loads(kube_proxy("plan", *sources, "--mode", "nftables", "--json").stdout)["mode"] == "nftables"
    )


def test_completion_in_bash():
    script = kube_proxy("completion", "bash").stdout
    ask = 'COMP_WORDS=(kube-proxy explain --interf); COMP_CWORD=2; _kube_proxy; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["--interface"]
    ask = 'COMP_WORDS=(kube-proxy expl); COMP_CWORD=1; _kube_proxy; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["explain"]


def test_the_daemon_loads_no_command():
    code = "import sys, kubeproxy.cli, kubeproxy.cli.run; print(*[m for m in sys.modules if m in ('rich', 'argparse') or 'insight' in m])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
