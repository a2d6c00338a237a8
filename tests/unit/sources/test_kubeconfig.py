"""Reading kubeconfig files, --master and the pod's service account."""

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kubeproxy.sources.kubeconfig import (
    SERVICE_ACCOUNT,
    ClusterAccess,
    KubeconfigError,
    connection,
    in_cluster,
    load,
    service_account,
)


def write(
    folder: Path, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **changes: Any
) -> str:
    file = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "prod", "cluster": {"server": "https://api:6443", **(cluster or {})}}],
        "users": [{"name": "proxy", "user": user or {}}],
        "contexts": [{"name": "main", "context": {"cluster": "prod", "user": "proxy"}}],
        "current-context": "main",
        **changes,
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(file))
    return str(path)


def refusal(path: str) -> str:
    with pytest.raises(KubeconfigError) as e:
        load(path)
    message = str(e.value)
    assert message.startswith(path)
    assert "\n" not in message
    return message.removeprefix(path)


def test_everything_lands_in_its_field(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "certificate-authority-data": base64.b64encode(b"CA").decode(),
            "tls-server-name": "kubernetes",
            "proxy-url": "http://proxy:3128",
            "disable-compression": True,
        },
        {
            "tokenFile": "/abs/token",
            "token": "abc",
            "client-certificate-data": base64.b64encode(b"CERT").decode(),
            "client-key-data": base64.b64encode(b"KEY").decode(),
            "as": "boss",
            "as-uid": "7",
            "as-groups": ["a", "b"],
            "as-user-extra": {"scopes": ["x", "w"]},
        },
    )
    found = load(path)
    assert found.name == f'{path}, context "main", user "proxy"'
    assert found.cluster.server == "https://api:6443"
    assert found.cluster.certificate_authority_data == b"CA"
    assert found.cluster.tls_server_name == "kubernetes"
    assert found.cluster.proxy_url == "http://proxy:3128"
    assert found.cluster.disable_compression
    assert (found.user.token_file, found.user.token) == ("/abs/token", "abc")
    assert (found.user.client_certificate_data, found.user.client_key_data) == (b"CERT", b"KEY")
    assert (found.user.as_user, found.user.as_uid, found.user.as_groups) == ("boss", "7", ("a", "b"))
    assert found.user.as_user_extra == {"scopes": ("x", "w")}


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"certificate-authority": "pki/ca.crt"},
        {"client-certificate": "c.crt", "client-key": "../c.key", "tokenFile": "/var/token"},
    )
    found = load(path)
    assert found.cluster.certificate_authority == f"{tmp_path}/pki/ca.crt"
    assert found.user.client_certificate == f"{tmp_path}/c.crt"
    assert found.user.client_key == f"{tmp_path}/../c.key"
    assert found.user.token_file == "/var/token"


@pytest.mark.parametrize(
    ("command", "found"),
    [("aws", "aws"), ("bin/aws", "{}/bin/aws"), ("./aws", "{}/aws"), ("/usr/aws", "/usr/aws")],
)
def test_a_plugin_is_found_in_path_or_beside_the_file(tmp_path: Path, command: str, found: str) -> None:
    plugin = {"command": command, "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never"}
    user = load(write(tmp_path, user={"exec": plugin})).user
    assert user.exec_plugin is not None
    assert user.exec_plugin.command == found.format(tmp_path)


def test_json_nulls_and_folded_base64(tmp_path: Path) -> None:
    data = base64.encodebytes(b"C" * 100).decode()
    path = tmp_path / "k.json"
    path.write_bytes(
        msgspec.json.encode(
            {
                "clusters": [
                    {
                        "name": "c",
                        "cluster": {
                            "server": "https://h",
                            "certificate-authority-data": data,
                            "proxy-url": None,
                        },
                    }
                ],
                "users": None,
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": ""}}],
                "current-context": "x",
            }
        )
    )
    found = load(str(path))
    assert found.cluster.certificate_authority_data == b"C" * 100
    assert found.name == f'{path}, context "x"'


