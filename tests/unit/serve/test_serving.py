"""The two addresses of our own: held, tried again, or fatal; and who is eligible."""

import asyncio
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api.rows import NodeRow
from kubeproxy.config.load import load
from kubeproxy.events import Events
from kubeproxy.hub import Hub
from kubeproxy.machine.base import Machine
from kubeproxy.serve.listen import Port, allow_many_files
from kubeproxy.serve.message import text
from kubeproxy.serve.serving import Serving
from kubeproxy.sources.base import Status
from tests.machines import MACHINE
from tests.unit.serve.stage import ask, running, until
from tests.unit.serve.test_nodehealth import closed, get


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port that somebody has."""
    while True:
        other = socket.socket()
        try:
            other.bind(("127.0.0.1", random.randrange(20000, 30000)))
        except OSError:
            other.close()
            continue
        break
    other.listen()
    yield other
    other.close()


async def opened(port: int) -> None:
    """Waits until a port is open."""
    async with asyncio.timeout(20):
        while await closed(port):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


async def test_an_address_that_is_taken_is_tried_again(
    taken: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    port, told = port_of(taken), list[str]()
    made = Port(MACHINE, "health", lambda _: text("ok"), failed=told.append, retry_seconds=0.02)
    made.want(("127.0.0.1", port), hard_fail=False)
    async with running(made.run()):
        await until(lambda: told)
        await asyncio.sleep(0.1)
        why = f"health cannot be served on 127.0.0.1:{port}: Address already in use"
        assert told == [why]
        assert caplog.messages == [f"{why}; trying again every 0.02 s"]
        taken.close()
        await opened(port)
        assert (await get(port))[0] == 200
    assert await closed(port)


async def test_an_address_that_is_taken_may_be_fatal(taken: socket.socket) -> None:
    made = Port(MACHINE, "metrics", lambda _: text(""))
    made.want(("127.0.0.1", port_of(taken)), hard_fail=True)
    with pytest.raises(
        OSError, match=r"metrics cannot be served on 127\.0\.0\.1:\d+: Address already in use"
    ):
        await made.run()


def serving(
    *, node: NodeRow | None = None, statuses: dict[str, Status] | None = None, **flags: Any
) -> Serving:
    hub = Hub("here")
    hub.node = node
    given = {"healthz-port": 0, "metrics-port": 0, **flags}
    return Serving(MACHINE, load(given, "linux"), hub, Events("here", None), statuses=statuses)


async def test_a_fatal_address_ends_all(taken: socket.socket) -> None:
    made = serving(
        **{  # type: ignore[arg-type]
            "metrics-bind-address": f"127.0.0.1:{port_of(taken)}",
            "metrics-port": 10249,
            "bind-address-hard-fail": True,
        }
    )
    with pytest.raises(OSError, match="metrics cannot be served"):
        await made.run()


async def test_a_server_without_an_address_listens_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    def remember(_: Machine, address: str, port: int, **__: object) -> socket.socket:
        held.append(f"{address}:{port}")
        return socket.create_server(("127.0.0.1", 0))

    monkeypatch.setattr("kubeproxy.serve.listen.bind", remember)
    async with running(serving().run()):
        await asyncio.sleep(0)
        async with running(serving(**{"healthz-port": 10256}).run()):  # type: ignore[arg-type]
            await until(lambda: held)
    assert held == ["0.0.0.0:10256"]


class TestAnotherAddress:
    @pytest.fixture
    def port(self, taken: socket.socket) -> int:
        number = port_of(taken)
        taken.close()
        return number

    async def test_the_new_is_opened_before_the_old_is_closed(
        self, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = Port(MACHINE, "health", lambda _: text("ok"))
        made.want(("127.0.0.1", port), hard_fail=True)
        async with running(made.run()):
            await opened(port)
            made.reserve(("127.0.0.1", port + 1), hard_fail=True)
            assert (await get(port))[0] == 200
            made.want(("127.0.0.1", port + 1), hard_fail=True)
            await until(lambda: made.at == ("127.0.0.1", port + 1))
            assert (await get(port + 1))[0] == 200
            assert await closed(port)
            made.want(None, hard_fail=True)
            await until(lambda: made.at is None)
            assert await closed(port + 1)

    @pytest.mark.parametrize(("before", "after"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")])
    async def test_the_same_port_on_an_address_that_overlaps(
        self, port: int, before: str, after: str
    ) -> None:
        made = Port(MACHINE, "health", lambda _: text("ok"), retry_seconds=600)
        made.want((before, port), hard_fail=False)
        async with running(made.run()):
            await opened(port)
            made.reserve((after, port), hard_fail=True)
            made.want((after, port), hard_fail=True)
            await until(lambda: made.at == (after, port))
            assert (await get(port))[0] == 200
            other = Port(MACHINE, "health", lambda _: text("other"))
            with pytest.raises(OSError, match="already in use"):
                other.reserve((after, port), hard_fail=True)

    async def test_one_that_is_taken_leaves_the_old_open(self, port: int) -> None:
        told: list[str] = []
        made = Port(MACHINE, "health", lambda _: text("ok"), failed=told.append, retry_seconds=0.02)
        made.want(("127.0.0.1", port), hard_fail=True)
        async with running(made.run()):
            await opened(port)
            with socket.create_server(("127.0.0.1", 0)) as other:
                at = "127.0.0.1", port_of(other)
                with pytest.raises(OSError, match=f"health cannot be served on 127.0.0.1:{at[1]}"):
                    made.reserve(at, hard_fail=True)
                made.reserve(at, hard_fail=False)
                made.want(at, hard_fail=True)
                await until(lambda: told)
                assert (await get(port))[0] == 200
            await until(lambda: made.at == at)
            assert await closed(port)


@pytest.mark.parametrize(
    ("node", "flags", "status"),
    [
        (None, {}, 503),
        (NodeRow("here"), {}, 200),
        (NodeRow("here", leaving=True), {}, 503),
        (None, {"manifests": ("x",)}, 200),
        (NodeRow("here", leaving=True), {"manifests": ("x",)}, 503),
    ],
)
async def test_a_node_is_eligible_while_it_stays(
    node: NodeRow | None, flags: dict[str, Any], status: int
) -> None:
    made = serving(node=node, **flags)
    assert (await ask(made.health.routes()["GET /healthz"])).status == status
    assert (await ask(made.health.routes()["GET /livez"])).status == 200


async def test_all_that_is_there_is_served(taken: socket.socket, tmp_path: Path) -> None:
    port = port_of(taken)
    taken.close()
    address: dict[str, Any] = {"metrics-bind-address": f"127.0.0.1:{port}", "metrics-port": 10249}
    statuses = {"Service": Status("Service", received=1.0)}
    async with running(serving(statuses=statuses, **address).run()):
        await opened(port)
        for path in ("/healthz", "/metrics", "/metrics/slis", "/proxyMode", "/configz", "/flagz", "/statusz"):
            assert (await get(port, path=path))[0] == 200, path
        assert (await get(port, path="/debug/pprof/"))[0] == 404
        _, _, body = await get(port, path="/metrics")
        for name in (
            b'kubeproxy_watch_age_seconds{kind="Service"}',
            b"kubeproxy_ready 0.0",
            b"process_cpu_seconds",
        ):
            assert name in body
    async with running(serving(profiling=True, **address).run()):
        await opened(port)
        assert (await get(port, path="/debug/pprof/"))[0] == 200


def test_the_limit_of_files_is_as_high_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = {"now": (1024, 5000)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.update(now=new))
    allow_many_files()
    assert limits["now"] == (5000, 5000)
