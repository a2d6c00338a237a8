"""PROXY protocol, version 2: sends the client's address to an endpoint.

Source: haproxy.org/download/2.6/doc/proxy-protocol.txt.
"""

import socket

from kubeproxy.relay.values import Target

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_PROXY = 0x21
_TCP4, _TCP6 = 0x11, 0x21


def header(client: Target, destination: Target) -> bytes:
    """The header of a TCP connection.

    Args:
        client: address and port of the client.
        destination: the address and port that the client connected to.
    """
    ipv6 = ":" in client[0]
    domain = socket.AF_INET6 if ipv6 else socket.AF_INET
    body = (
        socket.inet_pton(domain, client[0].partition("%")[0])
        + socket.inet_pton(domain, destination[0].partition("%")[0])
        + client[1].to_bytes(2)
        + destination[1].to_bytes(2)
    )
    return _SIGNATURE + bytes([_VERSION_PROXY, _TCP6 if ipv6 else _TCP4]) + len(body).to_bytes(2) + body
