"""The API server's address and the credentials: a kubeconfig file, `--master`, or the pod's service account.

A file is read into two small values, the cluster and the user of its current context; other entries are not
validated, so a mistake in them has no effect. Contradictory settings are refused here, by the rules of
client-go's clientcmd, with the file, the context, the user and the field in the message. Files named in the
kubeconfig are only resolved to absolute paths: `auth` reads them, because they rotate.

Format: kubeconfig v1 (YAML or JSON), ExecConfig of client.authentication.k8s.io.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from kubeproxy.api import reader
from kubeproxy.api.limits import read_file

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts a pod's token and the cluster's CA."""

SANDBOX: Final = "CONTAINER_SANDBOX_MOUNT_POINT"
"""In a HostProcess container: the folder below which the container's image and volumes are."""

EXEC_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
"""The supported versions of the exec credential plugin protocol."""


UNSENDABLE: Final = "has a line break or another control character"
"""What is wrong with a text that `is_sendable` refuses."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_T = TypeVar("_T")
_S = TypeVar("_S", bound=Struct)


class KubeconfigError(ValueError):
    """Connection settings that cannot be used; the message names the file and the field."""


def is_sendable(text: str) -> bool:
    """Whether a text can be the value of an HTTP header."""
    return _CONTROL.search(text) is None


class Extension(Struct, frozen=True, gc=False):
    """Additional data of a cluster; the one named like the exec API is passed to plugins."""

    name: str = ""
    extension: Any = None


class Cluster(Struct, frozen=True, gc=False, rename="kebab"):
    """An API server and how to authenticate it."""

    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: bytes = b""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""
    disable_compression: bool = False
    extensions: tuple[Extension, ...] = ()


class EnvVar(Struct, frozen=True, gc=False):
    """A variable in an exec plugin's environment."""

    name: str = ""
    value: str = ""


class ExecPlugin(Struct, frozen=True, gc=False, rename="camel"):
    """A program that prints credentials."""

    command: str = ""
    api_version: str = ""
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = ""


class User(Struct, frozen=True, gc=False, rename="kebab"):
    """The credentials of the client. Its repr shows no secret."""

    token: str = ""
    token_file: str = field(default="", name="tokenFile")
    client_certificate: str = ""
    client_certificate_data: bytes = b""
    client_key: str = ""
    client_key_data: bytes = b""
    username: str = ""
    password: str = ""
    exec_plugin: ExecPlugin | None = field(default=None, name="exec")
    auth_provider: Any = None
    as_user: str = field(default="", name="as")
    as_uid: str = ""
    as_groups: tuple[str, ...] = ()
    as_user_extra: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"User({', '.join(name for name in self.__struct_fields__ if getattr(self, name))})"


class ClusterAccess(Struct, frozen=True, gc=False):
    """Everything needed to reach the API server.

    Attributes:
        cluster: the server; its `server` is a URL with scheme and without a trailing slash.
        user: the credentials; paths are absolute.
        path: the kubeconfig file this was read from, or empty.
        name: the name of these settings in messages, e.g. `FILE, context "x", user "y"`.
    """

    cluster: Cluster
    user: User
    path: str = ""
    name: str = ""


class _Entry(Struct, frozen=True, gc=False):
    """A named cluster, user or context, not decoded yet."""

    name: str
    cluster: dict[str, Any] | None = None
    user: dict[str, Any] | None = None
    context: dict[str, Any] | None = None


class _File(Struct, frozen=True, gc=False, rename="kebab"):
    kind: str = "Config"
    current_context: str = ""
    clusters: tuple[_Entry, ...] = ()
    users: tuple[_Entry, ...] = ()
    contexts: tuple[_Entry, ...] = ()


class _Context(Struct, frozen=True, gc=False):
    cluster: str = ""
    user: str = ""


def connection(
    kubeconfig: str = "", master: str = "", *, root: str = "", environment: Mapping[str, str] = os.environ
) -> ClusterAccess:
    """Finds the API server as the reference does: the kubeconfig, else `--master` alone, else the pod's own.

    Args:
        kubeconfig: path of a kubeconfig file, or empty.
        master: URL that overrides the server of the kubeconfig, or empty.
        root: under which folder the files are, as seen by a process in a container; "" for our own view.
        environment: the environment of the process whose pod it may be.

    Raises:
        KubeconfigError: the settings cannot be used.
    """
    if kubeconfig:
        return load(kubeconfig, master, root=root)
    if master:
        return ClusterAccess(
            Cluster(server=_server(master, tls=False, where="--master")), User(), name="--master"
        )
    return in_cluster(environment, service_account(root, environment))


