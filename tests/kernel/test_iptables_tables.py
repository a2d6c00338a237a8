"""The iptables backend over real tables, of both variants of the programs, in a bare namespace."""

import copy
import fcntl
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from kubeproxy.api import types
from kubeproxy.api.addresses import FAMILIES, IPV4, IPV6, Family
from kubeproxy.backends import programs
from kubeproxy.backends.base import StaleError, SyncError
from kubeproxy.backends.iptables import batches, cleanup, names, prepare
from kubeproxy.backends.iptables import driver as drivers
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.iptables.mode import MODE
from kubeproxy.backends.iptables.probability import probability
from kubeproxy.backends.programs import InputRefusedError, Variant
from kubeproxy.linux import run
from kubeproxy.model.node import LocalTraffic
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.netlink import nfacct
from tests import strategies
from tests.fakes.cluster import NODE, NODE6, Proxy, endpoints, service
from tests.kernel.spaces import VARIANTS, Real, Space, use_variant
from tests.lab import kernel, netns
from tests.machines import MACHINE
from tests.unit.backends.iptables.rig import Rig, Rules, rich, rules

both = pytest.mark.parametrize("variant", VARIANTS)
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def inside(space: str) -> Iterator[str]:
    """The test, and all it starts, runs in the namespace."""
    with netns.inside(space):
        yield space


class Twins(Real):
    """Real tables and those in memory, side by side."""

    def __init__(self, family: Family, variant: Variant) -> None:
        super().__init__(family, variant)
        self.fake = self.copy()

    def restore(self, table: str, lines: Iterable[str]) -> None:
        """See `Tables`."""
        given = list(lines)
        super().restore(table, given)
        self.fake.restore(table, given)

    def check(self) -> None:
        """Both hold the same."""
        assert self.rules() == self.fake.tables


@both
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.one_of(strategies.histories(5), strategies.contests(5)), data=st.data())
def test_whatever_was_there_the_kernel_ends_as_after_a_fresh_start(
    inside: str, variant: Variant, history: list[list[strategies.Event]], data: st.DataObject
) -> None:
    """Each example starts with what the one before left there; tables in memory hold the same after every input."""
    family = data.draw(st.sampled_from(FAMILIES))
    Space(inside, family, variant)
    tables = Twins(family, variant)
    node = data.draw(strategies.nodes(family, MODE.balancing))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drivers, "LARGE_CLUSTER_ENDPOINTS", 6)
        patch.setattr(batches, "NF_TABLES_LINES", 8)
        patch.setattr(batches, "NF_TABLES_FIRST_LINES", 20)
        proxy = Proxy(IPTablesDriver(tables, counters=True, drop_invalid=True), node)
        for number, batch in enumerate(history):
            for event in batch:
                proxy.hear(event)
            assert not (proxy.sync() if number else proxy.full())
            tables.check()
        firewall = ("filter", names.KUBELET_FIREWALL)  # it is the kubelet's, too: what is there stays
        assert rules(tables.copy()) | {firewall: []} == fresh(proxy) | {firewall: []}
        tables.inputs.clear()
        again = Proxy(IPTablesDriver(tables, counters=True, drop_invalid=True), node)
        again.state = proxy.state
        assert not again.full()
        assert not any(lines for _, lines in tables.inputs)


@both
@each_family
def test_a_restart_over_what_is_right_sends_nothing_and_counters_go_on(
    inside: str, variant: Variant, family: Family
) -> None:
    space = Space(inside, family, variant)
    proxy = space.proxy()
    proxy.tell(*rich())
    assert not proxy.full()
    subprocess.run(
        ["ip", "-6" if family == IPV6 else "-4", "route", "add", "default", "dev", "lo"], check=True
    )
    ip, kind = ("10.96.0.1", socket.AF_INET) if family == IPV4 else ("fd00:10:96::1", socket.AF_INET6)
    for _ in range(20):
        with socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect_ex((ip, 80))
    counted = space.tables.counted()
    assert any("KUBE-SEP" in line and not line.startswith("[0:0]") for line in counted.splitlines())
    again = space.proxy()
    again.state = proxy.state
    assert not again.full()
    assert space.tables.inputs == []
    assert again.intact()
    assert space.tables.counted() == counted


@both
def test_counters_of_other_services_survive_a_change(inside: str, variant: Variant) -> None:
    space = Space(inside, IPV4, variant)
    proxy = space.proxy()
    proxy.tell(*rich(), service("web", "10.96.0.10"), endpoints("web", "10.244.1.1", "10.244.1.2"))
    proxy.full()
    subprocess.run(["ip", "route", "add", "default", "dev", "lo"], check=True)
    for _ in range(20):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect_ex(("10.96.0.1", 80))
    before = [line for line in space.tables.counted().splitlines() if "default/plain" in line]
    proxy.tell(endpoints("web", "10.244.1.2"))
    proxy.partial()
    assert [line for line in space.tables.counted().splitlines() if "default/plain" in line] == before
    assert any(not line.startswith("[0:0]") for line in before)


