"""Many ports at one socket: the kernel steers their clients to it, so that they need no sockets of their own.

Where the kernel has no such program, or rights are missing, each port has a socket, as elsewhere. A port that
another program has is not taken from it.
"""

import errno
import logging
import socket
from typing import TYPE_CHECKING

from kubeproxy.relay import sockets
from kubeproxy.relay.sockets import Span

if TYPE_CHECKING:
    from kubeproxy.linux.bpf.steer import Steering
    from kubeproxy.relay.control import Relay

log = logging.getLogger(__name__)


class SteeredPort:
    """A port whose clients are steered to a socket; in place of a socket that listens there.

    Attributes:
        gate: the socket.
    """

    def __init__(self, steered: "SteeredPorts", gate: socket.socket, address: str, port: int) -> None:
        """Nothing is steered before `sent`.

        Args:
            steered: what steers.
            gate: the socket.
            address: the address of the port.
            port: the port.
        """
        self.gate = gate
        self._steered = steered
        self._at = address, port

    def getsockname(self) -> tuple[str, int]:
        """Its address and port."""
        return self._at

    def sent(self) -> None:
        """The relay process knows the port: clients may come."""
        self._steered.steer(self, self._at)

    def close(self) -> None:
        """Clients do not come any more."""
        self._steered.forget(self, self._at)

    @property
    def udp(self) -> bool:
        """Whether its clients send datagrams."""
        return self.gate.type == socket.SOCK_DGRAM


class SteeredPorts:
    """The ports of a relay whose clients are steered to one socket for each protocol."""

    def __init__(self, relay: "Relay") -> None:
        """Nothing is done before the first port.

        Args:
            relay: the relay; it makes the sockets where nothing can be steered.
        """
        self._relay = relay
        self._steering: Steering | None = None
        self._gates: dict[bool, socket.socket] = {}
        self._ports: set[SteeredPort] = set()
        self._most = 0
        self._tried = False

    @property
    def gates(self) -> int:
        """How many sockets have the clients of all ports."""
        return len(self._gates)

    def bind(self, address: str, ports: Span, *, udp: bool) -> socket.socket | SteeredPort:
        """See `Relay.bind`: what stands for a port, for `Relay.open`.

        Raises:
            OSError: another program has the port.
        """
        gate = self._gate(address, udp=udp) if len(self._ports) < self._most or not self._tried else None
        if gate is None:
            return self._relay.bind(address, ports, udp=udp)
        try:
            sockets.reusing(self._relay.machine, address, ports[0], udp=udp).close()
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                raise
            return self._relay.bind(address, ports, udp=udp)  # another relay may have a socket there
        made = SteeredPort(self, gate, address, ports[0])
        self._ports.add(made)
        return made

    def steer(self, port: SteeredPort, at: tuple[str, int]) -> None:
        """Steers the clients of a port."""
        if self._steering is None or port not in self._ports:
            return
        try:
            self._steering.add(*at, udp=port.udp)
        except OSError as e:
            log.error(  # noqa: TRY400 the message is complete
                "%(relay)s: cannot steer clients of port %(port)d: %(err)s",
                {"relay": self._relay.name, "port": at[1], "err": e},
            )

    def forget(self, port: SteeredPort, at: tuple[str, int]) -> None:
        """Steers the clients of a port no longer."""
        if port in self._ports:
            self._ports.discard(port)
            if self._steering is not None:
                self._steering.remove(*at, udp=port.udp)

    def close(self) -> None:
        """Ends it, with all ports."""
        self._ports.clear()
        if self._steering is not None:
            self._steering.close()
            self._steering = None
        for gate in self._gates.values():
            gate.close()

    def _gate(self, address: str, *, udp: bool) -> socket.socket | None:
        """The socket of a protocol; None if nothing can be steered to it."""
        if not self._tried:
            self._tried = True
            self._begin(address)
        if self._steering is None:
            return None
        if udp not in self._gates:
            gate = sockets.gate(self._relay.machine, address, udp=udp)
            try:
                self._steering.use(gate)
            except OSError:
                gate.close()
                raise
            self._gates[udp] = gate
        return self._gates[udp]

    def _begin(self, address: str) -> None:
        """Lets the kernel steer, if it can."""
        domain = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            host = self._relay.machine.bpf()
            from kubeproxy.linux.bpf import steer

            self._steering = steer.Steering(host, domain)
            self._most = steer.MOST
        except OSError as e:
            log.info(
                "%(relay)s: each port has a socket of its own, because clients cannot be steered to one (sk_lookup): %(err)s",
                {"relay": self._relay.name, "err": e.strerror or str(e)},
            )
