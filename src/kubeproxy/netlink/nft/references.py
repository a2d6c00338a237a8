"""The chains and sets to which rules and elements refer."""

from collections.abc import Iterator

from kubeproxy.netlink import wire


def target(element: bytes) -> str:
    """The chain to which an element of a verdict map jumps; "" for none."""
    data = wire.attributes(wire.attributes(element[4:]).get(2, b""))
    return _chain(data[2]) if 2 in data else ""


def chains(expressions: memoryview) -> set[str]:
    """The chains to which a rule jumps."""
    verdicts = (wire.attributes(a[2]).get(2) for name, a in _steps(expressions) if name == "immediate")
    return {_chain(verdict) for verdict in verdicts if verdict is not None} - {""}


def sets(expressions: memoryview) -> set[str]:
    """The sets and maps to which a rule refers."""
    return {wire.string(a[1]) for name, a in _steps(expressions) if name in {"lookup", "dynset"}}


def _chain(verdict: memoryview) -> str:
    found = wire.attributes(verdict)
    return wire.string(found[2]) if 2 in found else ""


def _steps(expressions: memoryview) -> Iterator[tuple[str, wire.Attributes]]:
    for _, expression in wire.attribute_list(expressions):
        parts = wire.attributes(expression)
        yield wire.string(parts[1]), wire.attributes(parts[2])