def service_account(root: str, environment: Mapping[str, str]) -> Path:
    """The folder of the pod's token.

    HostProcess containers of Windows see the file system of the host. containerd before 1.7 mounts the
    volumes of such a container only below a folder that a variable names.
    """
    mounted = environment.get(SANDBOX, "")
    inside = Path(mounted, *SERVICE_ACCOUNT.parts[1:])
    return inside if mounted and inside.is_dir() else Path(f"{root}{SERVICE_ACCOUNT}")


def load(path: str, master: str = "", *, root: str = "") -> ClusterAccess:
    """Reads the current context of a kubeconfig file.

    Args:
        path: the file.
        master: URL that overrides the cluster's server (and, as in client-go, its tls-server-name).
        root: under which folder it and the files it names are; "" for the file system as we see it.

    Raises:
        KubeconfigError: the file cannot be read, or its current context cannot be used.
    """
    raw = _read(f"{root}{path}")
    file = _convert(_File, raw, path)
    if file.kind != "Config":
        raise KubeconfigError(f"{path}: kind: expected Config, got {file.kind}")
    if not file.current_context:
        raise KubeconfigError(f"{path}: current-context is not set")
    where = f'{path}, context "{file.current_context}"'
    entry = _find(file.contexts, file.current_context, path, "contexts")
    context = _convert(_Context, entry.context or {}, where)
    if not context.cluster:
        raise KubeconfigError(f"{where}: cluster is not set")
    at = f'{where}, cluster "{context.cluster}"'
    entry = _find(file.clusters, context.cluster, where, "clusters")
    cluster = _convert(Cluster, entry.cluster or {}, at)
    user = User()
    if context.user:
        where = f'{where}, user "{context.user}"'
        entry = _find(file.users, context.user, where, "users")
        user = _convert(User, entry.user or {}, where)

    folder = Path(path).absolute().parent
    cluster = _with_paths(cluster, root, folder, "certificate_authority")
    user = _with_paths(user, root, folder, "token_file", "client_certificate", "client_key")
    if user.exec_plugin and any(sep in user.exec_plugin.command for sep in (os.sep, os.altsep) if sep):
        plugin = _with_paths(user.exec_plugin, root, folder, "command")
        user = msgspec.structs.replace(user, exec_plugin=plugin)
    if master:
        cluster = msgspec.structs.replace(cluster, server=master, tls_server_name="")
    _check(_cluster_problems(cluster), at)
    _check(_user_problems(user), where)
    tls = bool(
        cluster.certificate_authority
        or cluster.certificate_authority_data
        or cluster.insecure_skip_tls_verify
        or user.client_certificate
        or user.client_certificate_data
    )
    server = _server(cluster.server, tls=tls, where="--master" if master else f"{at}: server")
    return ClusterAccess(msgspec.structs.replace(cluster, server=server), user, path, where)


def in_cluster(env: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT) -> ClusterAccess:
    """The settings of a pod: the API server's address in the environment, a token and a CA in files.

    Raises:
        KubeconfigError: this is not a pod, or its service account token is not mounted.
    """
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise KubeconfigError(
            "neither --kubeconfig nor --master is given and this is not a pod:"
            " KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
        )
    token, authority = folder / "token", folder / "ca.crt"
    if not token.exists():
        raise KubeconfigError(f"neither --kubeconfig nor --master is given and {token} does not exist")
    cluster = Cluster(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        certificate_authority=str(authority) if authority.exists() else "",
    )
    return ClusterAccess(cluster, User(token_file=str(token)), name="the pod's service account")


def _read(path: str) -> object:
    try:
        return reader.read(read_file(path))
    except OSError as e:
        raise KubeconfigError(f"{path}: {e.strerror}") from None
    except ValueError as e:
        raise KubeconfigError(f"{path}: {e}") from None


def _convert(type_: type[_T], raw: object, where: str) -> _T:
    try:
        return msgspec.convert(_clean(raw), type_)
    except msgspec.ValidationError as e:
        what, _, at = str(e).partition(" - at `$")
        at = at.rstrip("`").removeprefix(".")
        raise KubeconfigError(f"{where}: {at}: {what}" if at else f"{where}: {what}") from None


