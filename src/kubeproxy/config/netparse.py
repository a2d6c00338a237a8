"""Addresses in the configuration: like those of objects read sloppily and made canonical (`api.addresses`).

An invalid one is None, because each field has a message of its own for it, that of the reference.
"""

from kubeproxy.api.addresses import parse_address, parse_range


def parse_ip(text: str) -> str | None:
    """Reads an IP address without zone. None: it is none."""
    try:
        return parse_address(text)
    except ValueError:
        return None


def parse_cidr(text: str) -> str | None:
    """Reads a CIDR and gives its canonical text with the host bits cleared. None: it is none."""
    try:
        return parse_range(text)
    except ValueError:
        return None


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
