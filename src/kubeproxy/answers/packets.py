"""Packets as users specify them: `--from` a source `--to` a destination.

A source is an address, `node` for a process of the node, or `pod/NAMESPACE/NAME`. A destination is
`ADDRESS:PORT`, `SERVICE.NAMESPACE` or `NAMESPACE/SERVICE`, with `:PORT` if it has several, a number or a
name, or `:PORT` for a node port, each with `/PROTOCOL` if it is not TCP.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Final

from msgspec import Struct

from kubeproxy.answers import names
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import FAMILIES, Family, family_of, is_loopback, parse_address
from kubeproxy.api.rows import PortRow, Protocol, ServiceRow
from kubeproxy.machine.base import Machine
from kubeproxy.model.explain import UNKNOWN_INTERFACE
from kubeproxy.model.verdict import Packet

PROTOCOLS: Final[tuple[Protocol, ...]] = ("TCP", "UDP", "SCTP")
_POD: Final = "pod/"
_FORMS: Final = "a destination is ADDRESS:PORT, SERVICE.NAMESPACE[:PORT] or :NODEPORT, with /udp or /sctp if it is not TCP"


class PacketError(Exception):
    """A source or destination that cannot be understood, or does not exist."""


class Destination(Struct, frozen=True):
    """A destination, worked out as far as it can be without knowing the source.

    Attributes:
        addresses: its address in each family; empty for a node port.
        port: its port.
        protocol: its protocol.
    """

    addresses: tuple[str, ...]
    port: int
    protocol: Protocol


def pod_path(source: str) -> str:
    """The path of the API where a source's Pod is; "" if the source is not a Pod.

    Raises:
        PacketError: it is not written as pod/NAMESPACE/NAME.
    """
    if not source.startswith(_POD):
        return ""
    namespace, slash, name = source.removeprefix(_POD).partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise PacketError(f"--from {source}: a Pod is written as pod/NAMESPACE/NAME")
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def packet(
    snapshot: Snapshot,
    machine: Machine,
    source: str,
    destination: str,
    interface: str = "",
    *,
    addresses: Sequence[str] = (),
) -> Packet:
    """The packet that a source sends to a destination.

    Args:
        snapshot: the cluster. If the source is a Pod, its object must have been requested by `pod_path`,
            unless its addresses are given.
        machine: this host.
        source: the source.
        destination: the destination.
        interface: the interface it comes in by; "" to look it up.
        addresses: the addresses of the source, if it is a Pod and they are known.

    Raises:
        PacketError: one of them cannot be understood, or does not exist.
    """
    to = parse_destination(snapshot, destination)
    if interface and snapshot.own and not machine.interface(interface):
        raise PacketError(f"--interface {interface}: this host has no such interface")
    sources = tuple(map(_address, addresses)) if addresses else _sources(snapshot, source)
    if "" in sources:
        raise PacketError(f"--from {source}: its addresses cannot be read")
    family = _family(snapshot, source, sources, destination, to)
    node = snapshot.node(family)
    assert node is not None
    address = next((a for a in to.addresses if family_of(a) == family), "") or node.address
    if not to.addresses and is_loopback(address):
        raise PacketError(f"--to {destination}: the {family} address of node {node.name} is not known")
    local = snapshot.local_addresses[family]
    if source == "node":
        return Packet(_own_source(snapshot, machine, address, local), address, to.port, to.protocol)
    sender = next(a for a in sources if family_of(a) == family)
    if sender in local and not interface:
        return Packet(sender, address, to.port, to.protocol)
    return Packet(sender, address, to.port, to.protocol, interface or _interface(snapshot, machine, sender))


def parse_destination(snapshot: Snapshot, text: str) -> Destination:
    """Reads a destination.

    Raises:
        PacketError: it cannot be understood, or names a Service or port that does not exist.
    """
    rest, slash, given = text.rpartition("/") if "/" in text else (text, "", "")
    protocol = next((p for p in PROTOCOLS if p == given.upper()), None)
    if slash and protocol is None:
        if ":" in rest or "." in rest or not rest:
            raise PacketError(f"--to {text}: {given!r} is not a protocol; use tcp, udp or sctp. {_FORMS}")
        rest = text  # NAMESPACE/SERVICE
    host, port = _split(rest)
    address = _address(host)
    if address or (not host and port):
        number = _number(port)
        if number is None:
            form = (
                "an address needs a port, as in 10.96.0.1:443 or [fd00::1]:443"
                if address
                else "a node port is written as :PORT, a number from 1 to 65535"
            )
            raise PacketError(f"--to {text}: {form}")
        return Destination((address,) if address else (), number, protocol or "TCP")
    return _of_service(snapshot, text, host, port, protocol)


def _split(text: str) -> tuple[str, str]:
    """Host and port; an IPv6 address has brackets if a port follows."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    if text.count(":") > 1:
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def _address(text: str) -> str:
    try:
        return parse_address(text)
    except ValueError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and 0 < int(text) < 1 << 16 else None


