"""Credentials that rotate while the program runs.

Before each request, `grant` returns what to send. There are four requests every few minutes, so checking the
files each time costs nothing and is always up to date. A token file is read each time. When the kubeconfig,
the CA or the client certificate's files change, all are read again and a new TLS context is made; requests
with different contexts never share a connection, so the old connections end with their watches. A file that
cannot be used at that moment (it is being replaced, or the certificate has no key yet) is read again at the
next request; until then the last good settings are used.

An exec plugin runs when it has given no credential yet, when that expires, and after a 401.
"""

import asyncio
import base64
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from kubeproxy.api.limits import read_file
from kubeproxy.sources import execplugin, tls
from kubeproxy.sources.kubeconfig import (
    UNSENDABLE,
    Cluster,
    ClusterAccess,
    ExecPlugin,
    KubeconfigError,
    User,
    is_sendable,
)
from kubeproxy.sources.proxies import proxy_for

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

RunPlugin = Callable[[ExecPlugin, Cluster, bytes], Awaitable[execplugin.Credential]]

_HEADER_SAFE: Final = "!#$&'*+-.^_`|~"


class Grant(NamedTuple):
    """How to make one request.

    Attributes:
        server: URL to which paths are appended.
        headers: authenticate the client.
        context: for TLS, or None if the server's URL is plain http.
        server_name: name the server's certificate must have, or None for the URL's.
        proxy: URL of an HTTP proxy, or None.
        compress: whether lists may be compressed.
    """

    server: str
    headers: tuple[tuple[str, str], ...]
    context: "ssl.SSLContext | None"
    server_name: str | None
    proxy: str | None
    compress: bool


class _Settings(NamedTuple):
    """The settings that were read from files together."""

    connection: ClusterAccess
    authority: bytes
    context: "ssl.SSLContext | None"
    headers: tuple[tuple[str, str], ...]
    proxy: str | None


