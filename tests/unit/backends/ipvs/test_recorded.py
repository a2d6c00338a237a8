"""The oracle's cases without a kernel: rules, sets, virtual servers and addresses are the reference's, line for line."""

import re

import pytest

from kubeproxy.api.addresses import FAMILIES, IPV4
from kubeproxy.backends.fake_tables import BUILTIN
from kubeproxy.backends.programs import FILTER, NAT
from tests.lab import cases
from tests.lab.rules import UNORDERED
from tests.scenarios.world import World
from tests.unit.backends.ipvs import rig

NAMES = tuple(sorted(path.stem for path in (cases.ORACLE / "expected/ipvs").glob("*.rules")))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_the_kernel_is_what_the_reference_put_there(name: str) -> None:
    world = World.of_case(name, "ipvs")
    proxies = []
    for family in FAMILIES:
        proxy = rig.Rig(world.nodes[family])
        proxy.state = world.hub.state
        assert not proxy.full()
        proxies.append(proxy)
    recorded = _sections(cases.rules("ipvs", name))
    for proxy, program in zip(proxies, ("iptables", "ip6tables"), strict=True):
        for table in (NAT, FILTER):
            assert _rules(proxy, table) == recorded[f"{program}-save {table}"]
    assert sorted(line for p in proxies for line in rig.servers(p.kernel)) == sorted(recorded["ipvsadm"])
    assert sorted(line for p in proxies for line in rig.sets(p.kernel, p.node.family)) == recorded["ipset"]
    bound = [
        f"inet {a}/32" if p.node.family == IPV4 else f"inet6 {a}/128"
        for p in proxies
        for a in rig.addresses(p.kernel)
    ]
    assert sorted(bound) == recorded["kube-ipvs0"]


def _sections(text: str) -> dict[str, list[str]]:
    parts = re.split(r"^# (.*)\n", text, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {title: [line for line in body.splitlines() if line] for title, body in pairs}


def _rules(proxy: rig.Rig, table: str) -> list[str]:
    """A table in the oracle's words."""
    chains = proxy.tables.tables[table]
    declared = [f":{chain} {'ACCEPT' if chain in BUILTIN[table] else '-'}" for chain in chains]
    rules = []
    for chain, held in sorted(chains.items()):
        lines = [f"-A {chain} {rule}" for rule in held]
        rules += sorted(lines) if chain in UNORDERED else lines
    return [*sorted(declared), *rules]
