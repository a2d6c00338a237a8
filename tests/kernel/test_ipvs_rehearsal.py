"""What ipvs mode reads and describes, against what ipvsadm, ipset, ip and iptables print, for the cases of the oracle."""

import asyncio
import subprocess

import pytest

from kubeproxy.api.addresses import FAMILIES, Family
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.driver import IPVSDriver
from kubeproxy.backends.ipvs.kernel import LinuxIPVSKernel
from kubeproxy.netlink import route
from tests.kernel.spaces import Real
from tests.lab import cases, netns
from tests.machines import MACHINE
from tests.scenarios.world import World

pytestmark = pytest.mark.vm


def printed(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def there(tables: Real) -> set[str]:
    """What the programs print."""
    address, host = ("inet", "/32") if tables.family == "IPv4" else ("inet6", "/128")
    bound = {
        f"ip address add {word.partition('/')[0]}{host} dev {names.INTERFACE}"
        for line in printed("ip", "-o", "address", "show", "dev", names.INTERFACE)
        for kind, word in [line.split()[2:4]]
        if kind == address
    }
    return {
        *(line.rstrip() for line in printed("ipvsadm", "-Sn")),
        *printed("ipset", "save"),
        *bound,
        *(f"*{table}" for table in ("filter", "nat")),
        *printed(f"{tables.base}-save"),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_cases(space: str, family: Family) -> None:
    """In one namespace, one after the other: what was there before is part of the difference."""
    checked = 0
    with netns.inside(space):
        route.ensure_dummy(MACHINE, names.INTERFACE)
        tables = Real(family, "nf_tables")
        for name in cases.NAMES:
            world = World.of_case(name, "ipvs")
            node = world.nodes[family]
            plans = {plan.key: plan for plan in world.plans(family)}
            driver = IPVSDriver(LinuxIPVSKernel(MACHINE, family), tables, node)
            assert not asyncio.run(driver.load(node, plans))
            held = asyncio.run(driver.read())
            assert driver.difference(held, node, plans).lines() == [], name
            found = there(tables)
            for plan in plans.values():
                for line in driver.describe(node, plan):
                    assert line in found, (name, line)
                    checked += 1
            asyncio.run(driver.close())
    assert checked
