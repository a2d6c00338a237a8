"""Whatever an object is, it harms no other, is served as far as it can be, and what it cannot be is said."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kubeproxy import backends
from kubeproxy.api import types
from kubeproxy.api.addresses import FAMILIES, IPV4, Family, family_of, parse_address, parse_range
from kubeproxy.app import App
from kubeproxy.backends.base import Change, Driver, Failures
from kubeproxy.config.load import load
from kubeproxy.hub import Hub
from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.sources.known import KnownObjects
from kubeproxy.sources.manifests import Manifests
from tests import hostile
from tests.fakes import modes
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.cluster import NODE, NODE6
from tests.unit.backends.iptables.rig import Rig as IPTables
from tests.unit.backends.nftables.rig import Rig as NFTables

GOOD: Key = ("default", "good")


class Kernel:
    """A backend that remembers what it was given."""

    def __init__(self) -> None:
        self.plans: dict[Family, dict[Key, ServicePlan]] = {family: {} for family in FAMILIES}

    def open_driver(self, machine: Machine, node: NodeConfig) -> Driver:
        return self

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        self.plans[node.family] = dict(plans)
        return {}

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        held = self.plans[node.family]
        for change in changes:
            if change.after is None:
                del held[change.key]
            else:
                held[change.key] = change.after
        return {}

    async def intact(self) -> bool:
        return True

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """Nobody disturbs it."""
        return False

    async def close(self) -> None:
        """Holds nothing."""


class Outcome(NamedTuple):
    """What a daemon said and did."""

    said: list[str]
    plans: dict[Key, ServicePlan]


@contextlib.asynccontextmanager
async def _api(folder: Path, objects: Sequence[hostile.Wire]) -> AsyncIterator[dict[str, Any]]:
    async with FakeApiServer() as server:
        for obj in objects:
            server.store.put(obj)
        yield {"master": server.url}


@contextlib.asynccontextmanager
async def _files(folder: Path, objects: Sequence[hostile.Wire]) -> AsyncIterator[dict[str, Any]]:
    """A file an object, as JSON and as YAML in turn."""
    import yaml

    for number, obj in enumerate(objects):
        big = len(str(obj)) > 10_000
        as_yaml = number % 2 and not big
        text = yaml.safe_dump(obj, allow_unicode=False) if as_yaml else json.dumps(obj)
        (folder / f"{number:04}.{'yaml' if as_yaml else 'json'}").write_text(text)
    yield {"manifests": [str(folder)]}


async def _run(flags: dict[str, Any], kernel: Kernel, caplog: pytest.LogCaptureFixture) -> Outcome:
    """Runs the daemon until it has written what there is, then again after all was told twice."""
    task = asyncio.create_task(
        App(
            load({"hostname-override": "here", **flags}, "linux"), FakeMachine(("192.0.2.1", "2001:db8::1"))
        ).run()
    )
    async with asyncio.timeout(120):
        while "Synced" not in caplog.text or GOOD not in kernel.plans[IPV4]:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.02)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    plans = {key: plan for family in FAMILIES for key, plan in kernel.plans[family].items()}
    return Outcome([record.getMessage() for record in caplog.records], plans)


@pytest.mark.parametrize("source", [_api, _files], ids=["api", "files"])
async def test_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, source: Any
) -> None:
    """All cases at once, and the good one among them."""
    kernel = Kernel()
    modes.open_by(monkeypatch, kernel.open_driver)
    monkeypatch.setattr(backends, "cleanup", lambda *_: None)
    caplog.set_level("INFO", "kubeproxy")
    cases = list(hostile.apart(hostile.CASES))
    objects = [*(obj for case in cases for obj in case.objects), *hostile.GOOD]
    node = {
        "kind": "Node",
        "metadata": {"name": "here"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }
    async with source(tmp_path, [*objects, node]) as flags:
        outcome = await _run({**flags, "healthz-port": 0, "metrics-port": 0}, kernel, caplog)
    assert not any(record.exc_info for record in caplog.records)
    assert not any(record.levelname == "CRITICAL" for record in caplog.records)
    assert all(len(line) < 2000 for line in outcome.said)
    wrong = [f"{case.name}: {text}" for case in cases for text in _unlike(case, outcome)]
    assert not wrong, "\n".join(wrong)
    (port,) = outcome.plans[GOOD].ports
    assert port.cluster
    served = {("default", case.name) for case in cases if case.ports}
    assert outcome.plans.keys() == {*served, GOOD}


def _unlike(case: hostile.Case, outcome: Outcome) -> Iterator[str]:
    """What is not as the case has it."""
    for text in case.says:
        parts = text.split(" ... ")
        if not any(all(part.strip() in line for part in parts) for line in outcome.said):
            yield f"nothing says {text!r}"
    plan = outcome.plans.get(("default", case.name))
    found = [f"{p.name} {p.cluster_ip}:{p.port}/{p.protocol}" for p in plan.ports] if plan else []
    if found != [port.format(case.name) for port in case.ports]:
        yield f"is served at {found[:5]}"


SERVICE = {
    **hostile.balancer("web", {"ip": "203.0.113.1", "ipMode": "VIP"}),
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.96.7.1",
        "clusterIPs": ["10.96.7.1", "fd00:96::1"],
        "externalIPs": ["198.51.100.1"],
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
        "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Cluster",
        "healthCheckNodePort": 31000,
        "ports": [
            {"port": 80, "name": "a", "protocol": "TCP", "nodePort": 30080},
            {"port": 53, "name": "b", "protocol": "UDP", "nodePort": 30053},
        ],
    },
}
SLICE = {
    **hostile.endpoint_slice("web", "10.244.1.11", "10.244.1.12"),
    "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}, {"name": "b", "port": 53, "protocol": "UDP"}],
}
SLICE["endpoints"][0] |= {
    "conditions": {"ready": True, "serving": True, "terminating": False},
    "nodeName": "here",
    "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "here"}]},
}
ENDPOINTS = {
    "apiVersion": "v1",
    "kind": "Endpoints",
    "metadata": {"name": "web", "namespace": "default"},
    "subsets": [
        {
            "addresses": [{"ip": "10.244.1.13", "nodeName": "here"}],
            "notReadyAddresses": [{"ip": "10.244.1.14"}],
            "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}],
        }
    ],
}
OWN_NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": "a"}},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "a"}]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}
CIDR = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "ServiceCIDR",
    "metadata": {"name": "a"},
    "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/108"]},
}
WHOLE = (SERVICE, SLICE, ENDPOINTS, OWN_NODE, CIDR)
NAME = re.compile(r"[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?")


class World:
    """A hub, and rules made of what it knows in both modes and families."""

    def __init__(self) -> None:
        self.hub = Hub("here")
        self.objects = {kind: KnownObjects(kind, self.hub) for kind in types.KINDS}
        self.proxies = [kind(node=node) for kind in (IPTables, NFTables) for node in (NODE, NODE6)]
        for proxy in self.proxies:
            proxy.state = self.hub.state

    def tell(self, obj: hostile.Wire) -> None:
        """As the API server's watch does."""
        self.objects[obj["kind"]].set(msgspec.Raw(json.dumps(obj).encode()))

    def sync(self) -> None:
        """Nothing that came through is refused by anybody, and nothing of it can be taken for something else."""
        for proxy in self.proxies:
            assert not proxy.full()
            for plan in proxy.plans().values():
                _check(plan, proxy.node.family)
            if isinstance(proxy, IPTables):
                for _, lines in proxy.sent():
                    assert all(line.isascii() and line.isprintable() for line in lines)
        if self.hub.node:
            for cidr in self.hub.node.pod_cidrs:
                assert parse_range(cidr) == cidr

    def rules(self) -> list[object]:
        return [p.rules() if isinstance(p, IPTables) else p.table() for p in self.proxies]