def test_yaml_that_begins_like_json(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(
        "{current-context: x, contexts: [{name: x, context: {cluster: c}}], clusters: [{name: c, cluster: {server: h}}]}"
    )
    assert load(str(path)).cluster.server == "http://h"


def test_other_entries_may_be_broken(tmp_path: Path) -> None:
    good = {"name": "prod", "cluster": {"server": "https://api"}}
    path = write(tmp_path, clusters=[{"name": "other", "cluster": {"server": 7}}, good])
    assert load(path).cluster.server == "https://api"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"current-context": ""}, ": current-context is not set"),
        ({"current-context": "x"}, ': contexts has no entry named "x"'),
        ({"kind": "Pod"}, ": kind: expected Config, got Pod"),
        ({"clusters": []}, ', context "main": clusters has no entry named "prod"'),
        ({"users": []}, ', context "main", user "proxy": users has no entry named "proxy"'),
        (
            {"contexts": [{"name": "main", "context": {"user": "proxy"}}]},
            ', context "main": cluster is not set',
        ),
        (
            {"users": [{"name": "proxy"}] * 2},
            ', context "main", user "proxy": users has 2 entries named "proxy"',
        ),
        ({"clusters": [{"cluster": {}}]}, ": clusters[0]: Object missing required field `name`"),
        ({"contexts": "main"}, ": contexts: Expected `array`, got `str`"),
    ],
)
def test_a_file_that_leads_nowhere(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert refusal(write(tmp_path, **changes)) == message


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"server": ""}, "server is not set"),
        ({"server": 5}, "server: Expected `str`, got `int`"),
        ({"server": "ftp://api"}, 'server: must be a URL like https://host:6443, not "ftp://api"'),
        (
            {"server": "https://api:port"},
            'server: must be a URL like https://host:6443, not "https://api:port"',
        ),
        (
            {"certificate-authority": "a", "certificate-authority-data": "YQ=="},
            "certificate-authority and certificate-authority-data are both set",
        ),
        (
            {"certificate-authority": "a", "insecure-skip-tls-verify": True},
            "insecure-skip-tls-verify is set beside a certificate authority",
        ),
        ({"certificate-authority-data": "$$"}, "certificate-authority-data: Invalid base64 encoded string"),
    ],
)
def test_a_cluster_that_contradicts_itself(tmp_path: Path, cluster: dict[str, Any], message: str) -> None:
    assert refusal(write(tmp_path, cluster)) == f', context "main", cluster "prod": {message}'


V1 = "client.authentication.k8s.io/v1"


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"token": "t\n"}, "token has a line break or another control character"),
        ({"token": "t", "as": "a\0"}, "as has a line break or another control character"),
        ({"as": "a", "as-groups": ["b", "c\r"]}, "as-groups has a line break or another control character"),
        (
            {"as": "a", "as-user-extra": {"k": ["\x7f"]}},
            "as-user-extra has a line break or another control character",
        ),
        ({"token": "t", "username": "u"}, "token and username/password are both set, only one is allowed"),
        (
            {"tokenFile": "t", "password": "p"},
            "token and username/password are both set, only one is allowed",
        ),
        ({"client-certificate": "c"}, "client-certificate is set without client-key"),
        ({"client-key-data": "YQ=="}, "client-key is set without client-certificate"),
        (
            {"client-certificate": "c", "client-certificate-data": "YQ==", "client-key": "k"},
            "client-certificate and client-certificate-data are both set",
        ),
        ({"as-groups": ["g"]}, "as-uid, as-groups and as-user-extra need as"),
        (
            {"auth-provider": {"name": "gcp"}},
            "auth-provider is no longer supported by Kubernetes clients; use exec instead",
        ),
        ({"exec": {"apiVersion": V1, "interactiveMode": "Never"}}, "exec.command is not set"),
        (
            {"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}},
            "exec.apiVersion must be client.authentication.k8s.io/v1 or client.authentication.k8s.io/v1beta1,"
            ' not "client.authentication.k8s.io/v1alpha1"',
        ),
        ({"exec": {"command": "x", "apiVersion": V1}}, f"exec.interactiveMode must be set with {V1}"),
        (
            {"exec": {"command": "x", "apiVersion": V1, "interactiveMode": "Always"}},
            "exec.interactiveMode is Always, but a daemon has no terminal; use Never or IfAvailable",
        ),
        (
            {"exec": {"command": "x", "apiVersion": V1, "interactiveMode": "never"}},
            'exec.interactiveMode must be Never, IfAvailable or Always, not "never"',
        ),
        (
            {"exec": {"command": "x", "apiVersion": V1, "interactiveMode": "Never", "env": [{"value": "v"}]}},
            "exec.env has an entry without a name",
        ),
        ({"exec": {"command": "x", "args": "w"}}, "exec.args: Expected `array`, got `str`"),
        ({"token": 12}, "token: Expected `str`, got `int`"),
    ],
)
def test_a_user_that_contradicts_itself(tmp_path: Path, user: dict[str, Any], message: str) -> None:
    assert refusal(write(tmp_path, user=user)) == f', context "main", user "proxy": {message}'