class Credentials:
    """The connection settings of one API server, read again when the files change."""

    def __init__(
        self,
        load: Callable[[], ClusterAccess],
        *,
        run_plugin: RunPlugin = execplugin.run,
        now: Callable[[], float] = time.time,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        """Reads everything once.

        Args:
            load: reads the connection settings; called again when their file changes.
            run_plugin: runs an exec plugin.
            now: Unix time in seconds.
            env: the process's environment, for its proxies.

        Raises:
            KubeconfigError: a file is missing or unusable.
        """
        self._load = load
        self._run_plugin = run_plugin
        self._now = now
        self._env = env
        self._lock = asyncio.Lock()
        self._complaints: dict[str, str] = {}
        self._token = ""
        self._issued: tuple[execplugin.Credential, ssl.SSLContext | None] | None = None
        self._stamps, self._settings = self._read()
        user = self._settings.connection.user
        if user.token_file:
            self._token = _read_token(user.token_file)

    @property
    def connection(self) -> ClusterAccess:
        """The settings as they were last read."""
        return self._settings.connection

    async def grant(self) -> Grant:
        """Returns how to make a request now.

        Raises:
            execplugin.PluginError: the exec plugin gave nothing usable.
        """
        async with self._lock:
            return await self._grant()

    async def renew(self, refused: Grant) -> bool:
        """Looks for other credentials after a 401; returns whether there are any.

        Raises:
            execplugin.PluginError: the exec plugin gave nothing usable.
        """
        async with self._lock:
            if await self._grant() != refused:
                return True
            if self._issued is None:
                return False
            self._issued = None
            return await self._grant() != refused

    def proxy_to(self, url: str) -> str | None:
        """The proxy that leads to another URL than the server's, to which the server redirected."""
        return proxy_for(url, self._settings.connection.cluster.proxy_url, self._env)

    async def _grant(self) -> Grant:
        self._reread()
        connection, authority, context, headers, proxy = self._settings
        token = self._current_token(connection.user)
        if connection.user.exec_plugin and not token and not connection.user.username:
            issued, own = await self._issue(connection, authority)
            token, context = issued.token, own or context
        if token:
            headers = (("Authorization", f"Bearer {token}"), *headers)
        cluster = connection.cluster
        return Grant(
            cluster.server,
            headers,
            context,
            cluster.tls_server_name or None,
            proxy,
            not cluster.disable_compression,
        )

    def _reread(self) -> None:
        """Reads all files again if one of them changed; if that fails, the last good settings stay in use."""
        if self._stamps == _stamps(tuple(self._stamps)):
            return
        try:
            self._stamps, self._settings = self._read()
        except KubeconfigError as e:
            self._complain("settings", f"{e}; the last good connection settings stay in use")
        else:
            self._issued = None
            self._token = ""
            self._complaints.pop("settings", None)
            log.info(
                "connection settings changed: %(kubeconfig)s was read again",
                {"kubeconfig": self._settings.connection.name},
            )

    def _read(self) -> tuple[dict[str, object], _Settings]:
        connection = self._load()
        cluster, user, where = connection.cluster, connection.user, connection.name
        paths = (connection.path, cluster.certificate_authority, user.client_certificate, user.client_key)
        stamps = _stamps(tuple(path for path in paths if path))
        authority = cluster.certificate_authority_data or _read_file(cluster.certificate_authority, where)
        certificate = user.client_certificate_data or _read_file(user.client_certificate, where)
        key = user.client_key_data or _read_file(user.client_key, where)
        try:
            proxy = proxy_for(
                cluster.server, cluster.proxy_url, self._env, lambda text: self._complain("proxy", text)
            )
            context = _context(cluster, authority, certificate, key)
        except ValueError as e:
            raise KubeconfigError(f"{where}: {e}") from None
        return stamps, _Settings(connection, authority, context, _user_headers(user), proxy)

    def _current_token(self, user: User) -> str:
        """The token file's content if it can be read, else its last good one, else the kubeconfig's token."""
        if user.token_file:
            try:
                self._token = _read_token(user.token_file)
                self._complaints.pop("token", None)
            except KubeconfigError as e:
                self._complain("token", f"{e}; the last good token stays in use")
            return self._token or user.token
        return user.token

    async def _issue(
        self, connection: ClusterAccess, authority: bytes
    ) -> "tuple[execplugin.Credential, ssl.SSLContext | None]":
        """The exec plugin's credential, and a TLS context if that is a certificate."""
        if self._issued is not None:
            expires = self._issued[0].expires
            if expires is None or self._now() < expires:
                return self._issued
        plugin = connection.user.exec_plugin
        assert plugin is not None
        issued = await self._run_plugin(plugin, connection.cluster, authority)
        context = None
        if issued.certificate:
            try:
                context = _context(
                    connection.cluster, authority, issued.certificate.encode(), issued.key.encode()
                )
            except ValueError as e:
                raise execplugin.PluginError(f"exec plugin {plugin.command}: {e}") from None
        self._issued = issued, context
        return self._issued

    def _complain(self, about: str, complaint: str) -> None:
        """Logs a problem once, until it ends or changes."""
        if self._complaints.get(about) != complaint:
            self._complaints[about] = complaint
            log.warning("%s", complaint)


def _context(cluster: Cluster, authority: bytes, certificate: bytes, key: bytes) -> "ssl.SSLContext | None":
    if not cluster.server.startswith("https:"):
        return None
    return tls.context(authority, certificate, key, verify=not cluster.insecure_skip_tls_verify)


def _user_headers(user: User) -> tuple[tuple[str, str], ...]:
    """Basic authentication and impersonation (Kubernetes API, "User impersonation")."""
    headers = []
    if user.username or user.password:
        pair = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
        headers.append(("Authorization", f"Basic {pair}"))
    if user.as_user:
        headers.append(("Impersonate-User", user.as_user))
    if user.as_uid:
        headers.append(("Impersonate-Uid", user.as_uid))
    headers += [("Impersonate-Group", group) for group in user.as_groups]
    for key, values in user.as_user_extra.items():
        name = f"Impersonate-Extra-{quote(key.lower(), safe=_HEADER_SAFE)}"
        headers += [(name, value) for value in values]
    return tuple(headers)


def _stamps(paths: tuple[str, ...]) -> dict[str, object]:
    """A signature that changes when a file is replaced or written to; symbolic links are followed."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> object:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read_file(path: str, where: str) -> bytes:
    if not path:
        return b""
    try:
        return read_file(path)
    except OSError as e:
        raise KubeconfigError(f"{where}: {path}: {e.strerror}") from None
    except ValueError as e:
        raise KubeconfigError(f"{where}: {path}: {e}") from None


def _read_token(path: str) -> str:
    token = _read_file(path, "tokenFile").decode(errors="replace").strip()
    if not token:
        raise KubeconfigError(f"tokenFile: {path}: is empty")
    if not is_sendable(token):
        raise KubeconfigError(f"tokenFile: {path}: {UNSENDABLE}")
    return token
