"""The recorder: what a running daemon does is in the journal, at once or a second later, and nothing waits for it."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.backends.base import SyncError
from kubeproxy.backends.fake import FakeDriver
from kubeproxy.cli.replay import line
from kubeproxy.config.load import load
from kubeproxy.hub import Hub
from kubeproxy.insight.history import Event, events
from kubeproxy.insight.journal import Journal
from kubeproxy.journal import recorder as module
from kubeproxy.journal.recorder import Recorder
from kubeproxy.model.node import NodeConfig
from kubeproxy.reconcile.reconciler import Reconciler
from tests.fakes.cluster import endpoints, service

NODE = NodeConfig(name="here", address="192.0.2.1")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)


@contextlib.asynccontextmanager
async def recording(
    folder: Path, **flags: Any
) -> AsyncIterator[tuple[Recorder, Hub, Reconciler, FakeDriver]]:
    """A recorder that follows one control loop, which runs."""
    options = load({"journal": str(folder), "hostname-override": "here", **flags}, sys.platform)
    made = Recorder(options, lambda _: ("192.0.2.1",))
    hub, driver = Hub("here"), FakeDriver()
    loop = Reconciler(hub.state, driver, NODE)
    hub.loops = [loop]
    tasks = [asyncio.create_task(made.run()), asyncio.create_task(loop.run())]
    made.follow(hub, "nftables", [loop])
    try:
        await loop.synced.wait()
        yield made, hub, loop, driver
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


def read(folder: Path) -> list[Event]:
    return list(events(Journal(folder)))


def test_what_a_daemon_does(tmp_path):
    async def run() -> None:
        async with recording(tmp_path) as (made, hub, loop, _):
            hub.set(service("web", "10.96.0.10"))
            hub.set(endpoints("web", "10.244.1.11"))
            await until(lambda: loop.ledger.plans)
            before = loop.last_success
            loop.set_node(loop.node.with_service_cidrs(["10.96.0.0/12"]))
            await until(lambda: loop.last_success != before and made.idle)
            hub.gone("Service", "default", "web")
            await until(lambda: not loop.ledger.plans and made.idle)

    asyncio.run(run())
    found = read(tmp_path)
    kinds = [event.kind for event in found]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    shown = [line(event) for event in found]
    assert any("created: ClusterIP 10.96.0.10" in each for each in shown)
    assert any("endpoint 10.244.1.11 added (ready, node there)" in each for each in shown)
    assert any("service_cidrs: () -> ('10.96.0.0/12',)" in each for each in shown)
    assert any("deleted" in each for each in shown)
    synced = [event for event in found if event.kind == "sync" and event.services == ("default/web",)]
    assert all(event.delay is not None and event.delay >= 0 for event in synced)
    past = Journal(tmp_path).at(found[-1].unix)
    assert past.state.services == {}
    assert past.planned["IPv4"].node.service_cidrs == ("10.96.0.0/12",)


def test_a_refused_service(tmp_path, monkeypatch):
    refusals = [{("default", "db"): "no space left"}, {}]

    async def run() -> None:
        async with recording(tmp_path) as (made, hub, loop, driver):
            hub.set(service("db", "10.96.0.11"))
            await until(lambda: loop.ledger.plans)

            async def load(*_: Any) -> Any:
                return refusals.pop(0) if refusals else {}

            monkeypatch.setattr(driver, "load", load)
            loop.resync()
            await until(lambda: loop.ledger.refused)
            loop.resync()
            await until(lambda: not loop.ledger.refused and made.idle)

    asyncio.run(run())
    found = [event for event in read(tmp_path) if event.service == "default/db" and event.kind != "service"]
    assert [(event.kind, event.family, event.changes) for event in found] == [
        ("refused", "IPv4", ("the kernel refuses it: no space left",)),
        ("accepted", "IPv4", ("the kernel does not refuse it any more",)),
    ]
    assert Journal(tmp_path).at(found[0].unix).refused == {("IPv4", ("default", "db")): "no space left"}
    assert Journal(tmp_path).at(found[1].unix).refused == {}


def test_a_failed_sync(tmp_path, monkeypatch):
    async def run() -> None:
        async with recording(tmp_path) as (made, hub, loop, driver):

            async def fails(*_: Any) -> None:
                raise SyncError("the kernel is busy")

            monkeypatch.setattr(driver, "apply", fails)
            hub.set(service("web", "10.96.0.10"))
            await until(lambda: loop.failures_in_row or loop.ledger.plans)
            await until(lambda: made.idle)

    asyncio.run(run())
    (failed,) = [event for event in read(tmp_path) if event.kind == "failure"]
    assert failed.changes == ("sync failed: the kernel is busy",)


def test_another_source_and_mode(tmp_path):
    async def run() -> None:
        async with recording(tmp_path) as (made, hub, _, _):
            hub.set(service("web", "10.96.0.10"))
            other = Hub("here")
            other.set(service("db", "10.96.0.11"))
            made.follow(other, "iptables", [Reconciler(other.state, FakeDriver(), NODE)])
            hub.set(service("ignored", "10.96.0.12"))
            await until(lambda: made.idle)

    asyncio.run(run())
    found = [
        (event.kind, event.service, event.changes[0]) for event in read(tmp_path) if event.kind != "sync"
    ]
    at = found.index(("configuration", "", "another configuration came into force"))
    assert any(each[:2] == ("service", "default/web") for each in found[:at])
    assert ("service", "default/web", "deleted") in found[at:]
    assert any(each[:2] == ("service", "default/db") for each in found[at:])
    assert ("configuration", "", "mode: nftables -> iptables") in found[at:]
    assert not any("ignored" in each[1] for each in found)


def test_what_cannot_be_written_is_dropped_and_the_journal_goes_on_with_all_that_is_known(tmp_path, caplog):
    folder = tmp_path / "journal"
    folder.write_text("")  # not a folder

    async def run() -> None:
        async with recording(folder) as (made, hub, loop, _):
            hub.set(service("web", "10.96.0.10"))
            await until(lambda: loop.ledger.plans and "cannot be written" in caplog.text)
            folder.unlink()
            await until(lambda: folder.is_dir() and made.idle)
            hub.set(service("db", "10.96.0.11"))
            await until(lambda: len(loop.ledger.plans) == 2 and made.idle)

    asyncio.run(run())
    journal = Journal(folder)
    assert journal.segments[0].opened.reason == "lost"
    past = journal.at(journal.segments[0].opened.at)
    assert list(past.state.services) == [("default", "web")]
    assert [event.service for event in read(folder) if event.kind == "service"] == ["default/db"]
    assert caplog.text.count("cannot be written") == 1


def test_what_waits_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.05)

    async def run() -> None:
        async with recording(tmp_path) as (made, hub, _, _):
            await until(lambda: made.idle)
            for i in range(100):
                hub.set(service(f"s{i}", f"10.96.1.{i}"))
                assert len(made._waiting) <= 11
            await until(lambda: made.idle)

    asyncio.run(run())
    journal = Journal(tmp_path)
    assert "lost" in [each.opened.reason for each in journal.segments]
    assert len(journal.at(1e12).state.services) == 100


def test_a_journal_of_many_segments(tmp_path, monkeypatch):
    """Each begins with all that is known, and says what the daemon knew."""

    async def run() -> None:
        async with recording(tmp_path, **{"journal-size": load_size("1Mi")}) as (made, hub, _, _):
            made._writer._full_at = 2000
            for i in range(200):
                hub.set(service(f"s{i % 20}", "10.96.1.1", external_ips=(f"198.51.{i}.1",)))
                await until(lambda: made.idle)
                made._writer._full_at = 2000

    def load_size(text: str) -> Any:
        from kubeproxy.config.durations import parse_quantity

        return parse_quantity(text)

    asyncio.run(run())
    journal = Journal(tmp_path)
    reasons = [each.opened.reason for each in journal.segments]
    assert reasons[0] == "start"
    assert len(reasons) > 3
    assert set(reasons[1:]) == {"full"}
    found = [event for event in events(journal) if event.kind == "service"]
    assert len(found) == 200
    for event in found[::20]:
        past = journal.at(event.unix)
        assert past.state.services[tuple(event.service.split("/"))].external_ips  # type: ignore[index]


def test_a_daemon_without_a_journal_loads_nothing_of_it():
    code = "import sys, kubeproxy.app; print(*[m for m in sys.modules if 'journal' in m])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
