"""The sockets of a relay that rules lead to, and the plans that lead there.

For each Service port there is a socket for the Cluster policy and one for the Local policy, as far as some
traffic has it and endpoints are there. A full sync opens what is missing before the rules change, and changes
or closes the rest afterwards. So a Service whose sockets cannot be opened, or whose rules are refused, keeps
what it had.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from kubeproxy.backends import relayed
from kubeproxy.backends.base import Change
from kubeproxy.backends.relayed import RelaySocket
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan, fronts_of, without_fronts
from kubeproxy.model.select import Endpoint
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.values import Listener

SocketName = tuple[str, str, str, str]
"""Address, name of the Service port, its protocol, the policy."""


class KnownSockets:
    """The sockets of a relay, as another process than the one that opened them knows them.

    Attributes:
        sockets: the sockets.
    """

    def __init__(self, sockets: Iterable[RelaySocket]) -> None:
        self.sockets = [each for each in sockets if each.policy]
        self._ports = {(each.listener.group, each.policy): each.port for each in self.sockets}

    def port(self, port: PortPlan, policy: str) -> int:
        """The port of the socket of a Service port; 0 if there is none."""
        return self._ports.get((relayed.group(port), policy), 0)

    def address(self, other: str) -> str:
        """The address that the sockets are on, or another one if there are none."""
        return self.sockets[0].address if self.sockets else other

    def lead(self, plans: Mapping[Key, ServicePlan], other: str) -> dict[Key, ServicePlan]:
        """The plans with sockets in place of endpoints; see `address` for `other`."""
        address = self.address(other)
        return {key: lead(plan, address, self.port) for key, plan in plans.items()}


class LedSockets:
    """The sockets of all Services of one IP family.

    Attributes:
        doors: the sockets.
        refused: Services that were refused by the last full sync.
    """

    def __init__(self, doors: Doors[SocketName]) -> None:
        self.doors = doors
        self.refused: frozenset[Key] = frozenset()
        self._address = ""
        self._led: dict[Key, ServicePlan] = {}

    def listed(self) -> list[RelaySocket]:
        """The sockets that are open."""
        return [
            RelaySocket(name[-1], door.address, door.port, door.listener) for name, door in self.doors.items()
        ]

    def copy(self, relay: Relay) -> "LedSockets":
        """The same with another relay that has the same listeners."""
        other = LedSockets(self.doors.copy(relay))
        other._led, other._address = dict(self._led), self._address
        return other

    def begin(
        self, node: NodeConfig, address: str, plans: Mapping[Key, ServicePlan]
    ) -> tuple[dict[Key, ServicePlan], dict[Key, str]]:
        """Opens the sockets that are missing; what is open stays as it is.

        Args:
            node: the node.
            address: the address of the node to listen on.
            plans: the plans of all Services.

        Returns:
            The plans that lead to sockets, and the Services that did not get theirs, of which the former plan
            is meant.
        """
        self._address = address
        led: dict[Key, ServicePlan] = {}
        failures: dict[Key, str] = {}
        for key, plan in plans.items():
            try:
                self.open(node, plan)
            except OSError as e:
                failures[key] = str(e)
            else:
                led[key] = self.led_plan(plan)
        if failures:
            owners = {front: key for key, plan in plans.items() for front in fronts_of(plan)}
            for key in failures:
                if (had := self._led.get(key)) is not None:
                    gone = [front for front in fronts_of(had) if owners.get(front, key) != key]
                    led[key] = without_fronts(had, gone)
        return led, failures

    def finish(
        self,
        led: dict[Key, ServicePlan],
        plans: Mapping[Key, ServicePlan],
        failures: Collection[Key],
        refused: Collection[Key] = (),
    ) -> None:
        """When the rules are in place: what is open is changed, and closed where no rule leads to it.

        Args:
            led: the plans that lead to sockets, see `begin`.
            plans: the plans of all Services.
            failures: the Services that did not get their sockets.
            refused: the Services whose rules were refused.
        """
        for key in refused:
            # Its rules lead to where they led before, if there were any.
            if key not in failures and (had := self._led.get(key)) is not None:
                led[key] = had
            elif key not in failures:
                led.pop(key, None)
        for key, plan in plans.items():
            if key not in failures and key not in refused:
                for door, listener in self._listeners(plan):
                    self.doors.change(door, listener)
        self._led, self.refused = led, frozenset((*failures, *refused))
        self.doors.close(self.doors.names - {door for plan in led.values() for door in _doors_of(plan)})

    def open(self, node: NodeConfig, plan: ServicePlan | None) -> list[SocketName]:
        """Opens the sockets of a Service that are missing: all or none; returns which.

        Raises:
            OSError: one cannot be opened; the message names it.
        """
        span = node.relay_ports
        try:
            return self.doors.open_all(
                (door, listener, self._address, span) for door, listener in self._listeners(plan)
            )
        except OSError as e:
            assert plan is not None
            ports = ", ".join(dict.fromkeys(port.name for port in plan.ports))
            raise OSError(f"no socket on {self._address} for {ports}: {e.strerror or e}") from e

    def _listeners(self, plan: ServicePlan | None) -> Iterator[tuple[SocketName, Listener]]:
        for port, policy, listener in wanted(plan) if plan is not None else ():
            yield (self._address, port.name, port.protocol, policy), listener

    def changed(self, changes: Sequence[Change], led: Sequence[Change]) -> None:
        """Some Services have changed, in the rules, too.

        Args:
            changes: the changes.
            led: the same with sockets in place of endpoints.
        """
        wanted = {name: listener for c in changes for name, listener in self._listeners(c.after)}
        for name, listener in wanted.items():
            self.doors.change(name, listener)
        self.doors.close({name for c in changes for name, _ in self._listeners(c.before)} - wanted.keys())
        for c in led:
            if c.after is None:
                self._led.pop(c.key, None)
            else:
                self._led[c.key] = c.after

    def led_plan(self, plan: ServicePlan) -> ServicePlan:
        """The plan with the relay's sockets in place of endpoints. A port without them is left out."""
        ports = tuple(port for port in plan.ports if self._complete(port))
        return lead(replace(plan, ports=ports), self._address, self._port)

    def _port(self, port: PortPlan, policy: str) -> int:
        return self.doors.port((self._address, port.name, port.protocol, policy))

    def _complete(self, port: PortPlan) -> bool:
        """Whether a port has the sockets that it needs."""
        return port.protocol not in relayed.RELAYED or not (
            (port.cluster and not self._port(port, "cluster"))
            or (port.local and not self._port(port, "local"))
        )