def _check(plan: ServicePlan, family: Family) -> None:
    for port in plan.ports:
        assert NAME.fullmatch(port.name.replace("/", "").replace(":", ""))
        assert 1 <= port.port <= 65535
        assert 0 <= port.node_port <= 65535
        addresses = [port.cluster_ip, *port.external_ips, *port.load_balancer_ips]
        for address in (*addresses, *(b.address for b in port.endpoints)):
            assert parse_address(address) == address
            assert family_of(address) == family
        assert all(1 <= b.port <= 65535 for b in port.endpoints)


@settings(max_examples=50)  # each has rules of both modes and families made thrice
@given(st.lists(hostile.mutations(WHOLE), min_size=1, max_size=4))
def test_any_change_of_any_object(changed: list[hostile.Wire]) -> None:
    """After which the good objects, told again, bring everything to what it was."""
    world = World()
    for obj in (*hostile.GOOD, *WHOLE):
        world.tell(obj)
    world.sync()
    before = world.rules()
    good = [proxy.plans().get(GOOD) for proxy in world.proxies]
    for obj in changed:
        if not _is_named(obj, "good"):
            world.tell(obj)
    world.sync()
    assert [proxy.plans().get(GOOD) for proxy in world.proxies] == good
    for known in world.objects.values():
        known.clear()
    for obj in (*hostile.GOOD, *WHOLE):
        world.tell(obj)
    world.sync()
    assert world.rules() == before


def test_one_address_in_every_role() -> None:
    """The ClusterIP, which only an API server keeps apart from the others, wins."""
    world = World()
    for policy in ("Cluster", "Local"):
        one = hostile.balancer(
            "web", {"ip": "10.96.7.1"}, externalIPs=["10.96.7.1", "10.96.7.1"], externalTrafficPolicy=policy
        )
        world.tell(one)
        world.tell(hostile.endpoint_slice("web", "10.244.1.11"))
        world.sync()
        for proxy in world.proxies:
            for plan in proxy.plans().values():
                (port,) = plan.ports
                assert port.cluster_ip == "10.96.7.1"
                assert "10.96.7.1" not in (*port.external_ips, *port.load_balancer_ips)


def _is_named(obj: hostile.Wire, name: str) -> bool:
    return name in json.dumps(obj.get("metadata"))


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(changed=hostile.mutations(WHOLE))
@example(changed={"kind": "ServiceCIDR", "metadata": {}, "spec": {"cidrs": ["10.96.0.0/16"]}})
@example(changed={"kind": "Node", "metadata": {"name": ""}, "spec": {"podCIDR": "10.244.0.0/24"}})
def test_files_say_the_same(tmp_path: Path, changed: hostile.Wire) -> None:
    """A file of whatever objects brings the rules an API server brings that tells them, or is left out whole."""
    objects = [*hostile.GOOD, *(obj for obj in WHOLE if obj["kind"] != changed["kind"]), changed]
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({"kind": "List", "items": objects}))
    here, there = World(), World()
    asyncio.run(Manifests([file], here.hub).look())
    here.sync()
    if not here.hub.state.services:
        assert "\\ud800" in file.read_text(), "all else is JSON"
        return
    for obj in objects:
        there.tell(obj)
    there.sync()
    assert here.rules() == there.rules()
    assert here.hub.node == there.hub.node
    assert here.hub.service_cidrs == there.hub.service_cidrs
