"""Whatever happens to the objects, the connection and the server: in the end the sink knows what exists."""

import asyncio
from contextlib import suppress
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kubeproxy.api.types import UndecodableError, decode
from kubeproxy.sources.apiserver import SERVICES
from kubeproxy.sources.auth import Credentials
from kubeproxy.sources.client import Client
from kubeproxy.sources.kubeconfig import Cluster, ClusterAccess, User
from kubeproxy.sources.watch import Reflector, Timing
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.lines import Fault
from tests.fakes.sink import Recorder

KEPT = tuple(f"kept-{number}" for number in range(3))
OTHERS = tuple(f"other-{number}" for number in range(4))

names = st.sampled_from(KEPT + OTHERS)
lost = st.sampled_from(OTHERS)
after = st.integers(0, 4)
faults = st.one_of(
    st.tuples(st.sampled_from(["drop", "half", "garbage", "end", "stall"]), after).map(
        lambda drawn: Fault(then=drawn[0], after=drawn[1])
    ),
    st.tuples(st.sampled_from([410, 429, 500, 504]), after).map(
        lambda drawn: Fault(then="error", code=drawn[0], after=drawn[1])
    ),
    st.sampled_from([401, 404, 410, 422, 429, 500, 503]).map(lambda status: Fault(status=status)),
)
steps = st.one_of(
    st.tuples(st.just("put"), names, st.integers(1, 65535)),
    st.tuples(st.just("break"), names),
    st.tuples(st.just("delete"), lost),
    st.tuples(st.just("hide"), lost),
    st.tuples(st.just("fault"), faults, st.booleans()),
    st.tuples(
        st.sampled_from(["drop", "compact", "away", "back", "backup", "restore", "old", "new", "settle"])
    ),
)
stories = st.lists(st.tuples(st.sampled_from([0, 0.002, 0.01]), steps), min_size=1, max_size=25)
"""What happens, and how many seconds to wait before."""


def service(name: str, port: object, **labels: str) -> dict[str, Any]:
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}
    return {"kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec}


class World:
    """A server to which things happen, and a reflector that has to cope."""

    def __init__(self, server: FakeApiServer) -> None:
        self.server = server
        self.sink = Recorder()
        for name in KEPT:
            server.store.put(service(name, 80))
        self.backup = server.store.backup()
        server.bookmark_seconds = 0.02
        connection = ClusterAccess(Cluster(server=server.url), User(), name="test")
        self.client = Client(Credentials(lambda: connection, env={}))
        timing = Timing(sleep=lambda _: asyncio.sleep(0.001), watch=0.3, first_event=0.2, heartbeat=0.2)
        self.reflector = Reflector(
            SERVICES, self.client, self.sink, lambda: self.sink.complete("Service"), timing
        )
        self.away = False

    async def do(self, what: str, *args: Any) -> None:
        store = self.server.store
        match what:
            case "put":
                store.put(service(*args))
            case "break":
                store.put(service(args[0], "http"))
            case "hide":
                store.put(service(args[0], 80, **{"service.kubernetes.io/service-proxy-name": "other"}))
            case "delete" if ("default", args[0]) in store.objects["Service"]:
                store.delete("Service", args[0])
            case "fault":
                # A plain list that stalls is waited for longer than a test can.
                self.server.next(args[0], verb="watch" if args[0].then == "stall" else "")
                if args[1]:
                    self.server.drop()
            case "drop":
                self.server.drop()
            case "compact":
                store.compact()
            case "backup":
                self.backup = store.backup()
            case "restore":
                # A history that overtakes the lost one before the client is back looks the same to every client;
                # therefore much is lost here, and the client knew of it.
                await self.settle()
                store.version += 1000
                store.put(service(KEPT[0], 81))
                await self.settle()
                store.restore(self.backup)
                self.server.drop()
            case "away":
                await self.server.stop()
                self.away = True
            case "back":
                await self.come_back()
            case "old" | "new":
                self.server.streaming = what == "new"
            case "settle":
                await self.settle()

    async def come_back(self) -> None:
        if self.away:
            await self.server.start()
            self.away = False

    async def settle(self) -> None:
        """Waits until the sink's view is the server's state."""
        await self.come_back()
        await self.sink.until(self.agree)

    def agree(self) -> bool:
        there, broken = {}, set()
        for stored in self.server.store.select("Service", SERVICES.labels, SERVICES.fields):
            try:
                there[stored.key[1]] = decode("Service", stored.data)
            except UndecodableError:
                broken.add(stored.key[1])
        seen = {name: obj for (_, _, name), obj in self.sink.view.items() if name not in broken}
        return seen == there


async def live(story: list[tuple[float, tuple[Any, ...]]]) -> World:
    async with FakeApiServer() as server:
        world = World(server)
        running = asyncio.create_task(world.reflector.run())
        try:
            for pause, step in story:
                await asyncio.sleep(pause)
                await world.do(*step)
            await world.settle()
            # And it is still awake.
            server.store.put(service("last", 99))
            await world.settle()
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await world.client.close()
        return world


# No shrinking: each try of a failing story would cost the 20 seconds that `until` waits.
@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(stories)
def test_the_sink_learns_what_exists_and_never_loses_what_stays(
    story: list[tuple[float, tuple[Any, ...]]],
) -> None:
    world = asyncio.run(live(story))
    assert not {name for _, _, _, name in world.sink.said("gone")} & set(KEPT)
    assert world.sink.said("complete") == [("complete", "Service")]
