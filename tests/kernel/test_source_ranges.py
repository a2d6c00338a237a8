"""Which clients reach a load balancer address, by the source ranges of its Service: with packets, in the modes that have rules."""

import contextlib
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.netlink.nft.kernel import NftKernel
from tests.fakes.cluster import Proxy, endpoints, service
from tests.kernel.daemons import Station, ask, until
from tests.lab import netns
from tests.lab.topology import EP11, EP11_6, NODE_NAME, Lab
from tests.machines import MACHINE
from tests.unit.backends.nftables.rig import NODES, content

BALANCER, BALANCER6 = "203.0.113.5", "2001:db8:203::5"
CLIENTS = {
    ("out", BALANCER): "198.51.100.7",
    ("client", BALANCER): "10.244.1.100",
    ("node", BALANCER): "192.0.2.1",
    ("out", BALANCER6): "2001:db8:198::7",
    ("client", BALANCER6): "fd00:10:244:1::64",
}
LISTS: Sequence[tuple[str, ...]] = (
    ("198.51.100.0/24", "2001:db8:198::/48"),
    ("198.51.100.0/24", "198.51.100.7/32", "198.51.0.0/16", "198.51.100.0/24", "2001:db8::/32"),  # nested, twice
    ("198.51.100.0/30", "198.51.100.4/30", "198.51.100.8/30", "fd00:10:244:1::/120"),  # adjacent
    ("198.51.100.0/30", "198.51.100.8/30", "10.244.0.0/16", "fd00:10:244::/48"),  # a gap
    ("10.0.0.0/8", "192.0.2.0/24", "2001:db8:198::7/128", "2001:db8:198::/64"),
    ("10.0.0.0/9", "10.128.0.0/9", "::/0"),
    ("0.0.0.0/1", "10.244.1.100/32", "2001:db8:199::/48"),
    ("0.0.0.0/0", "10.1.0.0/16", "2001:db8:198::6/127"),
    ("203.0.113.0/24",),  # no range of IPv6: open to all
    tuple(f"198.{i >> 8}.{i & 255}.0/24" for i in range(2, 1500)),
)  # fmt: skip


def admitted(client: str, ranges: Sequence[str]) -> bool:
    """Whether a client may use the address; without ranges of its family, or with all of it, everybody may."""
    address = ip_address(client)
    mine = [net for net in map(ip_network, ranges) if net.version == address.version]
    return not mine or any(not net.prefixlen or address in net for net in mine)


