"""What a line of the system's tools is about: the object, its front, its Service.

The lines are those of `backends.base.KernelComparison`. They are read, not compared: what a line means is
known to the drivers; here it is only attributed.
"""

import re
from functools import lru_cache
from typing import Final, cast

from msgspec import Struct

from kubeproxy.api.rows import Protocol
from kubeproxy.model.plan import Front

_NFT = re.compile(r"(?:add|delete) (element|rule|chain|set|map) (ip6?) (\S+) (\S+) ?(.*)")
_RULE = re.compile(r"-t (\S+) -([NAIDRX]) (\S+) ?(.*)")
_SERVER = re.compile(r"-[AED] (-t|-u|--sctp-service) (\S+) ?(.*)")
_REAL = re.compile(r"-[aed] (-t|-u|--sctp-service) (\S+) -r (\S+)")
_ENTRY = re.compile(r"(?:add|del) (KUBE-\S+) (\S+)")
_SET = re.compile(r"(?:create|destroy) (\S+)")
_ADDRESS = re.compile(r"ip address (?:add|del) ([^/\s]+)/\d+ dev (\S+)")
_SOCKET = re.compile(r'(tcp|udp) (?:LISTEN|UNCONN) (\S+) comment "([^":]+)[^"]*" -> (\S*)')
_BALANCER = re.compile(
    r"New-HnsLoadBalancer(?: -Vip (\S+)| -IPv6)? -Protocol (\w+) -ExternalPort (\d+)(?: -Endpoint (\S+)$)?"
)
_SOCKETS_FRONT = re.compile(r"front (?:node port (\d+)|(\S+)) (TCP|UDP|SCTP)\b")
_BY_FLAG: Final[dict[str, Protocol]] = {"-t": "TCP", "-u": "UDP", "--sctp-service": "SCTP"}
_ELEMENT_FRONT = re.compile(r"(?:([0-9a-f.:]+) \. )?(tcp|udp|sctp) \. (\d+)\b")
_HAIRPIN = re.compile(r"([0-9a-f.:]+) \. \1 \. (?:tcp|udp|sctp) \. (\d+)")
_ADDRESS_ONLY = re.compile(r"[0-9a-f.:]+")
_ENTRY_FRONT = re.compile(r"([0-9a-f.:]+),(tcp|udp|sctp):(\d+)")
_LOOP_BACK = re.compile(r"([0-9a-f.:]+),(?:tcp|udp|sctp):(\d+),\1")
_NODE_PORT_SET = re.compile(r"NODE-PORT(?:-LOCAL)?-(TCP|UDP|SCTP)")
_COMMENT = re.compile(
    r'comment "?(?:\([^)]*\) )?([a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)'
)
_NAMED = re.compile(r"[A-Z0-9]{8}-([^/\s]+/[^/\s]+)/(?:tcp|udp|sctp)/")
_TARGET = re.compile(r"(?:-j|goto|jump) (\S+)")
_LEADS = re.compile(r"--to-destination (\S+)|dnat (?:ip6? )?to (\S+)")
_RULE_FRONT = re.compile(r"-d ([0-9a-f.:]+)/(?:32|128) .*?-p (tcp|udp|sctp) .*?--dport (\d+)")
_RULE_PORT = re.compile(r".*?-p (tcp|udp|sctp) .*?--dport (\d+)")
_VALUE = re.compile(r": ([0-9a-f.:]+) \. (\d+) }$")


class LineParts(Struct, frozen=True, gc=False):
    """What a line is about.

    Attributes:
        holder: the object that holds it, as people name it.
        inside: the name of the chain, map or set that it is in; "" for virtual servers and addresses.
        key: what distinguishes it from others in the same object; two lines with the same key are versions of
            one thing.
        front: the front that it serves, if it names one; a node port has no address. Port 0: all ports of the
            address.
        service: namespace/name if the line itself has it.
        target: the chain that it leads to.
        endpoint: the endpoint that it leads to, as address:port.
    """

    holder: str
    inside: str
    key: str
    front: Front | None = None
    service: str = ""
    target: str = ""
    endpoint: str = ""