def wanted(plan: ServicePlan) -> Iterator[tuple[PortPlan, str, Listener]]:
    """The sockets that a Service needs: each with its port and traffic policy."""
    for port in plan.ports:
        if port.protocol in relayed.RELAYED:
            for policy, endpoints, distribution in (
                ("cluster", port.cluster, port.cluster_distribution),
                ("local", port.local, port.local_distribution),
            ):
                if endpoints:
                    choice = relayed.choice(endpoints, distribution)
                    yield port, policy, relayed.listener(plan, port, choice, translated=True, header=True)


def lead(plan: ServicePlan, address: str, socket: Callable[[PortPlan, str], int]) -> ServicePlan:
    """The plan with sockets in place of endpoints.

    Args:
        plan: the plan.
        address: the address that the relay listens on.
        socket: the port of the socket of a Service port for a traffic policy.
    """

    def led(port: PortPlan) -> PortPlan:
        if port.protocol not in relayed.RELAYED:
            return port
        cluster = (Endpoint(address, socket(port, "cluster")),) if port.cluster else ()
        local = (Endpoint(address, socket(port, "local")),) if port.local else ()
        return replace(
            port,
            affinity=0,
            cluster=cluster,
            local=local,
            serving=cluster + local if port.protocol == "UDP" else (),
            known_endpoints=0,
            topology="",
            cluster_distribution=None,
            local_distribution=None,
        )

    return replace(plan, ports=tuple(map(led, plan.ports)))


def _doors_of(led: ServicePlan) -> Iterator[SocketName]:
    """The sockets that a plan leads to."""
    for port in led.ports:
        if port.protocol in relayed.RELAYED:
            for policy, at in (("cluster", port.cluster), ("local", port.local)):
                for endpoint in at:
                    yield endpoint.address, port.name, port.protocol, policy
