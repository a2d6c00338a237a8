"""Drills: what goes wrong on live nodes, all while clients make new connections without a pause.

One Service always has a living backend, whatever happens to it; no connection to it may fail.
"""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from kubeproxy.api import types
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.cluster import endpoints, service, wire
from tests.kernel.daemons import PATIENCE, Station, answers, ask, until
from tests.kernel.traffic import Front, Traffic
from tests.lab import netns
from tests.lab.daemon import Daemon
from tests.lab.topology import EP12, EP13, EP14, LOCAL, NODE_NAME, REMOTE, REMOTE2, Lab

modes = pytest.mark.parametrize("mode", ["iptables", "nftables"])
ALIVE = (*LOCAL, REMOTE, REMOTE2)
WEB, NEAR = "10.96.0.10", "10.96.0.20"
NODE_PORT = 30080
CLIENTS: list[Front] = [("client", WEB, 80), ("node", WEB, 80), ("ep11", WEB, 80)]
OUTSIDE: Front = ("out", "192.0.2.1", NODE_PORT)


def web(kind: str = "NodePort", **spec: Any) -> types.Service:
    port = types.ServicePort(80, node_port=0 if kind == "ClusterIP" else NODE_PORT)
    balancer = ["203.0.113.10"] if kind == "LoadBalancer" else []
    return service("web", WEB, type=kind, ports=[port], balancer=balancer, **spec)


def backends(*addresses: str, of: str = "web") -> types.EndpointSlice:
    return endpoints(of, *addresses, local=LOCAL, node=NODE_NAME)


STICKY: dict[str, Any] = {
    "session_affinity": "ClientIP",
    "session_affinity_config": types.SessionAffinityConfig(types.ClientIPConfig(60)),
}


