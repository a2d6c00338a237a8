"""Exec credential plugins, run as real programs."""

import asyncio
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kubeproxy.sources.execplugin import Credential, PluginError, run
from kubeproxy.sources.kubeconfig import Cluster, EnvVar, ExecPlugin, Extension

V1 = "client.authentication.k8s.io/v1"
V1BETA1 = "client.authentication.k8s.io/v1beta1"
CLUSTER = Cluster(server="https://api:6443")


def plugin(code: str, *args: str, version: str = V1, **settings: Any) -> ExecPlugin:
    """A plugin that is a piece of Python."""
    return ExecPlugin(
        command=sys.executable, args=("-c", textwrap.dedent(code), *args), api_version=version, **settings
    )


def printing(status: object, version: str = V1, kind: str = "ExecCredential") -> ExecPlugin:
    answer = {"apiVersion": version, "kind": kind, "status": status}
    return plugin(f"print({msgspec.json.encode(answer).decode()!r})", version=version)


async def failure(it: ExecPlugin, seconds: float = 60) -> str:
    with pytest.raises(PluginError) as e:
        await run(it, CLUSTER, b"", seconds)
    message = str(e.value)
    assert message.startswith(f"exec plugin {it.command}: ")
    return message.removeprefix(f"exec plugin {it.command}: ")


@pytest.mark.parametrize("version", [V1, V1BETA1])
async def test_a_token(version: str) -> None:
    assert await run(printing({"token": "abc"}, version), CLUSTER, b"") == Credential(token="abc")


async def test_a_certificate_that_expires() -> None:
    status = {
        "clientCertificateData": "C",
        "clientKeyData": "K",
        "expirationTimestamp": "2030-01-01T01:00:00+01:00",
        "token": None,
    }
    issued = await run(printing(status), CLUSTER, b"")
    assert issued == Credential(certificate="C", key="K", expires=1893456000.0)


REPORT = """
    import json, os, sys
    told = {
        "info": json.loads(os.environ["KUBERNETES_EXEC_INFO"]),
        "mine": os.environ.get("MINE"),
        "path": "PATH" in os.environ,
        "args": sys.argv[1:],
        "stdin": sys.stdin.read(),
    }
    print(json.dumps({"apiVersion": told["info"]["apiVersion"], "kind": "ExecCredential",
                      "status": {"token": json.dumps(told)}}))
"""


async def told(it: ExecPlugin, cluster: Cluster = CLUSTER, authority: bytes = b"") -> Any:
    return msgspec.json.decode((await run(it, cluster, authority)).token)


async def test_what_a_plugin_is_told() -> None:
    seen = await told(plugin(REPORT, "a", "b c", env=(EnvVar("MINE", "yes"),)))
    assert seen == {
        "info": {"apiVersion": V1, "kind": "ExecCredential", "spec": {"interactive": False}},
        "mine": "yes",
        "path": True,
        "args": ["a", "b c"],
        "stdin": "",
    }
    assert "MINE" not in os.environ


async def test_a_plugin_that_asks_for_the_cluster() -> None:
    extension = Extension("client.authentication.k8s.io/exec", {"audience": "prod"})
    cluster = Cluster(
        server="https://api:6443",
        tls_server_name="kubernetes",
        proxy_url="http://proxy",
        extensions=(Extension("other", 1), extension),
    )
    seen = await told(plugin(REPORT, provide_cluster_info=True), cluster, b"PEM")
    assert seen["info"]["spec"]["cluster"] == {
        "server": "https://api:6443",
        "tls-server-name": "kubernetes",
        "proxy-url": "http://proxy",
        "certificate-authority-data": "UEVN",
        "config": {"audience": "prod"},
    }


async def test_a_missing_program_comes_with_its_hint() -> None:
    it = ExecPlugin(command="/no/such/plugin", api_version=V1, install_hint="get it from the shop\n")
    assert await failure(it) == "cannot be run: No such file or directory\nget it from the shop"


async def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "plugin"
    path.write_text("")
    assert "cannot be run: Permission denied" in await failure(ExecPlugin(command=str(path), api_version=V1))


async def test_a_failing_program() -> None:
    it = plugin("import sys; print('log in first', file=sys.stderr); sys.exit(3)")
    assert await failure(it) == "exit status 3: log in first"
    assert await failure(plugin("raise SystemExit(4)")) == "exit status 4"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({}, "gave neither a token nor a client certificate"),
        (None, "gave neither a token nor a client certificate"),
        ({"clientKeyData": "K", "token": "t"}, "gave a client certificate without its key, or a key alone"),
        ({"token": "a\r\nX-Forged: b"}, "its token has a line break or another control character"),
        ({"token": 5}, "printed no ExecCredential: Expected `str | null`, got `int` - at `$.status.token`"),
        ({"token": "t", "expirationTimestamp": "soon"}, "printed no ExecCredential: Invalid RFC3339"),
        ({"token": "t", "expirationTimestamp": "2030-01-01T00:00:00"}, "printed no ExecCredential: Expected"),
    ],
)
async def test_a_useless_answer(status: object, reason: str) -> None:
    assert (await failure(printing(status))).startswith(reason)


async def test_another_version_or_kind() -> None:
    it = msgspec.structs.replace(printing({"token": "t"}, V1BETA1), api_version=V1)
    assert "expected ExecCredential of client.authentication.k8s.io/v1" in await failure(it)
    assert 'printed kind "Pod"' in await failure(printing({"token": "t"}, kind="Pod"))
    assert (await failure(plugin("print('welcome')"))).startswith(
        "printed no ExecCredential: JSON is malformed"
    )


@pytest.mark.parametrize("end", ["wait", "exit 0"])
async def test_a_hanging_program_is_ended_with_its_children(tmp_path: Path, end: str) -> None:
    """Also one that ended itself, and left a child that holds its output open."""
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $$ $! > {pids}; {end}"
    it = ExecPlugin(command="sh", args=("-c", script), api_version=V1)
    assert await failure(it, 3) == "did not answer within 3 s and was ended"
    async with asyncio.timeout(20):
        for pid in pids.read_text().split():
            while alive(Path(f"/proc/{pid}/stat")):  # noqa: ASYNC110 nobody tells us of a process that is not ours
                await asyncio.sleep(0.01)


def alive(stat: Path) -> bool:
    """A zombie only waits for its new parent."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_one_that_prints_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubeproxy.sources.execplugin.LARGEST_SETTINGS", 100_000)
    endless = plugin("import sys\nwhile True: sys.stdout.write('x' * 65536)")
    assert await failure(endless) == "printed more than 100000 bytes and was ended"


async def test_of_what_it_says_the_end_is_kept() -> None:
    assert (
        await failure(
            plugin("import sys\nfor i in range(300_000): print(i, file=sys.stderr)\nprint('x')\nsys.exit(3)")
        )
        == ("exit status 3: " + "\n".join(map(str, range(300_000)))[-500:]).rstrip()
    )


async def test_one_whose_answer_is_nested_without_end() -> None:
    deep = plugin("print('{\"x\":' + '[' * 200_000)")
    assert await failure(deep) == "printed no ExecCredential: nested too deeply"
