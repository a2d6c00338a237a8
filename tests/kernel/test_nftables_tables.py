"""nftables in a bare namespace: the real kernel, and stock nft as a second reader of what we write."""

import re
import subprocess
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import FAMILIES
from kubeproxy.backends.nftables import layout, packing
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.nftables.mode import MODE
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.model.node import LocalTraffic, NodeConfig
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft import text
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import NftMessage
from kubeproxy.relay import sockets
from tests import strategies
from tests.fakes.cluster import Proxy, annotated, endpoints, service
from tests.fakes.relay import FakeRelay
from tests.lab import netns
from tests.machines import MACHINE
from tests.unit.backends.iptables.rig import rich
from tests.unit.backends.nftables.rig import FAMILY, NODES, Content, content
from tests.unit.backends.test_relayed_properties import Ports

few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
NODE4, NODE6 = NODES
VARIED = (
    *NODES,
    structs.replace(NODE4, local_traffic=LocalTraffic("interface", "cni0"), node_port_ranges=("192.0.2.0/24",), node_port_addresses=("192.0.2.1",)),
    structs.replace(NODE4, local_traffic=LocalTraffic("prefix", "cali"), masquerade_all=True, masquerade_mark=1 << 3),
    structs.replace(NODE6, local_traffic=LocalTraffic("range", "fd00:10:244::1/128"), service_cidrs=("::/0",)),
    *(structs.replace(node, balancing=MODE.balancing) for node in NODES),
    structs.replace(NODE4, local_traffic=None, service_cidrs=("10.96.0.0/12", "10.112.0.0/12", "192.168.0.0/23", "0.0.0.0/8")),
)  # fmt: skip


@pytest.fixture
def inside(space: str) -> Iterator[str]:
    """The test, and all it starts, runs in the namespace."""
    with netns.inside(space):
        yield space


@pytest.fixture
def kernel(inside: str) -> Iterator[NftKernel]:
    """The namespace's nf_tables."""
    with NftKernel(MACHINE) as found:
        yield found


def nft(*arguments: str, given: str = "") -> str:
    """Runs stock nft."""
    done = subprocess.run(["nft", *arguments], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def listed(kernel: NftKernel, node: NodeConfig) -> Iterator[NftMessage]:
    """What the kernel lists of our table, as messages that would make it."""
    family = FAMILY[node.family]
    only = wire.text(1, "kube-proxy")
    for get, new in ((m.GETTABLE, m.NEWTABLE), (m.GETSET, m.NEWSET), (m.GETCHAIN, m.NEWCHAIN), (m.GETRULE, m.NEWRULE)):  # fmt: skip
        found = list(kernel.dump(get, family, only if get != m.GETTABLE else b""))
        for body in found:
            yield NftMessage(new, 0, family, bytes(body), "")
            if new == m.NEWSET:
                asked = only + wire.text(2, wire.string(wire.attributes(body)[2]))
                for elements in kernel.dump(m.GETSETELEM, family, asked):
                    if 3 in wire.attributes(elements):
                        yield NftMessage(m.NEWSETELEM, 0, family, bytes(elements), "")


def normal(listing: str) -> list[str]:
    """A listing without what says nothing: white space, the order of elements, sections and priorities' names."""
    for name, number in ("filter", "0"), ("dstnat - 10", "-110"), ("dstnat", "-100"), ("srcnat", "100"):
        listing = listing.replace(f"priority {name};", f"priority {number};")
    listing = re.sub(r"elements = \{(.*?)\}", _sorted, listing, flags=re.DOTALL)
    sections = re.split(r"^\t(?=set|map|chain)", listing, flags=re.MULTILINE)
    return sorted(" ".join(section.replace("\n}", "").split()) for section in sections)


def _sorted(found: re.Match[str]) -> str:
    return (
        f"elements = {{ {', '.join(sorted(' '.join(e.split()) for e in found[1].split(',') if e.strip()))} }}"
    )


def everything() -> Iterator[types.Service | types.EndpointSlice]:
    """Services of every kind, of many endpoints and of every protocol."""
    yield from rich()
    port = types.ServicePort
    yield service("many", "10.96.9.9", "fd00:10:96::99")
    yield endpoints("many", *(f"10.244.9.{i}" for i in range(1, 20)))
    yield endpoints("many", *(f"fd00:10:244:9::{i:x}" for i in range(1, 20)), name="many-6")
    yield service(
        "sctp", "10.96.9.10", "fd00:10:96::9a", ports=[port(9, "s", "SCTP")], session_affinity="ClientIP"
    )
    for name, number, annotations in (
        ("weights", 11, {"weights": "address:10.244.9.1=3 address:fd00:10:244:9::1=3"}),
        ("sticky", 12, {"weights": "address:10.244.9.1=3 address:fd00:10:244:9::1=3"}),
        ("maglev", 13, {"balancing": "maglev", "maglev_table_size": "251"}),
        (
            "maglev-port",
            14,
            {"balancing": "maglev", "maglev_hash": "source-and-port", "maglev_table_size": "251"},
        ),
    ):
        made = service(
            name,
            f"10.96.9.{number}",
            f"fd00:10:96::9:{number:x}",
            ports=[port(80, node_port=31000 + number)],
            session_affinity="ClientIP" if name == "sticky" else "None",
            external_traffic_policy="Local" if name != "weights" else "Cluster",
            type="NodePort",
        )
        yield annotated(made, **annotations)
        for base in ("10.244.9.", "fd00:10:244:9::"):
            them = [f"{base}{i}" for i in (1, 2, 3)]
            yield endpoints(name, *them, local=them[:2], name=f"{name}-{len(base)}")
    yield endpoints("sctp", "10.244.1.11", "fd00:10:244:1::b", port_name="s", protocol="SCTP")


@pytest.mark.parametrize("node", VARIED)
def test_nft_lists_what_we_render_and_reads_it_back(kernel: NftKernel, node: NodeConfig) -> None:
    proxy = Proxy(NFTablesDriver(kernel, node), node)
    proxy.tell(*everything())
    assert not proxy.full()
    table = ("table", "ip" if node.family == "IPv4" else "ip6", "kube-proxy")
    ours, theirs = text.render(listed(kernel, node)), nft("list", *table)
    assert normal(ours) == normal(theirs)
    nft("-j", "list", *table)
    written = content(kernel, node.family)
    for readable in (ours, theirs):
        nft("delete", *table)
        nft("-c", "-f", "-", given=readable)
        assert nft("list", "tables") == ""
        nft("-f", "-", given=readable)
        assert normal(nft("list", *table)) == normal(theirs)
        again = content(kernel, node.family)
        assert again.keys() == written.keys()
        for (kind, name), parts in written.items():
            # nft also says that what lies before the first interval is in none.
            if kind in {"elements", "chain"} and name != "service-cidrs":
                assert parts == again[kind, name]


@few
@given(
    history=st.one_of(strategies.histories(4), strategies.contests(4)),
    node=st.sampled_from(FAMILIES).flatmap(strategies.nodes),
)
def test_the_end_is_that_of_a_fresh_start(
    kernel: NftKernel, history: list[list[strategies.Event]], node: NodeConfig
) -> None:
    """Byte for byte, and nothing more is sent."""
    flush()
    proxy = Proxy(NFTablesDriver(kernel, node), node)
    assert not proxy.full()
    for batch in history:
        for event in batch:
            proxy.hear(event)
        assert not proxy.sync()
    found = content(kernel, node.family)
    generation = kernel.generation()
    assert not restarted(proxy, kernel).full()
    assert kernel.generation() == generation
    flush()
    assert not restarted(proxy, kernel).full()
    assert content(kernel, node.family) == found
    nft("list", "ruleset")


@few
@given(history=strategies.contests(4), node=st.sampled_from(FAMILIES).flatmap(strategies.nodes))
def test_the_end_is_that_of_a_fresh_start_in_userspace_mode(
    kernel: NftKernel, history: list[list[strategies.Event]], node: NodeConfig
) -> None:
    """But for the ports of the relay's own choice."""
    node = replace(node, counters=False)  # they would follow the port, which is the end of an element here
    flush()
    proxy = Proxy(Led(NFTablesDriver(kernel, node), FakeRelay(), lambda node: node.address), node)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sockets, "bind", Ports().bind)
        assert not proxy.full()
        for batch in history:
            for event in batch:
                proxy.hear(event)
            assert not proxy.sync()
        found = _without_ports(content(kernel, node.family))
        flush()
        other = Proxy(Led(NFTablesDriver(kernel, node), FakeRelay(), lambda node: node.address), node)
        other.state = proxy.state
        assert not other.full()
    assert _without_ports(content(kernel, node.family)) == found


