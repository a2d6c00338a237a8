"""The sockets of a relay that rules lead to, and the plans that lead there.

For each Service port there is a socket for the Cluster policy and one for the Local policy, as far as some
traffic has it and endpoints are there. A full sync opens what is missing before the rules change, and changes
or closes the rest afterwards. So a Service whose sockets cannot be opened, or whose rules are refused, keeps
what it had.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from msgspec.structs import replace

from kubeproxy.backends import relayed
from kubeproxy.backends.base import Change
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan, fronts_of, without_fronts
from kubeproxy.model.select import Endpoint
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.values import Listener

SocketName = tuple[str, str, str, str]
"""Address, name of the Service port, its protocol, the policy."""


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
        for port in plan.ports if plan else ():
            if port.protocol in relayed.RELAYED:
                for policy, endpoints in (("cluster", port.cluster), ("local", port.local)):
                    if endpoints:
                        assert plan is not None
                        choice = relayed.anybody(endpoints)
                        yield (
                            (self._address, port.name, port.protocol, policy),
                            relayed.listener(plan, port, choice, translated=True, header=True),
                        )

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
        ports = [
            port if port.protocol not in relayed.RELAYED else self._led_port(port) for port in plan.ports
        ]
        return replace(plan, ports=tuple(port for port in ports if port is not None))

    def _led_port(self, port: PortPlan) -> PortPlan | None:
        at = {
            policy: self.doors.port((self._address, port.name, port.protocol, policy))
            for policy in ("cluster", "local")
        }
        if (port.cluster and not at["cluster"]) or (port.local and not at["local"]):
            return None
        cluster = (Endpoint(self._address, at["cluster"]),) if port.cluster else ()
        local = (Endpoint(self._address, at["local"]),) if port.local else ()
        return replace(
            port,
            affinity=0,
            cluster=cluster,
            local=local,
            serving=cluster + local if port.protocol == "UDP" else (),
            known_endpoints=0,
            topology="",
        )


def _doors_of(led: ServicePlan) -> Iterator[SocketName]:
    """The sockets that a plan leads to."""
    for port in led.ports:
        if port.protocol in relayed.RELAYED:
            for policy, at in (("cluster", port.cluster), ("local", port.local)):
                for endpoint in at:
                    yield endpoint.address, port.name, port.protocol, policy