def _of_service(
    snapshot: Snapshot, text: str, host: str, port: str, protocol: Protocol | None
) -> Destination:
    key = names.service(host)
    if key is None or host.replace(".", "").isdecimal():
        same = sorted(f"{key[1]}.{key[0]}" for key in snapshot.state.services if key[1] == host)
        raise PacketError(f"--to {text or repr(text)}: {f'did you mean {same[0]}? ' if same else ''}{_FORMS}")
    service = snapshot.state.services.get(key)
    if service is None:
        raise PacketError(f"--to {text}: {names.missing(snapshot.state, key)}")
    found = [
        each
        for each in service.ports
        if (not port or port in {each.name, str(each.port)}) and protocol in {None, each.protocol}
    ]
    if len(found) == 1 or (found and port):
        return Destination(service.cluster_ips, found[0].port, found[0].protocol)
    if found:
        raise PacketError(f"--to {text}: the Service has several ports, add one of them: {_ports(service)}")
    raise PacketError(f"--to {text}: the Service has no such port; it has {_ports(service)}")


def _ports(service: ServiceRow) -> str:
    def shown(port: PortRow) -> str:
        number = f"{port.port}/{port.protocol.lower()}"
        return f"{port.name} ({number})" if port.name else number

    return ", ".join(map(shown, service.ports)) or "no ports"


def _sources(snapshot: Snapshot, source: str) -> tuple[str, ...]:
    """The addresses of a source; of the node every one, so none is listed."""
    if source == "node":
        return ()
    if path := pod_path(source):
        return pod_addresses(source, path, snapshot.objects, snapshot.troubles)
    address = _address(source.strip("[]"))
    if not address or ip_address(address).is_unspecified:
        raise PacketError(f"--from {source}: a source is an address, `node`, or pod/NAMESPACE/NAME")
    return (address,)


def pod_addresses(
    source: str, path: str, objects: Mapping[str, bytes | None], troubles: Iterable[str]
) -> tuple[str, ...]:
    """The addresses of a Pod.

    Args:
        source: the Pod, as it was asked for.
        path: its path of the API.
        objects: what was read, by path.
        troubles: why other objects could not be read, each beginning with its path.

    Raises:
        PacketError: it was not read, or has no address.
    """
    body = objects.get(path)
    if body is None:
        why = next((trouble for trouble in troubles if trouble.startswith(path)), "it was not read")
        raise PacketError(f"--from {source}: {why}; use its address instead")
    status = json.loads(body).get("status") or {}
    given: Iterable[str] = [each.get("ip", "") for each in status.get("podIPs") or ()]
    addresses = tuple(address for text in (*given, status.get("podIP") or "") if (address := _address(text)))
    if not addresses:
        raise PacketError(f"--from {source}: the Pod has no address yet")
    return tuple(dict.fromkeys(addresses))


def _family(
    snapshot: Snapshot, source: str, sources: tuple[str, ...], destination: str, to: Destination
) -> Family:
    """The family that source, destination and node have in common; of two the node's primary one."""
    having = [node.family for node in snapshot.nodes]
    of_source = {family_of(a) for a in sources} or set(having)
    of_destination = {family_of(a) for a in to.addresses} or set(having)
    common = [family for family in having if family in of_source & of_destination]
    if common:
        return common[0]
    if not of_source & of_destination:
        raise PacketError(
            f"--from {source} is {'/'.join(sorted(of_source))}, --to {destination} is {'/'.join(sorted(of_destination))}"
        )
    missing = next(family for family in FAMILIES if family in of_source & of_destination)
    raise PacketError(f"--to {destination}: node {snapshot.name} has no {missing}")


def _own_source(snapshot: Snapshot, machine: Machine, destination: str, local: tuple[str, ...]) -> str:
    """The source of what a process of the node sends to an address."""
    if destination in local or _is_owned(snapshot, destination):
        return destination
    family = family_of(destination)
    if snapshot.own:
        route = machine.route_to(destination)
        if route is not None and route.source:
            return route.source
    node = snapshot.node(family)
    assert node is not None
    return node.address


def _is_owned(snapshot: Snapshot, address: str) -> bool:
    """Whether the mode gives an address of a Service to the node."""
    manners = snapshot.mode.manners
    return (
        manners is not None
        and manners.owns_addresses
        and any(
            address in row.cluster_ips or address in row.external_ips or address in row.load_balancer_ips
            for row in snapshot.state.services.values()
        )
    )


def _interface(snapshot: Snapshot, machine: Machine, source: str) -> str:
    """The interface that receives packets of a source, if their route is that of answers.

    UNKNOWN_INTERFACE if it is not known.
    """
    route = machine.route_to(source) if snapshot.own else None
    return (
        machine.interface_name(route.interface)
        if route is not None and route.interface
        else UNKNOWN_INTERFACE
    )
