"""Steers packets for many addresses and ports to one socket of each protocol: a program for sk_lookup.

The kernel runs the program when it looks for the socket that listens at the destination of a packet. It finds
destinations in a hash map, and sockets in another map. A socket leaves the second map when it is closed
everywhere. Then, and if there is no such destination, the kernel looks for a socket as without the program.

Nothing is pinned: without sockets there is nothing to steer to, so the program ends with the process that has
them. Several programs may be attached to a network namespace; the first that finds a socket decides.

Source: struct bpf_sk_lookup, linux/bpf.h; Documentation/bpf/prog_sk_lookup.rst. Linux 5.9 and newer.
"""

import os
import socket
import struct
from typing import Final

from kubeproxy.linux.bpf import pins, programs, syscall
from kubeproxy.linux.bpf.assembler import FP, R0, R1, R2, R3, R6, R7, Assembled, Assembler, Helper
from kubeproxy.linux.bpf.btf import Layout, integer
from kubeproxy.linux.bpf.host import BpfHost
from kubeproxy.linux.bpf.maps import BpfObject, HashMap, MapSpec

NAME: Final = "kp_localhost"
PORTS: Final = "kp_localports"
SOCKETS: Final = "kp_localsocks"

MOST: Final = 8192
"""How many destinations there may be."""

TCP, UDP = 0, 1
"""Where a socket is in its map."""

_SOURCE: Final = "kubeproxy/linux/bpf/steer.py"
_FAMILY, _PROTOCOL, _LOCAL4, _LOCAL6, _LOCAL_PORT = 8, 12, 40, 44, 60
"""Offsets of fields of struct bpf_sk_lookup."""

_KEY, _INDEX = -24, -32


def program(domain: socket.AddressFamily) -> Assembled:
    """The program for an IP family."""
    words = (_LOCAL4,) if domain == socket.AF_INET else tuple(range(_LOCAL6, _LOCAL_PORT, 4))
    a = Assembler(f"{NAME}{4 if domain == socket.AF_INET else 6}")
    a.c("int program(struct bpf_sk_lookup *ctx)").set(R6, R1)
    a.c(f"if (ctx->family != {domain.name}) return SK_PASS;")
    a.load(R1, R6, _FAMILY, 4).jump("!=", R1, domain, "pass")
    a.c("key = {ctx->local_ip, ctx->local_port, ctx->protocol};")
    for number, offset in enumerate(words):
        a.load(R1, R6, offset, 4).store(FP, _KEY + 4 * number, R1, 4)
    end = _KEY + 4 * len(words)
    a.load(R1, R6, _LOCAL_PORT, 4).store(FP, end, R1, 2)
    a.load(R1, R6, _PROTOCOL, 4).store(FP, end + 2, R1, 2)
    a.c("index = bpf_map_lookup_elem(&ports, &key); if (!index) return SK_PASS;")
    a.set(R2, FP).compute(R2, "+=", _KEY).map(R1, "ports").call(Helper.MAP_LOOKUP_ELEM)
    a.jump("==", R0, 0, "pass")
    a.c("sk = bpf_map_lookup_elem(&sockets, index); if (!sk) return SK_PASS;")
    a.load(R1, R0, 0, 4).store(FP, _INDEX, R1, 4)
    a.set(R2, FP).compute(R2, "+=", _INDEX).map(R1, "sockets").call(Helper.MAP_LOOKUP_ELEM)
    a.jump("==", R0, 0, "pass").set(R7, R0)
    a.c("bpf_sk_assign(ctx, sk, 0); bpf_sk_release(sk);")
    a.set(R1, R6).set(R2, R7).set(R3, 0).call(Helper.SK_ASSIGN)
    a.set(R1, R7).call(Helper.SK_RELEASE)
    return a.label("pass").c("return SK_PASS;").exit(1).assemble()


def ports(domain: socket.AddressFamily) -> MapSpec:
    """The map of destinations: address, port and protocol -> the index of a socket."""
    address = "__be32" if domain == socket.AF_INET else "__u8[16]"
    key = Layout("destination", (("address", address), ("port", "__u16"), ("protocol", "__u16")))
    return MapSpec(PORTS, "hash", key, integer("__u32"), MOST)


class Steering:
    """A program at work in a network namespace, for one IP family. Destinations are added and removed."""

    def __init__(self, host: BpfHost, domain: socket.AddressFamily) -> None:
        """Attaches it, without destinations.

        Args:
            host: the host, with the network namespace.
            domain: the IP family.

        Raises:
            OSError: the kernel has no sk_lookup, or rights are missing.
        """
        self._domain = domain
        self._ports = HashMap(ports(domain).create())
        self._sockets = BpfObject(MapSpec(SOCKETS, "sockmap", integer("__u32"), integer("__u64"), 2).create())
        descriptors = {"ports": self._ports.fd, "sockets": self._sockets.fd}
        self.program = BpfObject(programs.load(program(domain), "sk_lookup", descriptors, _SOURCE))
        namespace = host.open_namespace()
        try:
            self._link = pins.attach(self.program, namespace, "sk_lookup")
        finally:
            os.close(namespace)

    def use(self, sock: socket.socket) -> None:
        """Destinations of its protocol lead to this socket from now on; it listens, or is bound.

        Raises:
            OSError: the kernel refused.
        """
        index = UDP if sock.type == socket.SOCK_DGRAM else TCP
        syscall.update(self._sockets.fd, struct.pack("=I", index), struct.pack("=Q", sock.fileno()))

    def add(self, address: str, port: int, *, udp: bool) -> None:
        """Adds a destination.

        Raises:
            OSError: there are too many (E2BIG).
        """
        self._ports.put([(self._key(address, port, udp=udp), struct.pack("=I", UDP if udp else TCP))])

    def remove(self, address: str, port: int, *, udp: bool) -> None:
        """Removes a destination, if it is there."""
        self._ports.delete([self._key(address, port, udp=udp)])

    def close(self) -> None:
        """Ends the program."""
        for each in (self._link, self.program, self._ports, self._sockets):
            each.close()

    def _key(self, address: str, port: int, *, udp: bool) -> bytes:
        protocol = socket.IPPROTO_UDP if udp else socket.IPPROTO_TCP
        return socket.inet_pton(self._domain, address) + struct.pack("=HH", port, protocol)