class ApiServer:
    """An API server on the node, in a thread of its own, for a `with` block."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._up = threading.Event()
        self.server = FakeApiServer()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.do(self.server.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def put(self, *objects: types.Object) -> None:
        """Stores objects."""

        async def put() -> None:
            for obj in objects:
                self.server.store.put(_said(wire(obj)))

        self.do(put)

    def delete(self, kind: str, name: str) -> None:
        """Deletes an object."""

        async def delete() -> None:
            self.server.store.delete(kind, name)

        self.do(delete)

    def do(self, what: Callable[[], Any]) -> None:
        """Runs a coroutine in its thread."""
        done: Future[Any] = asyncio.run_coroutine_threadsafe(what(), self._loop)
        done.result(PATIENCE)

    def _run(self) -> None:
        with netns.inside(self._lab.name("node")):
            self._loop.run_until_complete(self.server.start())
            self._up.set()
            self._loop.run_forever()


def _said(value: Any) -> Any:
    """An object without what is null."""
    if isinstance(value, dict):
        return {key: _said(each) for key, each in value.items() if each is not None}
    return [_said(each) for each in value] if isinstance(value, (list, tuple)) else value


def node() -> types.Node:
    addresses = (types.NodeAddress("InternalIP", "192.0.2.1"),)
    return types.Node(types.ObjectMeta(name=NODE_NAME), status=types.NodeStatus(addresses))


@pytest.fixture
def chance() -> random.Random:
    return random.Random(5)


@pytest.fixture
def api(lab: Lab) -> Iterator[ApiServer]:
    with ApiServer(lab) as api:
        api.put(node(), web(), backends(*LOCAL))
        yield api


def station(lab: Lab, path: Path, mode: str) -> Station:
    made = Station(lab, path, mode=mode)
    made.folder.put(web(), backends(*LOCAL))
    return made


def served(lab: Lab, path: Path, mode: str, api: ApiServer) -> Daemon:
    """The daemon at an API server."""
    made = Station(lab, path, mode=mode)
    command = made.command("--master", api.server.url)
    at = command.index("--manifests")
    return Daemon(lab, [*command[:at], *command[at + 2 :]], timeout=PATIENCE)


@modes
def test_killed_at_any_moment(lab: Lab, tmp_path: Path, mode: str, chance: random.Random) -> None:
    made = station(lab, tmp_path, mode)
    with made.running():
        pass
    with Traffic(lab, [*CLIENTS, OUTSIDE]) as traffic:
        for i in range(8):
            with Daemon(lab, made.command(), timeout=PATIENCE) as daemon:
                for j in range(chance.randint(0, 12)):
                    made.folder.put(backends(*chance.sample(ALIVE, chance.randint(1, 6))))
                    made.folder.put(
                        service(f"churn-{j}", f"10.96.1.{j + 1}"), backends(EP12, of=f"churn-{j}")
                    )
                    if chance.random() < 0.3:
                        ask(lab, "client", f"10.96.1.{j + 1}", patience=0.05)
                daemon.kill()
            traffic.wait(1)
            made.folder.put(service("last", NEAR), backends(LOCAL[i % 4], of="last"))
            with made.running():
                until(lambda i=i: answers(lab, "client", NEAR, LOCAL[i % 4]))  # type: ignore[misc]


@modes
def test_the_api_server_goes_and_comes_back_with_everything_changed(
    lab: Lab, tmp_path: Path, mode: str, api: ApiServer
) -> None:
    api.put(
        *(s for i in range(30) for s in (service(f"old-{i}", f"10.96.2.{i}"), backends(EP12, of=f"old-{i}")))
    )
    with served(lab, tmp_path, mode, api) as daemon, Traffic(lab, [*CLIENTS, OUTSIDE]) as traffic:
        until(lambda: answers(lab, "client", "10.96.2.29", EP12))
        for round_ in range(2):
            api.do(api.server.stop)
            traffic.wait()
            if not round_:
                until(lambda: answers(lab, "client", "10.96.2.29", EP12))
            for i in range(30):
                api.delete("Service", f"old-{i}" if not round_ else f"new-{i}")
                api.delete("EndpointSlice", f"old-{i}-1" if not round_ else f"new-{i}-1")
                if not round_:
                    api.put(service(f"new-{i}", f"10.96.3.{i}"), backends(EP13, of=f"new-{i}"))
            api.put(backends(EP13, EP14))
            api.server.store.compact()
            api.do(api.server.start)
            if not round_:
                until(lambda: answers(lab, "client", "10.96.3.29", EP13))
            else:
                until(lambda: not answers(lab, "client", "10.96.3.29", EP13))
            assert not answers(lab, "client", "10.96.2.29", EP12)
            traffic.wait()
        assert daemon.process.poll() is None


@modes
def test_a_thousand_changes_of_one_service(
    lab: Lab, tmp_path: Path, mode: str, api: ApiServer, chance: random.Random
) -> None:
    with served(lab, tmp_path, mode, api), Traffic(lab, [*CLIENTS, OUTSIDE]) as traffic:
        for _ in range(1000):
            api.put(backends(*chance.sample(ALIVE, chance.randint(1, 6))))
        api.put(backends(EP14), service("last", NEAR), backends(EP14, of="last"))
        until(lambda: answers(lab, "client", NEAR, EP14))
        before = {front: seen[EP14] for front, seen in traffic.answers.items()}
        traffic.wait()
        assert all(seen[EP14] > before[front] for front, seen in traffic.answers.items())


@modes
def test_a_service_that_flaps_between_types(
    lab: Lab, tmp_path: Path, mode: str, api: ApiServer, chance: random.Random
) -> None:
    """Its ClusterIP always works; its node port as long as it has one."""
    kinds: list[dict[str, Any]] = [
        {"kind": "ClusterIP"},
        {"kind": "NodePort"},
        {"kind": "LoadBalancer"},
        {"kind": "LoadBalancer", "external_traffic_policy": "Local"},
        {"kind": "LoadBalancer", "load_balancer_source_ranges": ("198.51.100.0/24",)},
        {"kind": "NodePort", **STICKY},
        {"kind": "ClusterIP", "internal_traffic_policy": "Local"},
    ]
    with served(lab, tmp_path, mode, api), Traffic(lab, CLIENTS) as traffic:
        for i in range(150):
            kind = chance.choice(kinds)
            api.put(web(**kind))
            if i % 10 == 0:
                traffic.wait(1)
            if i % 30 == 29:
                wanted = kind["kind"] != "ClusterIP"
                until(lambda wanted=wanted: (ask(lab, "out", *OUTSIDE[1:], patience=0.3) in LOCAL) == wanted)  # type: ignore[misc]


@modes
def test_the_clock_jumps(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Whatever time it is, changes go at once: no wait is measured by the clock on the wall."""
    made = station(lab, tmp_path, mode)
    preload = tmp_path / "usercustomize.py"
    preload.write_text(
        "import itertools, time\n"
        "real, calls = time.time, itertools.count()\n"
        "time.time = lambda: real() + (86400 * 365 if next(calls) % 2 else -86400 * 365)\n"
    )
    command = made.command()
    code = f"exec(open({str(preload)!r}).read()); from kubeproxy.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    at = command.index("-m")
    jumping = [*command[:at], "-c", code, *command[at + 2 :]]
    with Daemon(lab, jumping, timeout=PATIENCE), Traffic(lab, [*CLIENTS, OUTSIDE]) as traffic:
        for i in range(10):
            made.folder.put(service("near", NEAR), backends(LOCAL[i % 4], of="near"))
            until(lambda i=i: answers(lab, "client", NEAR, LOCAL[i % 4]))  # type: ignore[misc]
        traffic.wait()
