"""A kernel in memory: virtual servers, sets and kube-ipvs0 without IPVS.

Tested against the real one. It refuses what that refuses: additions of what exists, deletions of what does
not, a set that is full or in use, schedulers it does not know.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterator, Sequence

from kubeproxy.backends.ipvs.kernel import ServerChange
from kubeproxy.netlink.ipset import BITMAP_PORT, Element, Header
from kubeproxy.netlink.ipvs import Load, Real, Settings, Virtual

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "mh")


class FakeIPVSKernel:
    """The kernel under one family.

    Attributes:
        virtuals: settings and real servers of each virtual server.
        sets: header and elements of each set.
        bound: the addresses of kube-ipvs0; None when there is no such interface.
        limits: how many connections each real server may have; 0: any number.
        last_weights: the last weight of real servers that was not 0, or that they were added with.
        log: what was changed, in order, for tests.
        refuse: called with each thing to be added; a number it returns is the error number of a refusal.
    """

    def __init__(self) -> None:
        self.virtuals: dict[Virtual, tuple[Settings, dict[Real, Load]]] = {}
        self.sets: dict[str, tuple[Header, set[Element]]] = {}
        self.bound: set[bytes] | None = set()
        self.log: list[tuple[str, object]] = []
        self.last_weights: dict[tuple[Virtual, Real], int] = {}
        self.limits: dict[tuple[Virtual, Real], int] = {}
        self._kept: dict[tuple[Virtual, Real], Load] | None = None
        self.refuse: Callable[[object], int] = lambda _: 0

    def servers(self) -> dict[Virtual, dict[Real, Load]]:
        """See `Kernel`. The newest real server is listed first."""
        return {virtual: dict(reversed(reals.items())) for virtual, (_, reals) in self.virtuals.items()}

    def fingerprint(self) -> int:
        """See `Kernel`."""
        weights = {
            v: (s, [(r, load.weight) for r, load in reals.items()]) for v, (s, reals) in self.virtuals.items()
        }
        return hash(repr(weights))

    def settings(self) -> dict[Virtual, Settings]:
        """See `Kernel`."""
        return {virtual: settings for virtual, (settings, _) in self.virtuals.items()}

    def reals(self, virtual: Virtual) -> dict[Real, Load]:
        """See `Kernel`."""
        there = self.virtuals.get(virtual)
        return dict(reversed(there[1].items())) if there else {}

    def change_servers(self, changes: Sequence[ServerChange]) -> dict[int, OSError]:
        """See `Kernel`."""
        found = {at: self._change_server(change) for at, change in enumerate(changes)}
        return {at: _error(code) for at, code in found.items() if code}

    def _change_server(self, change: ServerChange) -> int:
        verb, virtual, settings, real, weight, limit = change
        if verb != "delete" and (code := self.refuse(change)):
            return code
        there = self.virtuals.get(virtual)
        self.log.append((verb, virtual if real is None else (virtual, real)))
        if real is None:
            if (there is None) != (verb == "add"):
                return errno.EEXIST if verb == "add" else errno.ESRCH
            if verb == "delete":
                del self.virtuals[virtual]
                return 0
            assert settings is not None
            if settings.scheduler not in SCHEDULERS:
                return errno.ENOENT
            self.virtuals[virtual] = settings, there[1] if there else {}
            return 0
        if there is None:
            return errno.ESRCH
        reals = there[1]
        if (real not in reals) != (verb == "add"):
            return errno.EEXIST if verb == "add" else errno.ENOENT
        if verb == "delete":
            load = reals.pop(real)
            if self._kept is not None:
                self._kept[virtual, real] = load
            return 0
        load = reals.get(real) or (self._kept or {}).get((virtual, real), Load(0))
        reals[real] = load._replace(weight=weight)
        self.limits[virtual, real] = limit
        if verb == "add" or weight:
            self.last_weights[virtual, real] = weight
        return 0

    @contextlib.contextmanager
    def keeping_connections(self) -> Iterator[None]:
        """See `Kernel`."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def continue_moved(self) -> None:
        """See `Kernel`. There are no connections in memory."""

    def headers(self) -> dict[str, Header]:
        """See `Kernel`."""
        return {name: header._replace(size=len(elements)) for name, (header, elements) in self.sets.items()}

    def elements(self, name: str) -> set[Element]:
        """See `Kernel`."""
        return set(self._set(name)[1])

    def create_set(self, name: str, kind: str, limit: int) -> None:
        """See `Kernel`."""
        self.log.append(("create", name))
        header = Header(kind, 0, 0 if kind == BITMAP_PORT else limit, 0, 0)
        if self.sets.setdefault(name, (header, set()))[0] != header:
            raise _error(errno.EEXIST)

    def destroy_set(self, name: str) -> None:
        """See `Kernel`."""
        self.log.append(("destroy", name))
        self.sets.pop(name, None)

    def swap_sets(self, one: str, other: str) -> None:
        """See `Kernel`."""
        self.log.append(("swap", (one, other)))
        self.sets[one], self.sets[other] = self._set(other), self._set(one)

    def add_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        """See `Kernel`."""
        header, there = self._set(name)
        refused = {}
        for element in elements:
            self.log.append(("add", (name, element)))
            full = bool(header.limit) and len(there) >= header.limit and element not in there
            if code := self.refuse((name, element)) or (4352 if full else 0):
                refused[element] = _error(code)
            else:
                there.add(element)
        return refused

    def delete_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        """See `Kernel`."""
        _, there = self._set(name)
        for element in elements:
            self.log.append(("delete", (name, element)))
            there.discard(element)
        return {}

    def _set(self, name: str) -> tuple[Header, set[Element]]:
        if name not in self.sets:
            raise _error(errno.ENOENT)
        return self.sets[name]

    def addresses(self) -> set[bytes]:
        """See `Kernel`."""
        return set(self.bound or ())

    def bind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        """See `Kernel`."""
        if self.bound is None:
            self.bound = set()
        refused = {a: _error(code) for a in addresses if (code := self.refuse(a))}
        for address in addresses:
            if address not in refused:
                self.log.append(("bind", address))
                self.bound.add(address)
        return refused

    def unbind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        """See `Kernel`."""
        for address in addresses:
            self.log.append(("unbind", address))
            (self.bound or set()).discard(address)
        return {}

    def close(self) -> None:
        """See `Kernel`."""


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
