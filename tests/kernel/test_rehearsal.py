"""What drivers read and describe, against what the system's own tools print of the kernel, for the cases of the oracle."""

import asyncio
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from kubeproxy.api.addresses import FAMILIES, Family
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.localhost import Localhost
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.shared.compared import flat
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.netlink.nft.kernel import NftKernel
from tests.fakes.relay import FakeRelay
from tests.kernel.spaces import VARIANTS, Real
from tests.lab import cases, netns
from tests.machines import MACHINE
from tests.scenarios.world import LOCAL_ADDRESSES, World

_BLOCK = re.compile(r"^\t(set|map|chain) (\S+) \{\n(.*?)^\t\}", re.MULTILINE | re.DOTALL)
_ELEMENTS = re.compile(r"elements = \{(.*?)\}", re.DOTALL)


@pytest.fixture
def inside(space: str) -> Iterator[str]:
    """The test, and all it starts, runs in the namespace."""
    with netns.inside(space):
        yield space


def printed(family: Family) -> set[str]:
    """What stock nft prints of our table: each element and each rule as a command, in one line."""
    table = f"{'ip' if family == 'IPv4' else 'ip6'} kube-proxy"
    text = subprocess.run(
        ["nft", "list", "table", *table.split()], check=True, capture_output=True, text=True
    ).stdout
    found = set()
    for kind, name, body in _BLOCK.findall(text):
        if kind == "chain":
            found |= {f"add rule {table} {name} {' '.join(line.split())}" for line in body.splitlines()}
            found.add(f"add chain {table} {name}")
            continue
        found.add(f"add {kind} {table} {name}")
        for elements in _ELEMENTS.findall(body):
            each = (" ".join(element.split()) for element in elements.split(","))
            found |= {f"add element {table} {name} {{ {element} }}" for element in each}
    return found


@pytest.mark.parametrize("name", cases.NAMES)
def test_nftables(inside: str, name: str) -> None:
    world = World.of_case(name, "nftables")
    for family in FAMILIES:
        cidrs = tuple(cidr for cidr in world.hub.service_cidrs if (":" in cidr) == (family == "IPv6"))
        node = replace(world.nodes[family], service_cidrs=cidrs)
        plans = {plan.key: plan for plan in world.plans(family)}
        with NftKernel(MACHINE) as kernel:
            driver = NFTablesDriver(kernel, node)
            first = driver.difference(asyncio.run(driver.read()), node, plans)
            assert not asyncio.run(driver.load(node, plans))
            held = asyncio.run(driver.read())
            assert driver.difference(held, node, plans).lines() == []
            assert held == asyncio.run(driver.read())
            for key, plan in plans.items():
                part = asyncio.run(driver.read_part(node, {key: plan}))
                assert not driver.compare(part, node, {key: plan})
                assert {line for line in driver.describe(node, plan) if "add element" in line} <= {
                    *part.commands()
                }
            there = printed(family)
            for plan in plans.values():
                for line in driver.describe(node, plan):
                    # Of a set or map made for some Services, its name; its type is told by its elements.
                    wanted = line.partition(" { ")[0] if line.startswith(("add set ", "add map ")) else line
                    assert wanted in there, line
            subprocess.run(
                ["nft", "-f", "-"], input=f"delete table {held.lines()[0][6:-2]}", check=True, text=True
            )
            first.send(kernel)
            assert printed(family) == there
            assert asyncio.run(driver.read()) == held


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", cases.NAMES)
def test_iptables(inside: str, name: str, variant: str) -> None:
    world = World.of_case(name, "iptables")
    for family in FAMILIES:
        node = world.nodes[family]
        plans = {plan.key: plan for plan in world.plans(family)}
        tables = Real(family, variant)  # type: ignore[arg-type]
        driver = IPTablesDriver(tables, counters=False, drop_invalid=True)
        first = driver.difference(asyncio.run(driver.read()), node, plans)
        assert not asyncio.run(driver.load(node, plans))
        held = asyncio.run(driver.read())
        assert driver.difference(held, node, plans).lines() == []
        for key, plan in plans.items():
            part = asyncio.run(driver.read_part(node, {key: plan}))
            assert not driver.compare(part, node, {key: plan})
            assert {*flat(driver.describe(node, plan))} <= {*part.commands()}
        there = saved(tables)
        for plan in plans.values():
            table = ""
            for line in driver.describe(node, plan):
                table = line if line.startswith("*") else table
                assert (table, line) in there, line
        for name_ in ("filter", "mangle", "nat"):
            tables.run("-t", name_, "-F")
            tables.run("-t", name_, "-X")
        first.send(tables)
        assert saved(tables) == there