def _clean(raw: object) -> object:
    """Removes nulls, which Go reads as absent, and the line breaks that it allows within base64."""
    if isinstance(raw, dict):
        return {
            key: "".join(value.split())
            if str(key).endswith("-data") and isinstance(value, str)
            else _clean(value)
            for key, value in raw.items()
            if value is not None
        }
    if isinstance(raw, list):
        return [_clean(item) for item in raw]
    return raw


def _find(entries: Sequence[_Entry], name: str, where: str, section: str) -> _Entry:
    found = [entry for entry in entries if entry.name == name]
    if not found:
        raise KubeconfigError(f'{where}: {section} has no entry named "{name}"')
    if len(found) > 1:
        raise KubeconfigError(f'{where}: {section} has {len(found)} entries named "{name}"')
    return found[0]


def _with_paths(value: _S, root: str, folder: Path, *fields: str) -> _S:
    """Makes the paths in these fields absolute: relative to the kubeconfig's folder, below a root."""
    paths = {name: getattr(value, name) for name in fields}
    return msgspec.structs.replace(
        value, **{name: f"{root}{folder / path}" for name, path in paths.items() if path}
    )


def _check(problems: list[str], where: str) -> None:
    if problems:
        raise KubeconfigError(f"{where}: {'; '.join(problems)}")


def _cluster_problems(cluster: Cluster) -> list[str]:
    problems = []
    if not cluster.server:
        problems.append("server is not set")
    authority = cluster.certificate_authority or cluster.certificate_authority_data
    if cluster.certificate_authority and cluster.certificate_authority_data:
        problems.append("certificate-authority and certificate-authority-data are both set")
    if authority and cluster.insecure_skip_tls_verify:
        problems.append("insecure-skip-tls-verify is set beside a certificate authority")
    return problems


def _user_problems(user: User) -> list[str]:
    problems = []
    if user.auth_provider is not None:
        problems.append("auth-provider is no longer supported by Kubernetes clients; use exec instead")
    if (user.token or user.token_file) and (user.username or user.password):
        problems.append("token and username/password are both set, only one is allowed")
    for one in ("client-certificate", "client-key"):
        attribute = one.replace("-", "_")
        if getattr(user, attribute) and getattr(user, f"{attribute}_data"):
            problems.append(f"{one} and {one}-data are both set")
    certificate = user.client_certificate or user.client_certificate_data
    key = user.client_key or user.client_key_data
    if bool(certificate) != bool(key):
        have, lack = (
            ("client-certificate", "client-key") if certificate else ("client-key", "client-certificate")
        )
        problems.append(f"{have} is set without {lack}")
    if not user.as_user and (user.as_uid or user.as_groups or user.as_user_extra):
        problems.append("as-uid, as-groups and as-user-extra need as")
    sent = {
        "token": (user.token,),
        "as": (user.as_user,),
        "as-uid": (user.as_uid,),
        "as-groups": user.as_groups,
        "as-user-extra": tuple(value for values in user.as_user_extra.values() for value in values),
    }
    problems += [f"{name} {UNSENDABLE}" for name, texts in sent.items() if not all(map(is_sendable, texts))]
    if user.exec_plugin is not None:
        problems += _exec_problems(user.exec_plugin)
    return problems


def _exec_problems(plugin: ExecPlugin) -> list[str]:
    problems = []
    if not plugin.command:
        problems.append("exec.command is not set")
    if plugin.api_version not in EXEC_VERSIONS:
        problems.append(f'exec.apiVersion must be {" or ".join(EXEC_VERSIONS)}, not "{plugin.api_version}"')
    if any(not variable.name for variable in plugin.env):
        problems.append("exec.env has an entry without a name")
    if plugin.interactive_mode == "Always":
        problems.append(
            "exec.interactiveMode is Always, but a daemon has no terminal; use Never or IfAvailable"
        )
    elif plugin.interactive_mode not in {"Never", "IfAvailable", ""}:
        problems.append(
            f'exec.interactiveMode must be Never, IfAvailable or Always, not "{plugin.interactive_mode}"'
        )
    elif not plugin.interactive_mode and plugin.api_version == EXEC_VERSIONS[0]:
        problems.append(f"exec.interactiveMode must be set with {EXEC_VERSIONS[0]}")
    return problems


def _server(server: str, *, tls: bool, where: str) -> str:
    """Completes a server's URL as client-go does: without a scheme, https if any TLS setting is given."""
    url = server if "://" in server else f"{'https' if tls else 'http'}://{server}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise KubeconfigError(f'{where}: must be a URL like https://host:6443, not "{server}"')
    return url.rstrip("/")
