"""Addresses as Go reads them: IPs, CIDRs and host:port.

Kubernetes reads IPv4 octets with leading zeros (`010.1.1.1` is 10.1.1.1), which most libraries refuse by now, and a
configuration that worked must go on working. So these functions give canonical text, and the rest of the program
never sees the odd forms. Built on `socket`, which costs nothing more than the event loop already does.
"""

import re
import socket

_OCTET_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


def parse_ip(text: str) -> bytes | None:
    """Reads an IP address without zone; 4 or 16 bytes, an IPv4-mapped IPv6 address as its 4. None: it is none."""
    try:
        if ":" not in text:
            return socket.inet_pton(socket.AF_INET, _OCTET_ZEROS.sub("", text))
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    return packed[12:] if packed.startswith(b"\0" * 10 + b"\xff\xff") else packed


def format_ip(packed: bytes) -> str:
    """Writes 4 or 16 bytes as address."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def parse_cidr(text: str) -> str | None:
    """Reads a CIDR and gives its canonical text with the host bits cleared. None: it is none."""
    address, slash, length = text.partition("/")
    packed = parse_ip(address)
    if packed is None or not slash or not (length.isascii() and length.isdigit()) or len(length) > 3:
        return None
    if len(packed) == 4 and ":" in address:
        packed = b"\0" * 10 + b"\xff\xff" + packed
    bits, prefix = len(packed) * 8, int(length)
    if prefix > bits:
        return None
    network = int.from_bytes(packed, "big") >> (bits - prefix) << (bits - prefix)
    return f"{format_ip(network.to_bytes(len(packed), 'big'))}/{prefix}"


def split_host_port(text: str) -> tuple[str, str] | None:
    """Splits `ipv4:port` or `[ipv6]:port` into host and port. None: it has another form."""
    host, colon, port = text.rpartition(":")
    if not colon:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    return None if "[" in host or "]" in host or "[" in port or "]" in port else (host, port)


def join_host_port(host: str, port: int) -> str:
    """Joins an address and a port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