def saved(tables: Real) -> set[tuple[str, str]]:
    """What `iptables-save` prints: each line with its table, counters aside."""
    found, table = set(), ""
    for line in subprocess.run(
        [f"{tables.base}-save"], check=True, capture_output=True, text=True
    ).stdout.splitlines():
        table = line if line.startswith("*") else table
        if line[:1] != "#":
            found.add((table, line.partition(" [")[0] if line.startswith(":") else line))
    return found


@pytest.fixture
def at_home(inside: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The namespace has the addresses of the lab's node, and threads run at once, in the namespace of the test."""

    async def at_once(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return work(*args, **more)

    monkeypatch.setattr(asyncio, "to_thread", at_once)
    lines = [
        f"address add {address}/{128 if ':' in address else 32} dev lo{' nodad' if ':' in address else ''}"
        for addresses in LOCAL_ADDRESSES.values()
        for address in addresses
        if address not in {"127.0.0.1", "::1"}
    ]
    netns.finish(netns.ip_batch(*lines, namespace=inside))
    return inside


def listening() -> set[str]:
    """The columns of `ss` that drivers print: protocol, state, and the local address and port."""
    text = subprocess.run(["ss", "-Hltun"], check=True, capture_output=True, text=True).stdout
    return {f"{line.split()[0]} {line.split()[1]} {line.split()[4]}" for line in text.splitlines()}


@pytest.mark.parametrize("mode", ["userspace", "userspace-listen"])
@pytest.mark.parametrize("name", cases.NAMES)
def test_userspace(at_home: str, name: str, mode: str) -> None:
    world = World.of_case(name, "userspace")
    for family in FAMILIES:
        here = list(LOCAL_ADDRESSES[family])
        cidrs = tuple(cidr for cidr in world.hub.service_cidrs if (":" in cidr) == (family == "IPv6"))
        node = replace(world.nodes[family], service_cidrs=cidrs)
        plans = {plan.key: plan for plan in world.plans(family)}
        relay = FakeRelay()
        driver: Localhost | Listening = Listening(relay, lambda here=here: here)  # type: ignore[misc]
        if mode == "userspace":
            led = Led(NFTablesDriver(NftKernel(MACHINE), node), relay, lambda _, here=here: here[1])  # type: ignore[misc]
            driver = Localhost(led, relay, shared=True)
        first = driver.difference(asyncio.run(driver.read()), node, plans)
        assert not asyncio.run(driver.load(node, plans))
        held = asyncio.run(driver.read())
        opened = {line for line in first.lines() if line.startswith("open ")}
        sockets = [line for line in held.lines() if line.startswith(("tcp ", "udp "))]
        assert len(opened) == len(sockets)
        assert driver.difference(held, node, plans).lines() == []
        assert held == asyncio.run(driver.read())
        assert {line for line in sockets if " -> " not in line} == listening()
        rules = printed(family) if mode == "userspace" else set()
        for plan in plans.values():
            for line in driver.describe(node, plan):
                wanted = line.partition(" { ")[0] if line.startswith(("add set ", "add map ")) else line
                assert wanted in rules or line in sockets, line
        asyncio.run(driver.close())
        assert listening() == set()
