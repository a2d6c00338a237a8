"""What the maps of a family hold, as a value that can be compared and printed.

Which number a Service port has, and where its block is, depends on what happened before; here a front has
its endpoints.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct

from kubeproxy.api.addresses import join, unpack
from kubeproxy.api.rows import Protocol
from kubeproxy.backends.base import HeldState
from kubeproxy.backends.ebpf import layout
from kubeproxy.backends.ebpf.compile import LEFT, PASSED, FrontCompiler, WordPlan
from kubeproxy.backends.ebpf.layout import OWN, PASS, STICKY
from kubeproxy.backends.ebpf.tables import FrontMaps
from kubeproxy.model.plan import ServicePlan

Ends = tuple[tuple[str, int], ...]


class HeldFront(Struct, frozen=True, gc=False, order=True):
    """A front as the programs see it.

    Attributes:
        address: its address; "" for a node port.
        protocol: its protocol.
        port: its port.
        flags: those of its word.
        endpoints: address and port of each endpoint, as often as its weight says, sorted.
        timeout: nanoseconds after which a client's endpoint is forgotten.
    """

    address: str
    protocol: Protocol
    port: int
    flags: int
    endpoints: Ends = ()
    timeout: int = 0

    def __str__(self) -> str:
        at = join(self.address, self.port) if self.address else f"node port {self.port}"
        if self.flags & PASS:
            return f"front {at} {self.protocol} -> nftables"
        own = " only from the node's namespace" if self.flags & OWN else ""
        sticky = f" for each client at least {self.timeout // 10**9} s" if self.flags & STICKY else ""
        ends = ", ".join(_end(*end, times) for end, times in Counter(self.endpoints).items())
        return f"front {at} {self.protocol}{own} -> {ends or 'ECONNREFUSED'}{sticky}"


class HeldFronts(Struct, frozen=True, gc=False):
    """What the maps hold.

    Attributes:
        fronts: the fronts, sorted.
        hosts: the addresses of the node that serve node ports, each with its flags, sorted.
        detached: the programs that are not attached.
    """

    fronts: tuple[HeldFront, ...] = ()
    hosts: tuple[tuple[str, int], ...] = ()
    detached: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """See `HeldState`."""
        return not (self.fronts or self.hosts)

    def lines(self) -> list[str]:
        """See `HeldState`."""
        return [
            *(f"program {name} is not attached" for name in self.detached),
            *(_host(*host) for host in self.hosts),
            *(str(front) for front in self.fronts),
        ]


class HeldConnect(Struct, frozen=True, gc=False):
    """What nftables mode's table holds, and the maps.

    Attributes:
        rules: the table.
        front: the maps; None where there are none.
    """

    rules: HeldState
    front: HeldFronts | None

    @property
    def empty(self) -> bool:
        """See `HeldState`."""
        return self.rules.empty and (self.front is None or self.front.empty)

    def lines(self) -> list[str]:
        """See `HeldState`."""
        return [*self.rules.lines(), *(self.front.lines() if self.front is not None else ())]

    def commands(self) -> list[str]:
        """See `HeldPart`."""
        rules = self.rules
        found: list[str] = getattr(rules, "commands", rules.lines)()
        return [*found, *(self.front.lines() if self.front is not None else ())]


def as_connect(held: HeldState) -> HeldConnect:
    """What was read of this mode; anything else is a mistake of the caller."""
    assert isinstance(held, HeldConnect)
    return held


def _end(address: str, port: int, times: int) -> str:
    return join(address, port) + (f" x {times}" if times > 1 else "")


def _host(address: str, flags: int) -> str:
    own = " only from the node's namespace" if flags & OWN else ""
    return f"node ports at {address}{own}"


def read(maps: FrontMaps, detached: Iterable[str] = ()) -> HeldFronts:
    """Everything the maps hold."""
    return _read(maps, maps.fronts.items(), maps.hosts.items(), detached)


def read_part(maps: FrontMaps, keys: Iterable[bytes], detached: Iterable[str] = ()) -> HeldFronts:
    """What the maps hold of some fronts, and the addresses of the node."""
    found = ((key, value) for key in keys if (value := maps.fronts.get(key)) is not None)
    return _read(maps, found, maps.hosts.items(), detached)


def _read(
    maps: FrontMaps,
    fronts: Iterable[tuple[bytes, bytes]],
    hosts: Iterable[tuple[bytes, bytes]],
    detached: Iterable[str],
) -> HeldFronts:
    found = sorted(_front(maps, key, value) for key, value in fronts)
    nodes = sorted((unpack(key), int.from_bytes(value, "little")) for key, value in hosts)
    return HeldFronts(tuple(found), tuple(nodes), tuple(detached))


def _front(maps: FrontMaps, key: bytes, value: bytes) -> HeldFront:
    address, protocol, port = layout.read_front(key)
    index = layout.index_of(value)
    right = value == layout.entry(key, index) and index < len(maps.words)
    base, count, flags = layout.parts(maps.words[index]) if right else (0, 0, PASS)
    if flags & PASS:
        return HeldFront(address, protocol, port, PASS)
    slots = maps.endpoints(base, count)
    timeout = maps.timeouts[index >> 1] if flags & STICKY else 0
    if flags & STICKY:  # a client whose endpoint is no member does not stay
        members = (maps.members.get(layout.member(index, slot, maps.layout.family)) for slot in slots)
        timeout = timeout if None not in members else 0
    return HeldFront(
        address, protocol, port, flags, tuple(sorted(layout.read_slot(slot) for slot in slots)), timeout
    )


def wanted(plans: Iterable[ServicePlan], compiler: FrontCompiler) -> HeldFronts:
    """What the maps should hold."""
    fronts = sorted(front for plan in plans for front in fronts_of(plan, compiler))
    hosts = sorted((unpack(key), flags) for key, flags in compiler.hosts().items())
    return HeldFronts(tuple(fronts), tuple(hosts))


def fronts_of(plan: ServicePlan, compiler: FrontCompiler) -> Iterator[HeldFront]:
    """What the maps should hold of a Service."""
    for needed in compiler.all([plan]).values():
        for key, side in needed.fronts.items():
            word: WordPlan = PASSED if side == LEFT else needed.words[side]
            at = layout.read_front(key)
            if word.flags & PASS:
                yield HeldFront(*at, PASS)
                continue
            ends = tuple(sorted((each.address, each.port) for each in word.endpoints))
            yield HeldFront(*at, word.flags, ends, needed.timeout if word.flags & STICKY else 0)


def keys_of(plans: Iterable[ServicePlan], compiler: FrontCompiler) -> list[bytes]:
    """The keys of the fronts of some Services."""
    return [key for plan in plans for port in compiler.ports(plan) for key in compiler.fronts(port)]