@pytest.mark.parametrize("mode", ["nftables", "userspace", "iptables"])
def test_ranges_admit_who_is_in_them_and_nobody_else(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Lists follow one another, in a running daemon and from one run to the next."""
    station = Station(lab, tmp_path, mode=mode)
    station.folder.put(endpoints("web", EP11), endpoints("web", EP11_6, name="web-6"))

    def put(ranges: Sequence[str]) -> None:
        station.folder.put(
            service(
                "web",
                "10.96.0.10",
                "fd00:10:96::a",
                type="LoadBalancer",
                balancer=[BALANCER, BALANCER6],
                load_balancer_source_ranges=tuple(ranges),
            )
        )

    def check(ranges: Sequence[str]) -> None:
        wanted = {front: admitted(client, ranges) for front, client in CLIENTS.items()}

        def is_right() -> bool:
            found = {front: ask(lab, *front, patience=0.4) for front in CLIENTS}
            return all(
                (found[front] in {EP11, EP11_6}) == let_in for front, let_in in wanted.items()
            ) and all(found[front] == "TimeoutError" for front, let_in in wanted.items() if not let_in)

        until(is_right, f"{ranges[:8]}: {wanted}")

    put(LISTS[0])
    with station.running() as daemon:
        for ranges in LISTS:
            put(ranges)
            check(ranges)
        assert "rules refused" not in daemon.log()
    for ranges in LISTS[:7]:
        put(ranges)
        with station.running() as daemon:
            check(ranges)
            assert "rules refused" not in daemon.log()


@pytest.mark.parametrize(
    ("mode", "stranger"), [("nftables", "TimeoutError"), ("userspace", "TimeoutError"), ("iptables", "ConnectionRefusedError")]
)  # fmt: skip
def test_without_endpoints_ranges_come_first_in_nftables_mode(
    lab: Lab, tmp_path: Path, mode: str, stranger: str
) -> None:
    """As in the reference: there, the firewall map is looked at before the map of fronts without endpoints."""
    station = Station(lab, tmp_path, mode=mode)
    ranges = ("198.51.100.0/24",)
    station.folder.put(
        service("web", "10.96.0.10", type="LoadBalancer", balancer=[BALANCER], load_balancer_source_ranges=ranges)
    )  # fmt: skip
    with station.running():
        assert ask(lab, "out", BALANCER) == "ConnectionRefusedError"
        assert ask(lab, "client", BALANCER, patience=1.5) == stranger


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_full_sync_replaces_ranges_that_overlap(space: str, ipv6: bool) -> None:
    """The kernel refuses an interval that overlaps another one: the old one has to go in the same transaction."""
    node = NODES[ipv6]
    lists = (
        ("10.0.0.0/8", "2001:db8::/32"),
        ("10.0.0.0/9", "2001:db8::/33"),
        ("10.0.0.0/8", "2001:db8::/32"),
        ("10.0.0.0/9", "10.128.0.0/9", "2001:db8::/33", "2001:db8:8000::/33"),
        ("0.0.0.0/1", "2000::/3"),
        ("10.0.0.0/10", "10.1.0.0/16", "2001:db8:8000::/34"),
    )
    with netns.inside(space), NftKernel(MACHINE) as kernel:
        for ranges in lists:
            proxy = Proxy(NFTablesDriver(kernel, node), node)
            proxy.tell(
                service("web", "10.96.0.10", "fd00:10:96::a", type="LoadBalancer", balancer=[BALANCER, BALANCER6], load_balancer_source_ranges=ranges),
                endpoints("web", EP11),
                endpoints("web", EP11_6, name="web-6"),
            )  # fmt: skip
            assert not proxy.full()
            found = content(kernel, node.family)["elements", "firewall-sources"]
            assert len(found) == 2 if len(ranges) == 4 else 1


EXTERNAL, EXTERNAL6, NODE_PORT = "203.0.113.6", "2001:db8:203::6", 30080
OUTSIDE = {
    ("out", EXTERNAL, 80): "198.51.100.7",
    ("client", EXTERNAL, 80): "10.244.1.100",
    ("out", EXTERNAL6, 80): "2001:db8:198::7",
    ("out", "192.0.2.1", NODE_PORT): "198.51.100.7",
    ("client", "192.0.2.1", NODE_PORT): "10.244.1.100",
    ("out", "2001:db8:2::1", NODE_PORT): "2001:db8:198::7",
    ("client", "2001:db8:2::1", NODE_PORT): "fd00:10:244:1::64",
}
RULES: Sequence[tuple[tuple[str, ...], tuple[str, ...]]] = (
    (("198.51.100.0/24", "2001:db8:198::/48"), ()),
    ((), ("198.51.100.7/32", "fd00:10:244:1::/64")),
    (("198.51.0.0/16", "10.244.0.0/16"), ("10.244.1.0/25",)),
    ((), ("0.0.0.0/0", "::/0")),
    ((), ()),
)


@pytest.mark.parametrize(
    ("mode", "addresses"),
    [
        ("nftables", ["primary"]),
        ("nftables", ["all"]),
        ("userspace", ["all"]),
        ("iptables", ["all"]),
        pytest.param("ipvs", ["0.0.0.0/0", "::/0"], marks=pytest.mark.vm),
    ],
)
def test_allowed_and_denied_sources(lab: Lab, tmp_path: Path, mode: str, addresses: list[str]) -> None:
    """By annotations, for node ports, external IPs and, of those denied, load balancer IPs."""
    station = Station(lab, tmp_path, mode=mode, nodePortAddresses=addresses)
    node6 = (types.NodeAddress("InternalIP", "192.0.2.1"), types.NodeAddress("InternalIP", "2001:db8:2::1"))
    station.folder.put(
        endpoints("web", EP11),
        endpoints("web", EP11_6, name="web-6"),
        types.Node(types.ObjectMeta(name=NODE_NAME), status=types.NodeStatus(node6)),
    )
    with contextlib.ExitStack() as stack:
        for number, (allowed, denied) in enumerate(RULES[2:3] if mode == "ipvs" else RULES):
            web = service(
                "web",
                "10.96.0.10",
                "fd00:10:96::a",
                type="LoadBalancer",
                balancer=[BALANCER],
                external_ips=(EXTERNAL, EXTERNAL6),
                ports=[types.ServicePort(80, node_port=NODE_PORT)],
            )
            annotations = types.Annotations(
                allowed_sources=", ".join(allowed) or None, denied_sources=" ".join(denied) or None
            )
            station.folder.put(replace(web, metadata=replace(web.metadata, annotations=annotations)))
            if number == 0:
                stack.enter_context(station.running())

            def let_in(client: str, allowed: Sequence[str] = allowed, denied: Sequence[str] = denied) -> bool:
                return admitted(client, allowed) and not any(
                    ip_address(client) in ip_network(each) for each in denied
                )

            wanted = {front: let_in(client) for front, client in OUTSIDE.items()}
            wanted["out", BALANCER, 80] = let_in("198.51.100.7", ())
            wanted["client", "10.96.0.10", 80] = True
            wanted["node", "192.0.2.1", NODE_PORT] = let_in("192.0.2.1")
            wanted["node", EXTERNAL, 80] = let_in("192.0.2.1")  # from the external IP itself in ipvs mode

            def is_right(wanted: dict[tuple[str, str, int], bool] = wanted) -> bool:
                found = {front: ask(lab, *front, patience=0.4) for front in wanted}
                return all(
                    found[front] in {EP11, EP11_6} if right else found[front] not in {EP11, EP11_6}
                    for front, right in wanted.items()
                )

            until(is_right, f"{allowed} {denied}")