@both
@each_family
def test_the_cluster_may_be_everything(inside: str, variant: Variant, family: Family) -> None:
    """clusterCIDR 0.0.0.0/0: everybody is a local Pod."""
    space = Space(inside, family, variant)
    everything = LocalTraffic("range", "0.0.0.0/0" if family == IPV4 else "::/0")
    space.node = structs.replace(space.node, local_traffic=everything)
    proxy = space.proxy()
    proxy.tell(*rich())
    assert not proxy.full()
    assert rules(space.tables.copy()) == fresh(proxy)


@both
def test_probabilities_are_printed_as_we_spell_them(inside: str, variant: Variant) -> None:
    space = Space(inside, IPV4, variant)
    counts = [*range(2, 600), 1000, 4999, 5000, 9999, 10_000, 65_535, 99_999, 100_000, 100_001]
    weights = [
        (weight, whole) for whole in (7, 97, 1000, 4093) for weight in range(2, whole, 1 + whole // 40)
    ]
    parts = [(1, n) for n in counts] + weights
    given = [f"-A A -m statistic --mode random --probability {a / b:.10f} -j RETURN\n" for a, b in parts]
    space.tables.restore("nat", [":A - [0:0]\n", *given])
    printed = space.tables.rules()["nat"]["A"]
    ours = [f"-m statistic --mode random --probability {probability(b, a)} -j RETURN" for a, b in parts]
    assert printed == ours
    # what we spell is kept as it is: so a rule can be deleted by its words
    space.tables.restore("nat", [f"-D A {rule}\n" for rule in ours])
    assert space.tables.rules()["nat"]["A"] == []


@both
def test_what_is_sent_without_a_commit_is_not_there(inside: str, variant: Variant) -> None:
    space = Space(inside, IPV4, variant)

    def lines() -> Iterator[str]:
        yield "".join(f":A{i} - [0:0]\n" for i in range(20_000))
        raise LookupError("the rest")

    with pytest.raises(LookupError):
        space.tables.restore("nat", lines())
    assert "A1" not in space.tables.rules()["nat"]
    with pytest.raises(run.ProgramError):
        MACHINE.feed([f"{space.tables.base}-restore", "--noflush"], [b"*nat\n:A1 - [0:0]\n"])
    assert "A1" not in space.tables.rules()["nat"]


@both
@each_family
def test_an_input_that_is_refused_changes_nothing(inside: str, variant: Variant, family: Family) -> None:
    space = Space(inside, family, variant)
    proxy = space.proxy()
    proxy.tell(*rich())
    proxy.full()
    before = space.tables.rules()
    for lines, line in (
        (["-A KUBE-MARK-MASQ -p tcp\n", "-A KUBE-MARK-MASQ --no-such-option\n"], 2),
        ([":NEW - [0:0]\n", "-A NEW -p tcp -j NOSUCHCHAIN\n", "-A NEW -p udp\n"], 2),
        ([":NEW - [0:0]\n", "-D KUBE-MARK-MASQ -p tcp\n"], 2),
        ([":KUBE-MARK-MASQ - [0:0]\n", "-X KUBE-MARK-MASQ\n"], 0),
        (["-A KUBE-MARK-MASQ -m nfacct --nfacct-name nosuchcounter\n"], 0),
    ):
        with pytest.raises(InputRefusedError) as caught:
            space.tables.restore("nat", lines)
        assert caught.value.line == line or not line or "NOSUCHCHAIN" in str(caught.value), str(caught.value)
        assert space.tables.rules() == before


class Excessive(Proxy):
    """A proxy that plans an affinity which no program takes for some Services.

    Attributes:
        bad: their names.
    """

    bad: Sequence[str] = ()

    def plans(self) -> dict[Key, ServicePlan]:
        """See `Proxy`."""

        def spoil(plan: ServicePlan) -> ServicePlan:
            return structs.replace(
                plan, ports=tuple(structs.replace(port, affinity=1 << 40) for port in plan.ports)
            )

        return {key: spoil(plan) if key[1] in self.bad else plan for key, plan in super().plans().items()}


@both
def test_services_that_the_program_refuses_are_left_out(inside: str, variant: Variant) -> None:
    space = Space(inside, IPV4, variant)
    proxy = Excessive(space.proxy().backend, NODE)
    for i in range(40):
        proxy.tell(service(f"s{i}", f"10.96.1.{i}"), endpoints(f"s{i}", "10.244.1.1", "10.244.1.2"))
    proxy.bad = ["s3", "s17", "s39"]
    failures = proxy.full()
    assert sorted(failures) == [("default", "s17"), ("default", "s3"), ("default", "s39")]
    assert all("--seconds" in words for words in failures.values())
    assert rules(space.tables.copy()) == fresh(proxy, without=proxy.bad)
    proxy.bad = []
    assert not proxy.full()
    assert rules(space.tables.copy()) == fresh(proxy)


@both
def test_services_that_the_kernel_refuses_are_left_out(inside: str, variant: Variant) -> None:
    """A rule that counts into a counter somebody deleted: the program takes it, the kernel does not."""
    space = Space(inside, IPV4, variant)
    proxy = space.proxy()
    for i in range(30):
        proxy.tell(service(f"s{i}", f"10.96.1.{i}"), endpoints(f"s{i}", "10.244.1.1"))
    assert not proxy.full()
    kernel.flush_nfacct(inside)
    proxy.tell(
        service("n1", "10.96.2.1", ports=[types.ServicePort(80, node_port=30001)]),
        service("n2", "10.96.2.2", ports=[types.ServicePort(80, node_port=30002)]),
        endpoints("n1", "10.244.1.1"),
        endpoints("s7", "10.244.1.7"),
        endpoints("s8", "10.244.1.8"),
    )
    with pytest.raises(StaleError):
        proxy.partial()
    failures = proxy.full()
    assert list(failures) == [("default", "n1")], "n2 has no endpoint, so it has nothing to count"
    assert rules(space.tables.copy()) == fresh(proxy, without=["n1"])
    nfacct.ensure(MACHINE, names.LOCALHOST_COUNTER)
    assert not proxy.full()
    assert rules(space.tables.copy()) == fresh(proxy)


def fresh(proxy: Proxy, *, without: Sequence[str] = ()) -> Rules:
    """What a fresh start on tables in memory makes of what a proxy heard."""
    rig = Rig(node=proxy.node)
    rig.state = copy.copy(proxy.state)
    rig.state.services = {key: row for key, row in proxy.state.services.items() if key[1] not in without}
    assert not rig.full()
    return rig.rules()


FOREIGN = """
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT
-A OUTPUT -m comment --comment "say \\"-j KUBE-SERVICES\\" to all" -j RETURN
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
-A CNI-HOSTPORT-SETMARK -m mark --mark 0x2000/0x2000 -j RETURN
-A CNI-HOSTPORT-DNAT
COMMIT
*filter
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-FIREWALL - [0:0]
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A INPUT -j KUBE-FIREWALL
-A INPUT
-A FORWARD -i cni0 -j ACCEPT
COMMIT
*raw
-A PREROUTING -p udp -j NOTRACK
COMMIT
"""


@both
@each_family
def test_what_others_put_into_the_tables_stays(inside: str, variant: Variant, family: Family) -> None:
    space = Space(inside, family, variant)
    MACHINE.feed([f"{space.tables.base}-restore"], [FOREIGN.encode()])
    theirs = space.tables.lines()
    proxy = space.proxy()
    proxy.tell(*rich())
    assert not proxy.full()
    assert theirs <= space.tables.lines()
    space.tables.run("-t", "nat", "-A", "CNI-HOSTPORT-SETMARK", "-j", "KUBE-MARK-MASQ")
    for chain in (names.SERVICES, names.NODE_PORTS):
        space.tables.run("-t", "nat", "-I", chain)
    proxy.gone("Service", "balanced")
    proxy.partial()
    assert not proxy.intact(), "there are rules of somebody in our chains"
    assert not proxy.full()
    assert proxy.intact()
    again = space.proxy()
    again.state = proxy.state
    assert not again.full()
    assert space.tables.inputs == []
    assert theirs <= space.tables.lines()
    for _ in range(2):
        cleanup.clean(space.tables)
        left = space.tables.lines()
        assert theirs <= left
        assert sorted(line for line in left if "KUBE-" in line and line not in theirs) == [
            "-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ",
            *(
                [
                    '-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP'
                ]
                if family == IPV4
                else []
            ),
            "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
            "-A OUTPUT -j KUBE-FIREWALL",
            ":KUBE-MARK-MASQ - [0:0]",
        ]


@both
def test_a_stale_chain_that_others_use_stays(inside: str, variant: Variant) -> None:
    space = Space(inside, IPV4, variant)
    proxy = space.proxy()
    proxy.tell(*rich())
    proxy.full()
    chain = next(c for c in space.tables.rules()["nat"] if c.startswith("KUBE-EXT-"))
    space.tables.run("-t", "nat", "-A", "OUTPUT", "-d", "10.9.9.9", "-j", chain)
    other = space.proxy()
    other.tell(service("web", "10.96.0.10"), endpoints("web", "10.244.1.1"))
    assert not other.full()
    held = rules(space.tables.copy())
    assert ("nat", chain) in held
    assert not [where for where in held if where[1].startswith("KUBE-FW-")]
    space.tables.run("-t", "nat", "-D", "OUTPUT", "-d", "10.9.9.9", "-j", chain)
    assert not other.full()
    assert rules(space.tables.copy()) == fresh(other)


@both
def test_what_somebody_changes_is_noticed_and_mended(inside: str, variant: Variant) -> None:
    spaces = [Space(inside, family, variant) for family in FAMILIES]
    proxies = [space.proxy() for space in spaces]
    for proxy in proxies:
        proxy.tell(*rich())
        assert not proxy.full()
    (mine, other), tables = proxies, spaces[0].tables
    assert mine.intact(), "the other family's rules are no news"
    other.tell(service("web", "fd00:10:96::10"), endpoints("web", "fd00:10:244:1::b"))
    other.partial()
    assert mine.intact()
    assert other.intact()
    whole = fresh(mine)
    for harm in (
        [tables.base, "-t", "nat", "-F", names.SERVICES],
        [tables.base, "-t", "nat", "-D", "PREROUTING", "1"],
        [tables.base, "-F", names.FORWARD],
        [tables.base, "-t", "mangle", "-X", names.CANARY],
        [tables.base, "-t", "nat", "-F"],
    ):
        subprocess.run(harm, check=True, capture_output=True)
        assert not mine.intact(), harm
        mine.full()
        assert rules(tables.copy()) == whole, harm
        assert mine.intact()
    if variant == "nf_tables":
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        assert not mine.intact()
        assert not other.intact()
        mine.full()
        other.full()
        assert rules(tables.copy()) == whole


@both
def test_nothing_can_be_sent_while_somebody_holds_the_lock(
    inside: str, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The legacy programs lock a file, those of nf_tables need none."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    monkeypatch.setattr(programs, "_LOCK_SECONDS", 1)
    space = Space(inside, IPV4, variant)
    proxy = space.proxy()
    proxy.tell(*rich())
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if variant == "legacy":
            with pytest.raises(SyncError, match="lock"):
                proxy.full()
            assert "KUBE-SERVICES" not in space.tables.rules()["nat"]
        else:
            assert not proxy.full()
    assert not proxy.full()
    assert rules(space.tables.copy()) == fresh(proxy)


@pytest.mark.parametrize("program", ["iptables", "ip6tables"])
def test_both_variants_are_cleaned_up(inside: str, program: str) -> None:
    family: Family = IPV4 if program == "iptables" else IPV6
    spaces = [Space(inside, family, variant) for variant in VARIANTS]
    for space in spaces:
        proxy = space.proxy()
        proxy.tell(*rich())
        assert not proxy.full()
    cleanup.cleanup(MACHINE)
    for space in spaces:
        left = {line for line in space.tables.lines() if "KUBE-" in line}
        assert left <= {line for line in left if names.KUBELET_FIREWALL in line}
        before = space.tables.counted()
        cleanup.cleanup(MACHINE)
        assert space.tables.counted() == before


@each_family
@pytest.mark.parametrize("kubelet", VARIANTS)
def test_of_two_variants_the_kubelet_s_is_found(inside: str, kubelet: Variant, family: Family) -> None:
    """Looking leaves nothing behind: not even an empty legacy table, of which every later program would warn."""
    programs.find(MACHINE, family)
    names_of_legacy = Path(f"/proc/thread-self/net/ip{'6' if family == IPV6 else ''}_tables_names")
    assert "mangle" not in names_of_legacy.read_text()
    Real(family, kubelet).run("-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    assert programs.find(MACHINE, family).variant == kubelet
    assert ("mangle" in names_of_legacy.read_text()) == (kubelet == "legacy")


@both
@each_family
def test_the_mode_finds_all_it_needs_here(
    inside: str, variant: Variant, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters, the right programs, the settings: and nothing is left of finding out."""
    node = NODE if family == IPV4 else NODE6
    tables = Real(family, variant)
    with monkeypatch.context() as path:
        use_variant(path, tmp_path, variant)
        backend = prepare.open_driver(MACHINE, node)
    assert not any("KUBE" in line for line in tables.save())
    with monkeypatch.context() as path:
        use_variant(path, tmp_path, variant)
        proxy = Proxy(backend, node)
        proxy.tell(*rich())
        assert not proxy.full()
    assert rules(tables.copy()) == fresh(proxy)
    assert nfacct.packets(MACHINE, names.INVALID_COUNTER) == 0
    other = Real(family, "legacy" if variant == "nf_tables" else "nf_tables")
    assert not any("KUBE" in line for line in other.save())
    assert Path("/proc/sys/net/ipv4/conf/all/route_localnet").read_text() == f"{int(family == IPV4)}\n"
