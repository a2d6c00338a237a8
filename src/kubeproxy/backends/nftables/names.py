"""Names of the objects of Services that have objects of their own.

Those of session affinity are the reference's, so that after a take-over, in either direction, clients keep
their endpoints.

A Service port is called HASH-namespace/name/protocol/port, an endpoint of it
HASH-namespace/name/protocol/port__ip/port, where HASH is the first 8 characters of base32 over SHA-256 of
what follows it. Names are cut at 240 characters, and colons become dots.
"""

from kubeproxy.backends.shared.hashes import hash8

_LONGEST = 240


def port(name: str, protocol: str) -> str:
    """The name of a Service port.

    Args:
        name: "namespace/name:port" or "namespace/name".
        protocol: TCP, UDP or SCTP.
    """
    service, _, own = name.partition(":")
    return _hashed(f"{service}/{protocol.lower()}/{own}")


def endpoint(name: str, protocol: str, address: str, number: int) -> str:
    """The name of an endpoint of a Service port."""
    service, _, own = name.partition(":")
    return _hashed(f"{service}/{protocol.lower()}/{own}__{address}/{number}")


def table(name: str, protocol: str, size: int, *, local: bool) -> str:
    """The name of the map that is the table of Maglev hashing of a Service port."""
    return f"maglev-{size}-{'local-' if local else ''}{port(name, protocol)}"[:_LONGEST]


def _hashed(text: str) -> str:
    return f"{hash8(text)}-{text}"[:_LONGEST].replace(":", ".")
