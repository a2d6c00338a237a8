"""Health-check node ports, asked over real sockets."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest
from msgspec import structs

from kubeproxy.api.addresses import IPV6, Family
from kubeproxy.model.plan import Key
from kubeproxy.serve.http import Door
from kubeproxy.serve.nodehealth import NodeHealth
from tests.machines import MACHINE
from tests.unit.serve.stage import IPV4, Stage, plan, running, until

WEB, API = ("default", "web"), ("default", "api")


class Rig:
    """The ports of one family."""

    def __init__(self, family: Family = IPV4, **node: object) -> None:
        self.stage = Stage(family, None, **node)
        self.healthy = True
        self.failures: list[tuple[Key, str]] = []
        self.ports = NodeHealth(
            MACHINE,
            self.stage.loop,
            Door(),
            lambda: self.healthy,
            lambda key, why: self.failures.append((key, why)),
            retry_seconds=0.02,
        )

    @property
    def states(self) -> tuple[float, float]:
        """How many are open, and how many should be."""
        opened, failed = (figure.value for figure in self.ports.figures())
        return opened, failed  # type: ignore[return-value]


async def get(
    port: int, host: str = "127.0.0.1", path: str = "/any/path"
) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(20):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    first, *lines = head.decode().split("\r\n")
    return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in lines), body


async def closed(port: int, host: str = "127.0.0.1") -> bool:
    try:
        await get(port, host)
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture
def ports() -> list[int]:
    """Ports nobody has, from below those that are given to clients."""
    found: list[int] = []
    while len(found) < 3:
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("0.0.0.0", random.randrange(20000, 30000)))
            found.append(trial.getsockname()[1])
    return found


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    async with running(made.ports.run()):
        yield made


async def test_it_tells_how_many_endpoints_are_here(rig: Rig, ports: list[int]) -> None:
    port = ports[0]
    rig.stage.synced(plan(port=port, ready=2), full=True)
    await until(lambda: rig.states == (1, 0))
    status, headers, body = await get(port)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert msgspec.json.decode(body) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    rig.stage.synced(plan(port=port, ready=0))
    status, headers, body = await get(port)
    assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")
    rig.stage.synced(plan(port=port, ready=3))
    rig.healthy = False
    status, headers, body = await get(port)
    assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "3")
    assert msgspec.json.decode(body)["serviceProxyHealthy"] is False


async def test_ports_come_move_and_go_with_their_services(rig: Rig, ports: list[int]) -> None:
    first, second, third = ports
    rig.stage.synced(plan(port=first, ready=1), plan("api", port=second, ready=1), plan("none"), full=True)
    await until(lambda: rig.states == (2, 0))
    rig.stage.synced(plan(port=third, ready=1))
    await until(lambda: not rig.ports.pending and (("0.0.0.0", third) in rig.ports.open))
    assert await closed(first)
    assert (await get(third))[0] == (await get(second))[0] == 200
    rig.stage.synced(gone=(WEB,))
    await until(lambda: rig.states == (1, 0))
    assert await closed(third)
    rig.stage.synced(plan("api"))
    await until(lambda: rig.states == (0, 0))
    assert await closed(second)


async def test_a_port_that_passes_from_a_service_to_another(rig: Rig, ports: list[int]) -> None:
    rig.stage.synced(plan(port=ports[0], ready=1), full=True)
    await until(lambda: rig.states == (1, 0))
    rig.stage.synced(plan("api", port=ports[0], ready=1), gone=(WEB,))
    await until(lambda: rig.ports.open.get(("0.0.0.0", ports[0])) == API)
    assert b'"name": "api"' in (await get(ports[0]))[2]
    assert rig.failures == []


async def test_a_full_sync_tells_all(rig: Rig, ports: list[int]) -> None:
    rig.stage.synced(plan(port=ports[0], ready=1), full=True)
    await until(lambda: rig.states == (1, 0))
    rig.stage.synced(plan("api", port=ports[1], ready=1), full=True)
    await until(lambda: ("0.0.0.0", ports[1]) in rig.ports.open)
    assert await closed(ports[0])


async def test_a_service_that_the_kernel_refuses_stays_as_it_was(rig: Rig, ports: list[int]) -> None:
    rig.stage.synced(plan(port=ports[0], ready=1), full=True)
    await until(lambda: rig.states == (1, 0))
    refused = {WEB: "no", API: "no"}
    changed = plan(port=ports[1], ready=5)
    rig.stage.synced(changed, plan("api", port=ports[2], ready=5), full=True, failures=refused)
    rig.stage.synced(plan("other"))
    await until(lambda: not rig.ports.pending)
    assert rig.states == (1, 0)
    assert (await get(ports[0]))[1]["X-Load-Balancing-Endpoint-Weight"] == "1"
    rig.stage.synced(full=True)
    await until(lambda: rig.states == (0, 0))


async def test_a_port_that_is_taken_is_told_once_and_opened_when_it_is_free(
    rig: Rig, ports: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with socket.socket() as other:
        other.bind(("0.0.0.0", ports[0]))
        other.listen()
        rig.stage.synced(plan(port=ports[0], ready=1), plan("api", port=ports[1], ready=1), full=True)
        await until(lambda: rig.states == (1, 1))
        assert (await get(ports[1]))[0] == 200, "another's trouble is not its own"
        await asyncio.sleep(0.1)
        why = f"health check node port {ports[0]} cannot be opened on 0.0.0.0: Address already in use"
        assert rig.failures == [(WEB, why)]
        assert caplog.messages == [f"Service default/web: {why}; trying again every 0.02 s"]
    await until(lambda: rig.states == (2, 0))
    assert (await get(ports[0]))[0] == 200
    assert caplog.messages[1:] == [
        f"Service default/web: health check node port {ports[0]} is open on 0.0.0.0 now"
    ]


@pytest.mark.parametrize("refused", [False, True])
async def test_a_port_passes_to_its_new_owner_even_if_the_kernel_refuses_the_old_one(
    rig: Rig, ports: list[int], *, refused: bool
) -> None:
    rig.stage.synced(plan(port=ports[0], ready=1), full=True)
    await until(lambda: rig.states == (1, 0))
    assert b'"name": "web"' in (await get(ports[0]))[2]
    failures = {WEB: "the kernel's words"} if refused else {}
    rig.stage.synced(plan(), plan("api", port=ports[0], ready=1), full=True, failures=failures)
    said = b""
    async with asyncio.timeout(20):
        while b'"name": "api"' not in said:
            with contextlib.suppress(OSError):  # it is closed and opened again
                said = (await get(ports[0]))[2]
    assert rig.states == (1, 0)
    assert not rig.failures


async def test_ports_are_on_the_addresses_of_node_ports_and_follow_them(ports: list[int]) -> None:
    rig = Rig(node_port_ranges=("127.0.0.0/8",), node_port_addresses=("127.0.0.2", "127.0.0.3"))
    async with running(rig.ports.run()):
        rig.stage.synced(plan(port=ports[0], ready=1), full=True)
        await until(lambda: rig.states == (2, 0))
        for host in ("127.0.0.2", "127.0.0.3"):
            assert (await get(ports[0], host))[0] == 200
        assert await closed(ports[0], "127.0.0.1")
        rig.stage.loop.node = structs.replace(
            rig.stage.loop.node, node_port_addresses=("127.0.0.3", "127.0.0.4")
        )
        rig.stage.synced(plan(port=ports[0], ready=1), full=True)
        await until(lambda: ("127.0.0.4", ports[0]) in rig.ports.open)
        assert await closed(ports[0], "127.0.0.2")
        assert (await get(ports[0], "127.0.0.4"))[0] == (await get(ports[0], "127.0.0.3"))[0] == 200


async def test_no_address_in_the_ranges_is_no_port(ports: list[int]) -> None:
    rig = Rig(node_port_ranges=("192.0.2.0/24",))
    async with running(rig.ports.run()):
        rig.stage.synced(plan(port=ports[0], ready=1), full=True)
        await until(lambda: not rig.ports.pending)
        assert rig.states == (0, 0)
        assert await closed(ports[0])


async def test_each_family_has_its_own(rig: Rig, ports: list[int]) -> None:
    other = Rig(IPV6)
    async with running(other.ports.run()):
        rig.stage.synced(plan(port=ports[0], ready=1), full=True)
        other.stage.synced(plan(port=ports[0], ready=4), full=True)
        await until(lambda: rig.states == other.states == (1, 0))
        for host, count in (("127.0.0.1", "1"), ("::1", "4")):
            assert (await get(ports[0], host))[1]["X-Load-Balancing-Endpoint-Weight"] == count


async def test_its_end_closes_all(ports: list[int]) -> None:
    rig = Rig()
    async with running(rig.ports.run()):
        rig.stage.synced(plan(port=ports[0], ready=1), full=True)
        await until(lambda: rig.states == (1, 0))
    assert await closed(ports[0])


async def test_changes_that_move_no_port_cost_nothing(rig: Rig, ports: list[int]) -> None:
    rig.stage.synced(plan(port=ports[0], ready=1), full=True)
    await until(lambda: rig.states == (1, 0))
    await until(lambda: not rig.ports.pending)
    rig.stage.synced(plan(port=ports[0], ready=2), plan("api"))
    assert not rig.ports.pending
    assert (await get(ports[0]))[1]["X-Load-Balancing-Endpoint-Weight"] == "2"