def parts(line: str) -> LineParts:
    """Reads a line."""
    if line.startswith("-t ") and (found := _RULE.fullmatch(line)):
        return _rule(found[1], found[2], found[3], found[4])
    if found := _NFT.fullmatch(line):
        return _nft(found[1], f"{found[2]} {found[3]}", found[4], found[5])
    if found := _REAL.match(line):
        at = f"{found[2]}/{_BY_FLAG[found[1]]}"
        front = _front_of(found[2], _BY_FLAG[found[1]])
        return LineParts(f"virtual server {at}", "", f"real {at} {found[3]}", front, endpoint=found[3])
    if found := _SERVER.fullmatch(line):
        at = f"{found[2]}/{_BY_FLAG[found[1]]}"
        return LineParts(f"virtual server {at}", "", f"server {at}", _front_of(found[2], _BY_FLAG[found[1]]))
    if (found := _ENTRY.fullmatch(line)) and (hairpin := _LOOP_BACK.fullmatch(found[2])):
        endpoint = _joined(hairpin[1], hairpin[2])
        return LineParts(f"set {found[1]}", found[1], line, endpoint=endpoint)
    if found := _ENTRY.fullmatch(line):
        return LineParts(f"set {found[1]}", found[1], line, _entry_front(found[1], found[2]))
    if found := _ADDRESS.fullmatch(line):
        return LineParts(f"interface {found[2]}", "", line, (found[1], "TCP", 0))
    if found := _SOCKET.match(line):
        at = f"socket {found[1]} {found[2]}"
        return LineParts(at, "", at, service=found[3])
    if found := _BALANCER.match(line):
        return _balancer(found[1] or "", _protocol(found[2]), int(found[3]), found[4] or "")
    if found := _SOCKETS_FRONT.match(line):
        protocol = cast("Protocol", found[3])
        front = ("", protocol, int(found[1])) if found[1] else _front_of(found[2], protocol)
        return LineParts("maps of ebpf mode", "", f"front {found[1] or found[2]} {protocol}", front)
    if found := _SET.match(line):
        return LineParts(f"set {found[1]}", found[1], line)
    return LineParts("", "", line)


def _balancer(vip: str, protocol: Protocol, port: int, endpoint: str) -> LineParts:
    at = f"load balancer {_joined(vip, str(port)) if vip else f'of node port {port}'}/{protocol}"
    return LineParts(at, "", f"{at} {endpoint}", (vip, protocol, port), endpoint=endpoint)


def _nft(kind: str, table: str, name: str, rest: str) -> LineParts:
    where = f"table {table}"
    if kind != "element":
        what = f"chain {name}" if kind in {"rule", "chain"} else f"{kind} {name}"
        key = rest if kind == "rule" else ""
        to, leads = _TARGET.search(rest), _LEADS.search(rest)
        endpoint = (leads[1] or leads[2]) if leads else ""
        return LineParts(
            f"{what} of {where}",
            name,
            f"{kind} {name} {key}",
            service=_service(name) or _service(rest),
            target=to[1] if to else "",
            endpoint=endpoint,
        )
    inner = rest.removeprefix("{ ").removesuffix(" }")
    key = inner.partition(" : ")[0]
    front: Front | None = None
    if found := _ELEMENT_FRONT.match(key):
        front = found[1] or "", _protocol(found[2]), int(found[3])
    elif _ADDRESS_ONLY.fullmatch(key):
        front = key, "TCP", 0
    to, value = _TARGET.search(inner), _VALUE.search(rest) or _HAIRPIN.match(key)
    return LineParts(
        f"{'map' if ' : ' in inner else 'set'} {name} of {where}",
        name,
        f"element {name} {key}",
        front,
        _service(inner) or _service(name),
        to[1] if to else "",
        _joined(value[1], value[2]) if value else "",
    )


def _rule(table: str, verb: str, chain: str, rest: str) -> LineParts:
    front: Front | None = None
    if at := _RULE_FRONT.match(rest):
        front = at[1], _protocol(at[2]), int(at[3])
    elif chain == "KUBE-NODEPORTS" and (port := _RULE_PORT.match(rest)):
        front = "", _protocol(port[1]), int(port[2])
    to, leads, comment = _TARGET.search(rest), _LEADS.search(rest), _COMMENT.search(rest)
    return LineParts(
        f"chain {chain} of table {table}",
        chain,
        f"{table} {verb in 'NX'} {chain} {rest}",
        front,
        service=comment[1] if comment else "",
        target=to[1] if to else "",
        endpoint=(leads[1] or leads[2]) if leads else "",
    )


@lru_cache(maxsize=1024)
def _service(text: str) -> str:
    """The Service that a name or comment of ours or the reference's has in it; "" if none."""
    found = _NAMED.search(text) or _COMMENT.search(text)
    return found[1] if found else ""


def _protocol(text: str) -> Protocol:
    return cast("Protocol", text.upper())


def _front_of(place: str, protocol: Protocol) -> Front:
    address, _, port = place.rpartition(":")
    return address.strip("[]"), protocol, int(port)


def _entry_front(name: str, entry: str) -> Front | None:
    if found := _ENTRY_FRONT.match(entry):
        return found[1], _protocol(found[2]), int(found[3])
    port = _NODE_PORT_SET.search(name)
    number = entry.rpartition(":")[2]
    return ("", _protocol(port[1]), int(number)) if port and number.isdigit() else None


def _joined(address: str, port: str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