def test_all_problems_of_a_user_are_told(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, user={"token": "t", "username": "u", "client-key": "k"}))
    assert "token and username/password" in message
    assert "client-key is set without" in message


def test_v1beta1_needs_no_interactive_mode(tmp_path: Path) -> None:
    version = "client.authentication.k8s.io/v1beta1"
    assert load(write(tmp_path, user={"exec": {"command": "x", "apiVersion": version}})).user.exec_plugin


@pytest.mark.parametrize("text", ["a: [", "\t", "x: y: z", '{"a": '])
def test_a_file_that_is_neither_yaml_nor_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    refusal(str(path))


@pytest.mark.parametrize("text", ["", "- a", "word"])
def test_a_file_that_is_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    assert "Expected `object`" in refusal(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none")) == ": No such file or directory"


def test_printing_shows_no_secret(tmp_path: Path) -> None:
    key = base64.b64encode(b"KEY").decode()
    user = {"token": "s3cret", "client-certificate": "c", "client-key-data": key}
    text = repr(load(write(tmp_path, user=user)))
    assert "s3cret" not in text
    assert "KEY" not in text


class TestServer:
    @pytest.mark.parametrize(
        ("server", "cluster", "url"),
        [
            ("https://api:6443/", {}, "https://api:6443"),
            ("https://rancher/k8s/clusters/c-1", {}, "https://rancher/k8s/clusters/c-1"),
            ("https://[fd00::1]:6443", {}, "https://[fd00::1]:6443"),
            ("localhost:8080", {}, "http://localhost:8080"),
            ("localhost:8080", {"insecure-skip-tls-verify": True}, "https://localhost:8080"),
            ("10.0.0.1", {"certificate-authority": "ca.crt"}, "https://10.0.0.1"),
        ],
    )
    def test_is_completed(self, tmp_path: Path, server: str, cluster: dict[str, Any], url: str) -> None:
        assert load(write(tmp_path, {"server": server, **cluster})).cluster.server == url

    def test_master_overrides_it_and_its_name(self, tmp_path: Path) -> None:
        path = write(tmp_path, {"server": "", "tls-server-name": "a"}, {"token": "t"})
        found = connection(path, "https://other")
        assert (found.cluster.server, found.cluster.tls_server_name) == ("https://other", "")
        assert found.user.token == "t"

    def test_master_alone(self) -> None:
        assert connection(master="api:8080").cluster.server == "http://api:8080"

    def test_a_bad_master(self, tmp_path: Path) -> None:
        with pytest.raises(KubeconfigError, match=r"^--master: must be a URL"):
            connection(master="http://")
        with pytest.raises(KubeconfigError, match=r"^--master: must be a URL"):
            connection(write(tmp_path), "http://")


class TestInCluster:
    def pod(self, folder: Path, *names: str, host: str = "10.96.0.1") -> ClusterAccess:
        for name in names:
            (folder / name).write_text(name)
        return in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}, folder)

    def test_a_pod(self, tmp_path: Path) -> None:
        found = self.pod(tmp_path, "token", "ca.crt")
        assert found.cluster.server == "https://10.96.0.1:443"
        assert found.cluster.certificate_authority == f"{tmp_path}/ca.crt"
        assert found.user.token_file == f"{tmp_path}/token"

    def test_an_ipv6_pod_without_ca(self, tmp_path: Path) -> None:
        found = self.pod(tmp_path, "token", host="fd00::1")
        assert found.cluster.server == "https://[fd00::1]:443"
        assert found.cluster.certificate_authority == ""

    def test_a_host_process_container_has_its_volumes_below_a_folder(self, tmp_path: Path) -> None:
        mounted = tmp_path / "var/run/secrets/kubernetes.io/serviceaccount"
        assert service_account("", {"CONTAINER_SANDBOX_MOUNT_POINT": str(tmp_path)}) == SERVICE_ACCOUNT
        mounted.mkdir(parents=True)
        assert service_account("", {"CONTAINER_SANDBOX_MOUNT_POINT": str(tmp_path)}) == mounted
        assert service_account("", {}) == SERVICE_ACCOUNT
        assert service_account("/proc/1/root", {}) == Path(f"/proc/1/root{SERVICE_ACCOUNT}")

    def test_no_token(self, tmp_path: Path) -> None:
        with pytest.raises(KubeconfigError, match=f"{tmp_path}/token does not exist"):
            self.pod(tmp_path, "ca.crt")

    def test_no_pod(self) -> None:
        with pytest.raises(KubeconfigError, match="this is not a pod"):
            in_cluster({})

    def test_it_is_what_remains(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        with pytest.raises(KubeconfigError, match="neither --kubeconfig nor --master"):
            connection()
