"""The rules recorded of the reference, evaluated, do what the plans say, packet by packet."""

import re
from collections.abc import Collection, Iterator

import pytest
from msgspec.structs import replace

from kubeproxy.api.addresses import FAMILIES, IPV4, Family, family_of, parse_address
from kubeproxy.insight.reference.compare import Comparison, compare
from kubeproxy.insight.reference.outcome import Outcome, of_verdict, same
from kubeproxy.insight.reference.route import Router, Server, Servers
from kubeproxy.insight.reference.rules import IptablesRules
from kubeproxy.model.manners import Manners
from kubeproxy.model.select import Endpoint
from kubeproxy.model.verdict import Packet, Verdict
from tests.fakes.manners import IPTABLES, NFTABLES, of
from tests.lab import cases, probe
from tests.lab.probe import Outcomes
from tests.scenarios.world import LOCAL_ADDRESSES, WAN, World, outcome

PROGRAMS = {"IPv4": "iptables", "IPv6": "ip6tables"}


def sections(mode: str, name: str) -> dict[str, list[str]]:
    """The recorded rules by the headings of their parts."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^# ", cases.rules(mode, name), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        found[title] = [line for line in body.splitlines() if line]
    return found


def saved(parts: dict[str, list[str]], family: Family) -> Iterator[str]:
    """As `iptables-save` prints them."""
    for title, lines in parts.items():
        program, _, table = title.partition(" ")
        if program == f"{PROGRAMS[family]}-save":
            yield f"*{table}"
            yield from (f"{line} [0:0]" if line.startswith(":") else line for line in lines)


def router(mode: str, name: str, family: Family) -> Router:
    parts = sections(mode, name)
    sets: dict[str, frozenset[tuple[str, ...]]] = {}
    for line in parts.get("ipset", ()):
        verb, of, rest = line.split(" ", 2)
        if verb == "create":
            sets.setdefault(of, frozenset())
        else:
            element = tuple(rest.split(" ")[0].split(","))
            sets[of] = sets.get(of, frozenset()) | {(parse_address(element[0]) if "." in element[0] or ":" in element[0] else element[0], *element[1:])}  # fmt: skip
    local = [*LOCAL_ADDRESSES[family], *(addresses(name) if mode == "ipvs" else ())]
    mine = {at: each for at, each in servers(parts.get("ipvsadm", ())).items() if family_of(at[1]) == family}
    return Router(IptablesRules(saved(parts, family), local, sets), local, mine)


def addresses(name: str) -> list[str]:
    """The addresses of kube-ipvs0."""
    lines = sections("ipvs", name).get("kube-ipvs0", ())
    return [parse_address(line.split()[1].partition("/")[0]) for line in lines]


def servers(lines: list[str] | tuple[()]) -> Servers:
    found: dict[tuple[str, str, int], Server] = {}
    for line in lines:
        words = line.split()
        key = ({"-t": "tcp", "-u": "udp"}.get(words[1], "sctp"), *at(words[2]))
        if words[0] == "-A":
            found[key] = Server((), int(words[words.index("-p") + 1]) if "-p" in words else 0)
        else:
            found[key] = replace(found[key], reals=(*found[key].reals, at(words[4])))
    return found


def at(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return parse_address(address.strip("[]")), int(port)


@pytest.mark.parametrize("name", cases.NAMES)
def test_iptables(name: str) -> None:
    expected = cases.expected("iptables", name)
    routers = {family: router("iptables", name, family) for family in FAMILIES}
    for _, _, sent, verdict in World.of_case(name, "iptables").verdicts(IPTABLES, expected):
        family = family_of(sent.destination)
        found, planned = routers[family].outcome(sent), of_verdict(sent, verdict)
        assert same(found, planned, sent, LOCAL_ADDRESSES[family]), f"{sent}: rules {found}, plan {planned}"


class Judged:
    """An outcome in the form of a verdict."""

    def __init__(self, found: Outcome, verdict: Verdict) -> None:
        (self.action,) = found.fates
        self.at_connect = False
        self.port = verdict.port
        self.endpoints = [Endpoint(*target) for target in found.targets]
        self._targets = found.targets

    def masquerades(self, _: Packet, backend: Endpoint) -> bool:
        return self._targets[backend.address, backend.port][1]


IN_IPVS = [name for name in cases.NAMES if (cases.ORACLE / f"expected/ipvs/{name}.rules").exists()]

UNSEEN = [
    ("EPERM", "no answer"),  # what is dropped after IPVS has handled it is not reported to the sender
    ("no answer", "ECONNREFUSED"),  # over IPv6 a rejection may be reported within the recorded time
]
"""Outcomes by the rules, and what was recorded of the same packet."""


@pytest.mark.parametrize(
    "name", [name for name in cases.NAMES if (cases.ORACLE / f"expected/ipvs/{name}.rules").exists()]
)
def test_ipvs(name: str) -> None:
    expected = cases.expected("ipvs", name)
    routers = {family: router("ipvs", name, family) for family in FAMILIES}
    judged: Outcomes = {client: {} for client in expected}
    for client, front, sent, verdict in World.of_case(name, "ipvs").verdicts(NFTABLES, expected):
        if client == "node" and sent.destination in addresses(name):
            sent = replace(sent, source=sent.destination)  # noqa: PLW2901 the address is the node's own
        found = routers[family_of(sent.destination)].outcome(sent)
        seen = outcome(client, sent, Judged(found, verdict))  # type: ignore[arg-type]
        recorded = expected[client][front]
        judged[client][front] = recorded if (seen, recorded) in UNSEEN else seen
    assert judged == expected, probe.differences(expected, judged)


def compared(
    router_: Router, world: World, family: Family, manners: Manners, bound: Collection[str] = ()
) -> Comparison:
    return compare(
        router_, world.plans(family), world.book(family, manners), world.nodes[family], LOCAL_ADDRESSES[family],
        named=router_.named(), own_source=WAN[family], bound=bound,
    )  # fmt: skip


@pytest.mark.parametrize("name", cases.NAMES)
def test_all_kinds_of_packets(name: str) -> None:
    world = World.of_case(name, "iptables")
    for family in FAMILIES:
        found = compared(router("iptables", name, family), world, family, IPTABLES)
        assert found.kinds > 0 or not world.plans(family)
        assert [str(each) for each in found.differences] == []
        assert found.unknown == ()


@pytest.mark.parametrize("name", IN_IPVS)
def test_all_kinds_of_packets_in_ipvs_mode(name: str) -> None:
    world = World.of_case(name, "ipvs")
    for family in FAMILIES:
        found = compared(router("ipvs", name, family), world, family, of("ipvs"), addresses(name))
        assert [str(each) for each in found.differences] == []
        assert found.unknown == ()


REDUNDANT = re.compile(
    r"-A KUBE-FW-\w+ -m comment --comment \"[^\"]*\"$"  # it only says something
    r"|KUBE-FIREWALL|--ctstate (INVALID|RELATED)|localhost_nps_accepted_pkts"  # the kubelet's, other packets, a counter
    r"|-A (FORWARD|OUTPUT|INPUT) .*-j KUBE-(SERVICES|EXTERNAL-SERVICES|FORWARD|NODEPORTS|PROXY-FIREWALL)$"  # not all cases use it
    r"|-A KUBE-SEP-\w+ -s 10\.244\.2\."  # endpoints on other nodes: their packets do not pass this node
    r"|health check node port|--set-xmark 0x4000/0x0|-A KUBE-FORWARD "  # no front; matters to other rules
)
"""IptablesRules that, missing, change nothing for the first packet of a connection to a front of the case."""


@pytest.mark.parametrize("name", ["everything", "loadbalancer-source-ranges-local", "nodeport-local", "affinity-timeout-nodeport"])  # fmt: skip
def test_each_missing_rule_is_noticed(name: str) -> None:
    world, family = World.of_case(name, "iptables"), IPV4
    lines = list(saved(sections("iptables", name), family))
    local = LOCAL_ADDRESSES[family]
    unnoticed = []
    for at, line in enumerate(lines):
        if line.startswith("-A") and not REDUNDANT.search(line):
            without = [*lines[:at], *lines[at + 1 :]]
            if not compared(
                Router(IptablesRules(without, local), local), world, family, IPTABLES
            ).differences:
                unnoticed.append(line)
    assert unnoticed == []
