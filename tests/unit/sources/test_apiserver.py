"""The API server as a source: what is watched, and what may be missing."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kubeproxy.sources.apiserver import ApiServer
from kubeproxy.sources.errors import UnreachableError
from kubeproxy.sources.kubeconfig import KubeconfigError
from kubeproxy.sources.watch import Timing
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.sink import Recorder
from tests.fakes.tls import Authority

LABEL = "service.kubernetes.io"


class Time:
    """Counts the long waits between looks; the test lets them end."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if seconds not in {7.5, 900}:
            await asyncio.sleep(0.001)  # a back-off
            return
        self.waits.append(seconds)
        await self.over.wait()
        self.over.clear()


@asynccontextmanager
async def source(
    server: FakeApiServer, sink: Recorder, time: Time | None = None, **settings: Any
) -> AsyncIterator[ApiServer]:
    timing = Timing(random=lambda: 0.5, sleep=(time or Time()).sleep)
    it = ApiServer(sink, "node-1", timing=timing, **(settings or {"master": server.url}))
    running = asyncio.create_task(it.run())
    try:
        yield it
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def complete(sink: Recorder) -> list[str]:
    return sorted(kind for _, kind in sink.said("complete"))


FOUR = ["EndpointSlice", "Node", "Service", "ServiceCIDR"]


