"""Credentials, and what happens when their files change."""

import asyncio
import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kubeproxy.sources.auth import Credentials
from kubeproxy.sources.execplugin import Credential, PluginError
from kubeproxy.sources.kubeconfig import Cluster, ClusterAccess, ExecPlugin, KubeconfigError, User, connection
from tests.fakes.tls import Authority

HTTP = Cluster(server="http://api")
HTTPS = Cluster(server="https://api", insecure_skip_tls_verify=True)
PLUGIN = User(exec_plugin=ExecPlugin("plugin", "client.authentication.k8s.io/v1"))


def static(cluster: Cluster, user: User, **settings: Any) -> Credentials:
    return Credentials(lambda: ClusterAccess(cluster, user, name="test"), **{"env": {}, **settings})


async def headers(credentials: Credentials) -> dict[str, str]:
    return dict((await credentials.grant()).headers)


def replace(path: Path, data: bytes) -> None:
    """Puts a new file in the place of the old one, as the kubelet and certificate tools do."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


class Plugins:
    """Stands for running a plugin: answers in turn."""

    def __init__(self, *answers: Credential | Exception) -> None:
        self.answers = list(answers)
        self.runs: list[tuple[ExecPlugin, Cluster, bytes]] = []

    async def __call__(self, plugin: ExecPlugin, cluster: Cluster, authority: bytes) -> Credential:
        self.runs.append((plugin, cluster, authority))
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class TestWhatIsSent:
    async def test_nothing(self) -> None:
        grant = await static(HTTP, User()).grant()
        assert grant == ("http://api", (), None, None, None, True)

    async def test_token(self) -> None:
        assert await headers(static(HTTP, User(token="abc"))) == {"Authorization": "Bearer abc"}

    async def test_basic(self) -> None:
        expected = "Basic " + base64.b64encode("me:pä:ss".encode()).decode()
        assert await headers(static(HTTP, User(username="me", password="pä:ss"))) == {
            "Authorization": expected
        }

    async def test_impersonation(self) -> None:
        user = User(
            token="t",
            as_user="boss",
            as_uid="7",
            as_groups=("a", "b"),
            as_user_extra={"Acme.com/Project": ("x", "y")},
        )
        assert (await static(HTTP, user).grant()).headers == (
            ("Authorization", "Bearer t"),
            ("Impersonate-User", "boss"),
            ("Impersonate-Uid", "7"),
            ("Impersonate-Group", "a"),
            ("Impersonate-Group", "b"),
            ("Impersonate-Extra-acme.com%2Fproject", "x"),
            ("Impersonate-Extra-acme.com%2Fproject", "y"),
        )

    async def test_the_rest_of_a_grant(self) -> None:
        cluster = Cluster(
            server="https://api",
            insecure_skip_tls_verify=True,
            tls_server_name="kubernetes",
            proxy_url="http://proxy",
            disable_compression=True,
        )
        grant = await static(cluster, User()).grant()
        assert grant.context is not None
        assert grant[3:] == ("kubernetes", "http://proxy", False)

    async def test_a_proxy_of_the_environment(self) -> None:
        grant = await static(HTTPS, User(), env={"HTTPS_PROXY": "http://proxy"}).grant()
        assert grant.proxy == "http://proxy"


class TestStart:
    @pytest.mark.parametrize(
        ("cluster", "user"),
        [
            (Cluster(server="https://api", certificate_authority="/no/ca"), User()),
            (HTTPS, User(client_certificate="/no/cert", client_key="/no/key")),
            (HTTPS, User(token_file="/no/token")),
        ],
    )
    def test_a_missing_file(self, cluster: Cluster, user: User) -> None:
        with pytest.raises(KubeconfigError, match=r"/no/.*: No such file or directory"):
            static(cluster, user)

    def test_an_empty_token_file(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("\n")
        with pytest.raises(KubeconfigError, match=r"tokenFile: .*/token: is empty"):
            static(HTTP, User(token_file=str(tmp_path / "token")))

    def test_a_token_file_that_cannot_be_sent(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("one\ntwo\n")
        with pytest.raises(KubeconfigError, match=r"tokenFile: .*/token: has a line break or another"):
            static(HTTP, User(token_file=str(tmp_path / "token")))

    def test_unusable_certificates_and_proxies(self) -> None:
        with pytest.raises(KubeconfigError, match=r"^test: client-certificate and client-key"):
            static(HTTPS, User(client_certificate_data=b"a", client_key_data=b"b"))
        with pytest.raises(KubeconfigError, match=r"^test: proxy-url"):
            static(Cluster(server="https://api", proxy_url="socks5://p"), User())


class TestTokenFile:
    async def test_is_read_for_each_request(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("one\n")
        credentials = static(HTTP, User(token_file=str(path), token="unused"))
        assert await headers(credentials) == {"Authorization": "Bearer one"}
        path.write_text("two")
        assert await headers(credentials) == {"Authorization": "Bearer two"}

    async def test_the_last_good_token_stays(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "token"
        path.write_text("one")
        credentials = static(HTTP, User(token_file=str(path)))
        for _ in range(2):
            path.unlink()
            assert await headers(credentials) == {"Authorization": "Bearer one"}
            assert await headers(credentials) == {"Authorization": "Bearer one"}
            path.write_text("two")
            assert await headers(credentials) == {"Authorization": "Bearer two"}
            path.write_text("one")
            assert await headers(credentials) == {"Authorization": "Bearer one"}
        assert [r.message for r in caplog.records] == [
            f"tokenFile: {path}: No such file or directory; the last good token stays in use"
        ] * 2

    async def test_another_token_after_401_is_tried(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("one")
        credentials = static(HTTP, User(token_file=str(path)))
        refused = await credentials.grant()
        assert not await credentials.renew(refused)
        path.write_text("two")
        assert await credentials.renew(refused)


class TestFilesThatChange:
    async def test_a_new_certificate_makes_a_new_context(self, tmp_path: Path, authority: Authority) -> None:
        certificate, key = authority.write(tmp_path, "proxy")
        user = User(client_certificate=str(certificate), client_key=str(key))
        credentials = static(HTTPS, user)
        before = (await credentials.grant()).context
        assert (await credentials.grant()).context is before
        authority.write(tmp_path, "proxy")
        after = (await credentials.grant()).context
        assert after is not before
        assert (await credentials.grant()).context is after

    async def test_a_pair_that_does_not_fit_yet(
        self, tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        certificate, key = authority.write(tmp_path, "proxy")
        credentials = static(HTTPS, User(client_certificate=str(certificate), client_key=str(key)))
        before = await credentials.grant()
        new_certificate, new_key = authority.client("proxy")
        replace(certificate, new_certificate)
        assert await credentials.grant() == before
        assert await credentials.grant() == before
        assert len(caplog.records) == 1
        assert "the last good connection settings stay in use" in caplog.text
        replace(key, new_key)
        assert (await credentials.grant()).context is not before.context

    async def test_a_new_authority(self, tmp_path: Path, authority: Authority) -> None:
        path = tmp_path / "ca.crt"
        path.write_bytes(authority.pem)
        credentials = static(Cluster(server="https://api", certificate_authority=str(path)), User())
        before = (await credentials.grant()).context
        replace(path, authority.pem + Authority().pem)
        after = (await credentials.grant()).context
        assert before is not None
        assert after is not None
        assert (len(before.get_ca_certs()), len(after.get_ca_certs())) == (1, 2)

    def kubeconfig(self, path: Path, server: str, **user: str) -> None:
        path.write_bytes(
            msgspec.json.encode(
                {
                    "clusters": [{"name": "c", "cluster": {"server": server}}],
                    "users": [{"name": "u", "user": user}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )

    async def test_the_kubeconfig_itself(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "kubeconfig"
        self.kubeconfig(path, "http://one", token="1")
        credentials = Credentials(lambda: connection(str(path)), env={})
        path.write_text("{")
        grant = await credentials.grant()
        assert (grant.server, grant.headers) == ("http://one", (("Authorization", "Bearer 1"),))
        with caplog.at_level(logging.INFO):
            self.kubeconfig(path, "http://two", token="22")
            grant = await credentials.grant()
        assert (grant.server, grant.headers) == ("http://two", (("Authorization", "Bearer 22"),))
        assert "was read again" in caplog.text

    async def test_a_token_is_not_carried_to_another_file(self, tmp_path: Path) -> None:
        path, token = tmp_path / "kubeconfig", tmp_path / "token"
        token.write_text("one")
        self.kubeconfig(path, "http://one", tokenFile=str(token))
        credentials = Credentials(lambda: connection(str(path)), env={})
        assert await headers(credentials) == {"Authorization": "Bearer one"}
        self.kubeconfig(path, "http://other", tokenFile=str(tmp_path / "not there yet"))
        assert await headers(credentials) == {}


class TestPlugin:
    def credentials(
        self, plugins: Plugins, cluster: Cluster = HTTP, now: Callable[[], float] = float
    ) -> Credentials:
        return static(cluster, PLUGIN, run_plugin=plugins, now=now)

    async def test_runs_once_for_many_requests(self) -> None:
        plugins = Plugins(Credential(token="a"))
        credentials = self.credentials(plugins)
        found = await asyncio.gather(*(headers(credentials) for _ in range(5)))
        assert found == [{"Authorization": "Bearer a"}] * 5
        assert plugins.runs == [(PLUGIN.exec_plugin, HTTP, b"")]

    async def test_runs_again_when_it_expires(self) -> None:
        time = [0.0]
        plugins = Plugins(Credential(token="a", expires=10), Credential(token="b", expires=20))
        credentials = self.credentials(plugins, now=lambda: time[0])
        for time[0], token in ((0, "a"), (9.9, "a"), (10, "b"), (19, "b")):
            assert await headers(credentials) == {"Authorization": f"Bearer {token}"}

    async def test_runs_again_after_401_once_for_all(self) -> None:
        plugins = Plugins(Credential(token="a"), Credential(token="b"))
        credentials = self.credentials(plugins)
        refused = await credentials.grant()
        assert await asyncio.gather(*(credentials.renew(refused) for _ in range(4))) == [True] * 4
        assert await headers(credentials) == {"Authorization": "Bearer b"}

    async def test_the_same_token_again_is_no_help(self) -> None:
        credentials = self.credentials(Plugins(Credential(token="a"), Credential(token="a")))
        assert not await credentials.renew(await credentials.grant())

    async def test_its_failure_passes_and_is_not_kept(self) -> None:
        credentials = self.credentials(Plugins(PluginError("no"), Credential(token="a")))
        with pytest.raises(PluginError):
            await credentials.grant()
        assert await headers(credentials) == {"Authorization": "Bearer a"}

    async def test_its_certificate_makes_the_context(self, authority: Authority) -> None:
        certificate, key = (pem.decode() for pem in authority.client("proxy"))
        credentials = self.credentials(Plugins(Credential(certificate=certificate, key=key)), HTTPS)
        grant = await credentials.grant()
        assert grant.headers == ()
        assert grant.context is not None
        assert (await credentials.grant()).context is grant.context

    async def test_its_bad_certificate(self) -> None:
        credentials = self.credentials(Plugins(Credential(certificate="x", key="y")), HTTPS)
        with pytest.raises(PluginError, match="exec plugin plugin: client-certificate and client-key"):
            await credentials.grant()

    async def test_a_token_in_the_kubeconfig_goes_before(self) -> None:
        for user, scheme in ((User(token="t"), "Bearer"), (User(username="u"), "Basic")):
            both = msgspec.structs.replace(user, exec_plugin=PLUGIN.exec_plugin)
            found = await headers(static(HTTP, both, run_plugin=Plugins()))
            assert found["Authorization"].startswith(scheme)
