"""Exec credential plugins: programs that print a credential.

The plugin gets the request in KUBERNETES_EXEC_INFO and prints an ExecCredential on its standard output. It
never gets a terminal, because a daemon has none. After a minute it is killed with all its children.

Source: KEP-541, client.authentication.k8s.io v1 and v1beta1.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from kubeproxy.api.jsontext import BROKEN, reason
from kubeproxy.api.limits import LARGEST_SETTINGS
from kubeproxy.sources.kubeconfig import UNSENDABLE, Cluster, ExecPlugin, is_sendable

_EXTENSION = "client.authentication.k8s.io/exec"
_CHUNK = 65536
_LARGEST_STDERR = 4096
_ENDING_SECONDS = 5.0
_GROUP: Final[dict[str, Any]] = (
    {"creationflags": 0x200} if sys.platform == "win32" else {"start_new_session": True}
)
"""A process group of its own, so that Ctrl-C in the console of the daemon does not end a plugin."""

_SHOWN = 500
"""Characters of the standard error of a failed plugin that are shown."""


class PluginError(Exception):
    """The plugin gave no usable credential; the message has the plugin and the reason."""


class _TooMuchError(Exception):
    """The plugin prints without end."""


class Credential(Struct, frozen=True, gc=False):
    """What a plugin issued.

    Attributes:
        token: bearer token, or empty.
        certificate: PEM client certificate, or empty.
        key: its PEM key.
        expires: Unix time in seconds when a new one is due, or None for never.
    """

    token: str = ""
    certificate: str = ""
    key: str = ""
    expires: float | None = None


class _CredentialStatus(Struct, frozen=True, gc=False, rename="camel"):
    expiration_timestamp: Annotated[datetime, Meta(tz=True)] | None = None
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None


class _ExecCredential(Struct, frozen=True, gc=False, rename="camel"):
    api_version: str = ""
    kind: str = ""
    status: _CredentialStatus | None = None


async def run(plugin: ExecPlugin, cluster: Cluster, authority: bytes, seconds: float = 60) -> Credential:
    """Runs a plugin once.

    Args:
        plugin: what to run.
        cluster: the server the credential is for, passed to plugins with provideClusterInfo.
        authority: PEM bundle of the cluster's CA, or empty.
        seconds: how long it may take.

    Raises:
        PluginError: it could not be started, failed, took too long or printed something else.
    """
    name = f"exec plugin {plugin.command}"
    env = dict(os.environ)
    env.update((variable.name, variable.value) for variable in plugin.env)
    env["KUBERNETES_EXEC_INFO"] = msgspec.json.encode(_request(plugin, cluster, authority)).decode()
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command,
            *plugin.args,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **_GROUP,
        )
    except OSError as e:
        hint = f"\n{plugin.install_hint.strip()}" if plugin.install_hint else ""
        raise PluginError(f"{name}: cannot be run: {e.strerror}{hint}") from None
    with _with_children(process) as end:
        whole = False
        try:
            async with asyncio.timeout(seconds):
                out, err = await _output(process)
            whole = True
        except TimeoutError:
            raise PluginError(f"{name}: did not answer within {seconds:g} s and was ended") from None
        except _TooMuchError:
            raise PluginError(f"{name}: printed more than {LARGEST_SETTINGS} bytes and was ended") from None
        finally:
            if not whole:  # it may have ended, and a process that it left behind holds its output open
                with contextlib.suppress(ProcessLookupError):
                    end()
                await _ended(process)
    if process.returncode:
        stderr = err.decode(errors="replace").strip()[-_SHOWN:]
        raise PluginError(f"{name}: exit status {process.returncode}{': ' if stderr else ''}{stderr}")
    return parse(out, plugin.api_version, name)


@contextlib.contextmanager
def _with_children(process: asyncio.subprocess.Process) -> Iterator[Callable[[], None]]:
    """Yields a function that ends a program and all programs that it started."""
    if sys.platform != "win32":
        yield lambda: os.killpg(process.pid, signal.SIGKILL)
        return
    from kubeproxy.windows.jobs import Job

    try:
        job = Job(process.pid)
    except OSError:  # it has ended
        yield process.kill
        return
    try:
        yield job.end
    finally:
        job.close()


async def _output(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """The standard output of a program, and the end of its standard error.

    Raises:
        _TooMuchError: it prints more than a credential can have.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.TaskGroup() as group:
            out = group.create_task(_printed(process.stdout))
            err = group.create_task(_end(process.stderr))
            group.create_task(process.wait())
    except ExceptionGroup as e:
        raise e.exceptions[0] from None
    return out.result(), err.result()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Waits for a program that was killed.

    asyncio reports the end only after the pipes were closed, which remaining child processes may hold open.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ENDING_SECONDS):
            await asyncio.gather(_end(process.stdout), _end(process.stderr), process.wait())


async def _printed(stream: asyncio.StreamReader) -> bytes:
    out = bytearray()
    while chunk := await stream.read(_CHUNK):
        out += chunk
        if len(out) > LARGEST_SETTINGS:
            raise _TooMuchError
    return bytes(out)


async def _end(stream: asyncio.StreamReader) -> bytes:
    stderr = b""
    while chunk := await stream.read(_CHUNK):
        stderr = (stderr + chunk)[-_LARGEST_STDERR:]
    return stderr


def _request(plugin: ExecPlugin, cluster: Cluster, authority: bytes) -> dict[str, Any]:
    """The ExecCredential a plugin gets; absent fields are left out as Go does."""
    spec: dict[str, Any] = {"interactive": False}
    if plugin.provide_cluster_info:
        cluster_fields = {
            "server": cluster.server,
            "tls-server-name": cluster.tls_server_name,
            "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
            "certificate-authority-data": authority,
            "proxy-url": cluster.proxy_url,
            "disable-compression": cluster.disable_compression,
            "config": next((e.extension for e in cluster.extensions if e.name == _EXTENSION), None),
        }
        spec["cluster"] = {key: value for key, value in cluster_fields.items() if value}
    return {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}


def parse(out: bytes, version: str, name: str) -> Credential:
    """The credential in the output of a plugin.

    Args:
        out: the output.
        version: the apiVersion that the kubeconfig requests.
        name: the plugin, for messages.

    Raises:
        PluginError: the output has none.
    """
    try:
        answer = msgspec.json.decode(out, type=_ExecCredential)
    except BROKEN as e:
        raise PluginError(f"{name}: printed no ExecCredential: {reason(e)}") from None
    if answer.kind != "ExecCredential" or answer.api_version != version:
        raise PluginError(
            f'{name}: printed kind "{answer.kind}" of "{answer.api_version}", expected ExecCredential of {version}'
        )
    status = answer.status or _CredentialStatus()
    expires = status.expiration_timestamp
    issued = Credential(
        token=status.token or "",
        certificate=status.client_certificate_data or "",
        key=status.client_key_data or "",
        expires=expires.timestamp() if expires else None,
    )
    if bool(issued.certificate) != bool(issued.key):
        raise PluginError(f"{name}: gave a client certificate without its key, or a key alone")
    if not issued.token and not issued.certificate:
        raise PluginError(f"{name}: gave neither a token nor a client certificate")
    if not is_sendable(issued.token):
        raise PluginError(f"{name}: its token {UNSENDABLE}")
    return issued