async def test_what_is_watched() -> None:
    async with FakeApiServer() as server:
        for obj in (
            {"kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "10.0.0.1"}},
            {"kind": "Service", "metadata": {"name": "headless"}, "spec": {"clusterIP": "None"}},
            {
                "kind": "Service",
                "metadata": {"name": "theirs", "labels": {f"{LABEL}/service-proxy-name": "x"}},
            },
            {"kind": "EndpointSlice", "metadata": {"name": "web-1"}},
            {
                "kind": "EndpointSlice",
                "metadata": {"name": "headless-1", "labels": {f"{LABEL}/headless": ""}},
            },
            {"kind": "Endpoints", "metadata": {"name": "web"}},
            {"kind": "Node", "metadata": {"name": "node-1"}},
            {"kind": "Node", "metadata": {"name": "node-2"}},
            {"kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}},
        ):
            server.store.put(obj)
        sink = Recorder()
        async with source(server, sink) as it:
            await sink.until(lambda: complete(sink) == FOUR)
            assert set(sink.view) == {
                ("Service", "default", "web"),
                ("EndpointSlice", "default", "web-1"),
                ("Node", "", "node-1"),
                ("ServiceCIDR", "", "kubernetes"),
            }
            assert {kind: status.objects for kind, status in it.statuses.items()} == dict.fromkeys(FOUR, 1)
            assert all(status.connected for status in it.statuses.values())
        assert sorted(request.path for request in server.requests) == [
            "/api/v1/nodes",
            "/api/v1/services",
            "/apis/discovery.k8s.io/v1/endpointslices",
            "/apis/networking.k8s.io/v1/servicecidrs",
        ]


async def test_a_kubeconfig_with_tls_and_a_token(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    async with FakeApiServer(authority.server_context()) as server:
        server.tokens["secret"] = "system:kube-proxy"
        path = tmp_path / "kubeconfig"
        path.write_bytes(
            msgspec.json.encode(
                {
                    "clusters": [
                        {"name": "c", "cluster": {"server": server.url, "certificate-authority": "ca.crt"}}
                    ],
                    "users": [{"name": "u", "user": {"tokenFile": "token"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        sink = Recorder()
        async with source(server, sink, kubeconfig=str(path)) as it:
            await sink.until(lambda: complete(sink) == FOUR)
            assert {request.user for request in server.requests} == {"system:kube-proxy"}
            # A new token serves the next request; standing watches go on.
            (tmp_path / "token").write_text("newer")
            server.tokens = {"newer": "renewed"}
            server.store.put({"kind": "Service", "metadata": {"name": "a"}, "spec": {}})
            await sink.until(lambda: sink.names("Service") == {"a"})
            await it.client.request("GET", "/version")
            assert server.requests[-1].user == "renewed"


def test_unusable_settings() -> None:
    with pytest.raises(KubeconfigError, match="/no/such: No such file"):
        ApiServer(Recorder(), "n", kubeconfig="/no/such")


async def test_stopping_closes_the_connections() -> None:
    async with FakeApiServer() as server:
        sink = Recorder()
        async with source(server, sink) as it:
            await sink.until(lambda: complete(sink) == FOUR)
        assert it.client._session is None
        await sink.until(lambda: not server.transports)


async def test_the_server_away_from_the_start_and_in_between() -> None:
    server, sink = FakeApiServer(), Recorder()
    async with server:
        server.store.put({"kind": "Service", "metadata": {"name": "a"}, "spec": {}})
        await server.stop()
        async with source(server, sink) as it:
            await sink.until(lambda: all(s.errors for s in it.statuses.values()))
            assert sink.calls == []
            with pytest.raises(UnreachableError):
                await it.client.request("GET", "/version")
            await server.start()
            await sink.until(lambda: complete(sink) == FOUR)
            await server.stop()
            await sink.until(lambda: all(s.trouble for s in it.statuses.values()))
            assert sink.names("Service") == {"a"}
            await server.start()
            await sink.until(lambda: all(s.connected for s in it.statuses.values()))
            assert sink.said("gone") == []


@pytest.mark.parametrize("lack", ["unserved", "forbidden"])
async def test_no_service_cidrs(lack: str) -> None:
    async with FakeApiServer() as server:
        getattr(server, lack).add("ServiceCIDR")
        server.store.put({"kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}})
        sink, time = Recorder(), Time()
        async with source(server, sink, time):
            await sink.until(lambda: complete(sink) == FOUR)
            assert sink.view == {}
            # It is looked for again, without a word, and found when it is there.
            time.over.set()
            await sink.until(lambda: time.waits == [900, 900])
            getattr(server, lack).clear()
            time.over.set()
            await sink.until(lambda: sink.names("ServiceCIDR") == {"kubernetes"})
            assert complete(sink) == FOUR


class TestEndpoints:
    @asynccontextmanager
    async def old_cluster(self, sink: Recorder, time: Time) -> AsyncIterator[tuple[FakeApiServer, ApiServer]]:
        async with FakeApiServer() as server:
            server.unserved.add("EndpointSlice")
            server.store.put({"kind": "Endpoints", "metadata": {"name": "web"}})
            server.store.put(
                {"kind": "Endpoints", "metadata": {"name": "h", "labels": {f"{LABEL}/headless": ""}}}
            )
            server.store.put({"kind": "EndpointSlice", "metadata": {"name": "web-1"}})
            async with source(server, sink, time) as it:
                yield server, it

    async def test_are_watched_where_slices_are_not_served(self, caplog: pytest.LogCaptureFixture) -> None:
        sink = Recorder()
        async with self.old_cluster(sink, Time()) as (server, it):
            await sink.until(lambda: complete(sink) == sorted([*FOUR, "Endpoints"]))
            assert sink.names("Endpoints") == {"web"}
            assert "watching Endpoints instead" in caplog.text
            kinds = [kind for _, kind in sink.said("complete")]
            assert kinds.index("EndpointSlice") == kinds.index("Endpoints") + 1
            assert it.statuses["Endpoints"].connected
            server.store.put({"kind": "Endpoints", "metadata": {"name": "new"}})
            await sink.until(lambda: sink.names("Endpoints") == {"web", "new"})

    async def test_make_way_for_slices(self) -> None:
        sink, time = Recorder(), Time()
        async with self.old_cluster(sink, time) as (server, it):
            await sink.until(lambda: "EndpointSlice" in complete(sink))
            await sink.until(lambda: time.waits == [900])
            time.over.set()
            await sink.until(lambda: time.waits == [900, 900])
            assert sink.names("Endpoints") == {"web"}
            server.unserved.clear()
            time.over.set()
            await sink.until(lambda: sink.names("Endpoints") == frozenset())
            assert sink.names("EndpointSlice") == {"web-1"}
            # The new were there before the old went.
            told = [call for call in sink.calls if call[1] in ("Endpoints", "EndpointSlice")]
            assert told[-2:] == [
                ("set", "EndpointSlice", "default", "web-1"),
                ("gone", "Endpoints", "default", "web"),
            ]
            assert complete(sink) == sorted([*FOUR, "Endpoints"])
            assert "Endpoints" not in it.statuses
            server.store.put({"kind": "Endpoints", "metadata": {"name": "late"}})
            server.store.put({"kind": "EndpointSlice", "metadata": {"name": "web-2"}})
            await sink.until(lambda: sink.names("EndpointSlice") == {"web-1", "web-2"})
            assert sink.names("Endpoints") == frozenset()

    async def test_are_not_watched_for_a_404_of_another_cause(self, caplog: pytest.LogCaptureFixture) -> None:
        sink, time = Recorder(), Time()
        async with FakeApiServer() as server:
            server.missing.add("EndpointSlice")
            async with source(server, sink, time):
                await sink.until(lambda: time.waits == [7.5])
                assert "not found although its API group is served" in caplog.text
                server.missing.clear()
                time.over.set()
                await sink.until(lambda: complete(sink) == FOUR)
                assert not server.asked("Endpoints")

    async def test_are_not_watched_for_missing_rights(self) -> None:
        sink = Recorder()
        async with FakeApiServer() as server:
            server.forbidden.add("EndpointSlice")
            async with source(server, sink) as it:
                await sink.until(lambda: it.statuses["EndpointSlice"].errors > 2)
                assert "endpointslices.discovery.k8s.io is forbidden" in it.statuses["EndpointSlice"].trouble
                server.forbidden.clear()
                await sink.until(lambda: complete(sink) == FOUR)
                assert not server.asked("Endpoints")


async def test_one_kind_in_trouble_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    sink = Recorder()
    async with FakeApiServer() as server:
        server.forbidden.add("Node")
        async with source(server, sink) as it:
            await sink.until(lambda: complete(sink) == ["EndpointSlice", "Service", "ServiceCIDR"])
            server.forbidden = {"Service"}
            server.drop()
            await sink.until(lambda: it.statuses["Service"].errors > 2 and it.statuses["Node"].connected)
            server.store.put({"kind": "EndpointSlice", "metadata": {"name": "a"}})
            await sink.until(lambda: sink.names("EndpointSlice") == {"a"})


def test_other_sources_do_not_load_the_http_client() -> None:
    code = (
        "import sys, kubeproxy.sources.kubeconfig, kubeproxy.sources.base; sys.exit('aiohttp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
