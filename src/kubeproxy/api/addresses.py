"""Addresses and ranges as Kubernetes writes them, in one canonical spelling.

Rows and plans hold addresses as canonical text: it is what rules print, it compares and hashes fast, and
packing it for netlink is one call. Reading is "sloppy" as in Kubernetes: `172.30.0.041` is decimal (old
clusters hold such objects), and an IPv4-mapped IPv6 address is IPv4. A canonical address costs one
`inet_pton` to recognise.
"""

import re
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final, Literal

Family = Literal["IPv4", "IPv6"]
IPV4: Final[Family] = "IPv4"
IPV6: Final[Family] = "IPv6"
FAMILIES: Final[tuple[Family, Family]] = (IPV4, IPV6)
BITS: Final[dict[Family, int]] = {IPV4: 32, IPV6: 128}

_DIGITS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}", re.ASCII)
_MAPPED = bytes(10) + b"\xff\xff"
_NOWHERE = ("0.", *(f"{net}." for net in range(224, 240)), "255.255.255.255", "ff")
"""Prefixes of canonical addresses that are not the address of one host (RFC 6890, RFC 4291)."""


def family_of(address: str) -> Family:
    """The family of a canonical address or range."""
    return IPV6 if ":" in address else IPV4


def parse_address(text: str) -> str:
    """Returns an address in canonical spelling.

    Raises:
        ValueError: not an IP address.
    """
    try:
        if ":" not in text:
            inet_pton(AF_INET, text)
            return text
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        if _DIGITS.fullmatch(text):
            parts = [int(part) for part in text.split(".")]
            if max(parts) < 256:
                return ".".join(map(str, parts))
        raise ValueError(f"{text!r:.80} is not an IP address") from None
    if packed.startswith(_MAPPED):
        return inet_ntop(AF_INET, packed[12:])
    return inet_ntop(AF_INET6, packed)


def pack(address: str) -> bytes:
    """A canonical address in network byte order: 4 or 16 bytes."""
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def unpack(packed: bytes) -> str:
    """The canonical address of 4 or 16 bytes in network byte order."""
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def parse_range(text: str) -> str:
    """Returns a CIDR range in canonical spelling, its host bits cleared.

    Raises:
        ValueError: not a range.
    """
    address, slash, length = text.partition("/")
    try:
        network = parse_address(address)
        bits = BITS[family_of(network)]
        prefix = int(length) if length.isascii() and length.isdigit() else -1
        if ":" in address and bits == 32:
            prefix -= 96
    except ValueError:
        prefix, bits, network = -1, 0, ""
    if not slash or not 0 <= prefix <= bits:
        raise ValueError(f"{text!r:.80} is not a CIDR range")
    mask = (1 << bits) - (1 << (bits - prefix))
    cleared = int.from_bytes(pack(network)) & mask
    return f"{unpack(cleared.to_bytes(bits // 8))}/{prefix}"


def is_everything(cidr: str) -> bool:
    """Whether a canonical range holds every address of its family."""
    return cidr.endswith("/0")


def contains(cidr: str, address: str) -> bool:
    """Whether a canonical range holds a canonical address; False across families."""
    network, _, length = cidr.partition("/")
    first, other = pack(network), pack(address)
    shift = len(first) * 8 - int(length)
    return len(first) == len(other) and int.from_bytes(first) >> shift == int.from_bytes(other) >> shift


def is_host(address: str) -> bool:
    """Whether a canonical address can be that of one host: not 0.0.0.0/8, ::, multicast or broadcast."""
    return address[0] in "13456789" or not (address.startswith(_NOWHERE) or address == "::")


def is_loopback(address: str) -> bool:
    """Whether a canonical address is a loopback address (127.0.0.0/8, ::1)."""
    return address.startswith("127.") or address == "::1"


def is_link_local(address: str) -> bool:
    """Whether a canonical address is one of a link (169.254.0.0/16, fe80::/10)."""
    return address.startswith("169.254.") or (":" in address and contains("fe80::/10", address))


def join(address: str, port: int) -> str:
    """`address:port`, with the brackets IPv6 needs."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