def _without_ports(held: Content) -> Content:
    """The same without the ports of endpoints."""
    return {
        (kind, name): sorted(part[:-4] for part in parts)
        if kind == "elements" and layout.SLOTS.fullmatch(name)
        else parts
        for (kind, name), parts in held.items()
    }


class Spoiling(NftKernel):
    """The real kernel, told something wrong in the place of what names an unlucky Service."""

    def commit(self, messages: Sequence[NftMessage]) -> None:
        """See `NftKernel`."""
        wrong = m.add_elements(m.TableName(m.IP, "kube-proxy"), "cluster-ips", [packing.member(bytes(8))])[0]
        super().commit([wrong if b"default/bad" in message.body else message for message in messages])


@pytest.mark.parametrize("there", [False, True])
def test_whom_the_kernel_refuses_harms_nobody(inside: str, there: bool) -> None:
    """Neither on an empty kernel nor where others' tables are replaced in one go; once it is taken, all is as it should be."""
    proxies = []
    for kind in Spoiling, NftKernel:
        with kind(MACHINE) as found:
            if there:
                nft("-f", "-", given="add table ip kube-proxy; add chain ip kube-proxy services")
            proxy = Proxy(NFTablesDriver(found, NODE4), NODE4)
            proxy.tell(service("bad", "10.96.0.99", external_ips=("203.0.113.99",)))
            proxy.tell(endpoints("bad", "10.244.1.1", "10.244.1.2"), *everything())
            failures = proxy.full()
            assert failures.keys() == ({("default", "bad")} if kind is Spoiling else set())
            assert all("cluster-ips: Invalid argument" in words for words in failures.values())
            proxies.append((proxy, content(found, "IPv4")))
            if kind is Spoiling:
                flush()
    (spoiled, without), (_, whole) = proxies
    spoiled.gone("Service", "bad")
    with NftKernel(MACHINE) as kernel:
        assert not restarted(spoiled, kernel).full()
        rest = content(kernel, "IPv4")
    more = {name for _, name in without.keys() - rest.keys()}
    assert {part: without[part] for part in rest} == rest
    assert more == {"external-2", "pick-2"}, "made for whom was refused, they wait for the next full sync"
    assert whole != without


def restarted(proxy: Proxy, kernel: NftKernel) -> Proxy:
    """Another run that has heard the same."""
    other = Proxy(NFTablesDriver(kernel, proxy.node), proxy.node)
    other.state = proxy.state
    return other


def flush() -> None:
    """Deletes all tables."""
    nft("flush", "ruleset")
