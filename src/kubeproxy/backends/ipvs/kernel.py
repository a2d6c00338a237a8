"""The kernel of ipvs mode besides iptables rules: virtual servers, sets, addresses of kube-ipvs0.

`fake.FakeIPVSKernel` stands in for it in tests.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from socket import AF_INET, AF_INET6
from typing import Final, Literal, NamedTuple, Protocol

from kubeproxy.api.addresses import IPV4, Family
from kubeproxy.backends.ipvs import names
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import ipset, ipvs, route
from kubeproxy.netlink.ipset import Element, Header
from kubeproxy.netlink.ipvs import Load, Real, Settings, Virtual
from kubeproxy.netlink.wire import Request

log = logging.getLogger(__name__)

EXPIRE: Final = "net/ipv4/vs/expire_nodest_conn"
"""If it is not 0, a connection ends with its next packet after its real server was deleted."""

SLOPPY: Final = "net/ipv4/vs/sloppy_tcp"
"""If it is not 0, a TCP packet of no known connection is scheduled although it is no SYN."""

Verb = Literal["add", "edit", "delete"]


class ServerChange(NamedTuple):
    """A change of a virtual server; or, with `real`, of one of its real servers.

    Attributes:
        limit: a real server with so many connections gets no more; 0 for no limit.
    """

    verb: Verb
    virtual: Virtual
    settings: Settings | None = None
    real: Real | None = None
    weight: int = 1
    limit: int = 0


class IPVSKernel(Protocol):
    """The kernel under one IP family. Every method raises OSError when the kernel refuses the whole of it."""

    def servers(self) -> dict[Virtual, dict[Real, Load]]:
        """All virtual servers of the family with their real servers."""

    def fingerprint(self) -> int:
        """A number that changes with any virtual server, real server or weight, of any family."""

    def settings(self) -> dict[Virtual, Settings]:
        """All virtual servers of the family with their settings."""

    def reals(self, virtual: Virtual) -> dict[Real, Load]:
        """The real servers of one virtual server; none if it is not there."""

    def change_servers(self, changes: Sequence[ServerChange]) -> dict[int, OSError]:
        """Makes changes, each by itself; returns what was refused, by its index."""

    def keeping_connections(self) -> AbstractContextManager[None]:
        """Meanwhile connections to a real server that is deleted stay; it is added again."""

    def continue_moved(self) -> None:
        """From now on TCP connections that began on another node are continued: scheduled without a SYN."""

    def headers(self) -> dict[str, Header]:
        """Every set there is, by its full name."""

    def elements(self, name: str) -> set[Element]:
        """The elements of a set."""

    def create_set(self, name: str, kind: str, limit: int) -> None:
        """Makes a set."""

    def destroy_set(self, name: str) -> None:
        """Deletes a set; there need not be one."""

    def swap_sets(self, one: str, other: str) -> None:
        """Exchanges two sets."""

    def add_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        """Adds elements; returns which were refused."""

    def delete_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        """Deletes elements; returns which were refused."""

    def addresses(self) -> set[bytes]:
        """The addresses of kube-ipvs0."""

    def bind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        """Adds addresses to kube-ipvs0, which is created if it is missing; returns which were refused."""

    def unbind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        """Deletes addresses from kube-ipvs0; returns which were refused."""

    def close(self) -> None:
        """Closes the sockets."""


class LinuxIPVSKernel:
    """The real kernel."""

    def __init__(self, machine: Machine, family: Family) -> None:
        """Opens its sockets.

        Raises:
            OSError: it lacks IPVS or IP sets.
        """
        self.family: Family = family
        self._size = 4 if family == IPV4 else 16
        self._domain = int(AF_INET if family == IPV4 else AF_INET6)
        self._machine = machine
        self._ipvs = ipvs.IPVSSocket(machine)
        self._sets = ipset.Sets(machine)

    def servers(self) -> dict[Virtual, dict[Real, Load]]:
        """See `IPVSKernel`."""
        return {v: reals for v, reals in ipvs.table(self._machine).items() if len(v.address) == self._size}

    def fingerprint(self) -> int:
        """See `IPVSKernel`."""
        return ipvs.fingerprint(self._machine)

    def settings(self) -> dict[Virtual, Settings]:
        """See `IPVSKernel`."""
        return {v: s for v, s in self._ipvs.virtuals().items() if len(v.address) == self._size}

    def reals(self, virtual: Virtual) -> dict[Real, Load]:
        """See `IPVSKernel`."""
        return self._ipvs.reals(virtual)

    def change_servers(self, changes: Sequence[ServerChange]) -> dict[int, OSError]:
        """See `IPVSKernel`."""
        return dict(self._ipvs.submit([self._request(change) for change in changes]))

    @contextlib.contextmanager
    def keeping_connections(self) -> Iterator[None]:
        """See `IPVSKernel`. If that is not permitted, connections whose packets arrive meanwhile end."""
        changed = False
        with contextlib.suppress(OSError):
            changed = self._machine.set_sysctl(EXPIRE, 0)
        try:
            yield
        finally:
            if changed:
                self._machine.set_sysctl(EXPIRE, 1)

    def continue_moved(self) -> None:
        """See `IPVSKernel`."""
        try:
            if self._machine.set_sysctl(SLOPPY, 1):
                log.info("Set %(sysctl)s=%(value)d", {"sysctl": SLOPPY, "value": 1})
        except OSError as e:
            log.warning(
                "%(sysctl)s cannot be set to 1, so connections that move here from another node are reset: %(err)s",
                {"sysctl": SLOPPY, "err": e},
            )

    def _request(self, change: ServerChange) -> Request:
        verb, virtual, settings, real, weight, limit = change
        if real is None:
            if verb == "delete":
                return self._ipvs.delete(virtual)
            assert settings is not None
            return (self._ipvs.add if verb == "add" else self._ipvs.edit)(virtual, settings)
        if verb == "delete":
            return self._ipvs.delete_real(virtual, real)
        return (self._ipvs.add_real if verb == "add" else self._ipvs.edit_real)(virtual, real, weight, limit)

    def headers(self) -> dict[str, Header]:
        """See `IPVSKernel`."""
        return self._sets.headers()

    def elements(self, name: str) -> set[Element]:
        """See `IPVSKernel`."""
        return self._sets.elements(name)

    def create_set(self, name: str, kind: str, limit: int) -> None:
        """See `IPVSKernel`."""
        self._sets.create(name, kind, self._domain, limit)

    def destroy_set(self, name: str) -> None:
        """See `IPVSKernel`."""
        self._sets.destroy(name)

    def swap_sets(self, one: str, other: str) -> None:
        """See `IPVSKernel`."""
        self._sets.swap(one, other)

    def add_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        """See `IPVSKernel`."""
        return dict(self._sets.add(name, elements))

    def delete_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        """See `IPVSKernel`."""
        return dict(self._sets.delete(name, elements))

    def addresses(self) -> set[bytes]:
        """See `IPVSKernel`."""
        index = self._machine.interface(names.INTERFACE)
        return {
            a.packed
            for a in self._machine.addresses()
            if a.interface == index and len(a.packed) == self._size
        }

    def bind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        """See `IPVSKernel`."""
        return dict(
            route.add_addresses(self._machine, route.ensure_dummy(self._machine, names.INTERFACE), addresses)
        )

    def unbind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        """See `IPVSKernel`."""
        index = self._machine.interface(names.INTERFACE)
        return dict(route.delete_addresses(self._machine, index, addresses)) if index else {}

    def close(self) -> None:
        """See `IPVSKernel`."""
        self._ipvs.close()
        self._sets.close()
