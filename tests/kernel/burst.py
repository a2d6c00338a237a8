"""Many clients in one namespace: raw packets with any source, and where the kernel sends them.

All addresses are routed to an interface whose other end takes no packet, because they are for none. Packets are made of bytes, so that a client
needs neither a socket nor an address; rules of the test, in a table of their own, count what endpoints get.
"""

import json
import socket
import struct
import subprocess
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, IPPROTO_RAW, IPPROTO_TCP, IPPROTO_UDP

from kubeproxy.api.addresses import unpack
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.netlink import conntrack
from tests.lab import netns

Client = tuple[str, int]
"""The address and port of a client."""

_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_ACK = 0x10
HOOK = "type filter hook postrouting priority 300"


def prepare(space: str) -> None:
    """Makes the interface, and lets connection tracking forget flows soon."""
    netns.finish(
        netns.ip_batch(
            "link add sink type veth peer name drain",
            "link set sink arp off up",
            "link set drain up",
            "address add 192.0.2.1/24 dev sink",
            "address add 2001:db8:2::1/64 dev sink nodad",
            "route add default dev sink",
            "route add ::/0 dev sink",
            namespace=space,
        )
    )


def clients(number: int, *, ipv6: bool = False) -> list[Client]:
    """So many clients, each with another address and another port."""
    base = int(ip_address("2001:db8:198::" if ipv6 else "198.18.0.0"))
    return [
        (str(ip_address(base + place * 7919 % (1 << 17))), 1024 + place * 31 % 64000)
        for place in range(number)
    ]


def send(space: str, sources: Iterable[Client], to: tuple[str, int], *, acks: bool = False) -> None:
    """Each client sends one UDP datagram, or with `acks` a segment of a TCP connection that began elsewhere."""
    address, port = to
    family = AF_INET6 if ":" in address else AF_INET
    protocol = IPPROTO_TCP if acks else IPPROTO_UDP
    destination = socket.inet_pton(family, address)
    with netns.inside(space):
        raw = socket.socket(family, socket.SOCK_RAW, IPPROTO_RAW)
    with raw:
        for source, source_port in sources:
            if acks:
                inner = struct.pack(">HHIIBBHHH", source_port, port, 1, 1, 5 << 4, _ACK, 512, 0, 0)
            else:
                inner = struct.pack(">HHHH", source_port, port, 8, 0)
            packed = socket.inet_pton(family, source)
            if family == AF_INET6:
                outer = _IPV6.pack(6 << 28, len(inner), protocol, 64, packed, destination)
            else:
                outer = _IPV4.pack(0x45, 0, 20 + len(inner), 0, 0, 64, protocol, 0, packed, destination)
            raw.sendto(outer + inner, (address, 0))


def reached(space: str, to: tuple[str, int], *, acks: bool = False) -> dict[Client, str]:
    """The endpoint of each client whose packet to a front was tracked."""
    family = AF_INET6 if ":" in to[0] else AF_INET
    place = socket.inet_pton(family, to[0]) + to[1].to_bytes(2)
    with netns.inside(space):
        listed = list(
            conntrack.flows(LinuxMachine(), family, IPPROTO_TCP if acks else IPPROTO_UDP, destination=place)
        )
    return {
        (unpack(flow.client[:-2]), int.from_bytes(flow.client[-2:])): unpack(flow.source[:-2])
        for flow in listed
        if flow.destination == place
    }


class Counting:
    """Counts the packets that leave for some addresses."""

    def __init__(self, space: str, addresses: Sequence[str]) -> None:
        self._space = space
        word = "ip6" if ":" in addresses[0] else "ip"
        rules = "\n".join(f"{word} daddr {address} counter" for address in addresses)
        self._table = f"{word} counting"
        self._nft("-f", "-", given=f"table {self._table} {{ chain out {{ {HOOK}; {rules}\n}}\n}}\n")

    def counts(self) -> dict[str, int]:
        """The packets so far, by address."""
        found = {}
        for each in json.loads(self._nft("-j", "list", "table", *self._table.split()))["nftables"]:
            if rule := each.get("rule"):
                match, counter = rule["expr"]
                found[match["match"]["right"]] = counter["counter"]["packets"]
        return found

    def _nft(self, *arguments: str, given: str = "") -> str:
        with netns.inside(self._space):
            done = subprocess.run(
                ["nft", *arguments], input=given, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stderr
        return done.stdout
