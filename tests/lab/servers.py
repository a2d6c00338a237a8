"""The lab's backends: one process that answers in every answering namespace.

    python -m tests.lab.servers ROLE=NAMESPACE ...

A socket stays in the namespace it was opened in, so one process visits each namespace once, opens its sockets
there, and serves them all from one loop. The answer on TCP and UDP is "<address reached> <peer address seen>". UDP answers
leave from the address that was reached, which a backend with a whole prefix of addresses must take from the packet
(IP_PKTINFO, IPV6_PKTINFO). The end of standard input ends the process: it cannot outlive the lab.
"""

import contextlib
import selectors
import socket
import struct
import sys
from collections.abc import Callable

from tests.lab import netns

PORTS = (8080, 8081, 8082, 8443, 9090, 9153, 5353)
NODE_PORTS = (6443,)
IP_PKTINFO = 8  # <linux/in.h>
IPV6_RECVPKTINFO = 49  # <linux/in6.h>


def _open(family: socket.AddressFamily, kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.bind(("", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(4096)
    return sock


def _answer_tcp(listener: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, peer = listener.accept()
            with connection, contextlib.suppress(OSError):  # the client may be gone already
                connection.send(f"{connection.getsockname()[0]} {peer[0]}\n".encode())


def _answer_udp(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            _, ancillary, _, peer = sock.recvmsg(64, 64)
            level, kind, data = ancillary[0]
            if level == socket.IPPROTO_IP:
                reached = socket.inet_ntop(
                    socket.AF_INET, data[8:12]
                )  # struct in_pktinfo: ifindex, spec_dst, addr
                source = struct.pack("=i4s4s", 0, data[8:12], bytes(4))
            else:
                reached = socket.inet_ntop(socket.AF_INET6, data[:16])  # struct in6_pktinfo: addr, ifindex
                source = data[:16] + bytes(4)
            with contextlib.suppress(OSError):
                sock.sendmsg([f"{reached} {peer[0]}\n".encode()], [(level, kind, source)], 0, peer)


def main(arguments: list[str]) -> None:
    """Opens everything, says "ready" on standard output and serves."""
    serving: list[tuple[socket.socket, Callable[[socket.socket], None]]] = []
    for argument in arguments:
        role, _, namespace = argument.partition("=")
        with netns.inside(namespace):
            for port in NODE_PORTS if role == "node" else PORTS:
                for family in socket.AF_INET, socket.AF_INET6:
                    serving.append((_open(family, socket.SOCK_STREAM, port), _answer_tcp))
                    serving.append((_open(family, socket.SOCK_DGRAM, port), _answer_udp))
    with selectors.DefaultSelector() as selector:
        for sock, answer in serving:
            selector.register(sock, selectors.EVENT_READ, answer)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)


if __name__ == "__main__":
    main(sys.argv[1:])
