"""Tracked flows that lead to removed endpoints, or that were not translated although there are endpoints."""

import socket
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import IPV4, join, pack, unpack
from kubeproxy.machine.base import Machine
from kubeproxy.model import flows
from kubeproxy.model.flows import Fronts, Place
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.netlink import conntrack
from kubeproxy.netlink.conntrack import ConntrackFlow
from kubeproxy.protocols import NAMES, SCTP, TCP, UDP

OVER: Final = frozenset({"TIME_WAIT", "CLOSE"})
"""States of TCP connections that have ended."""


class StaleFlow(Struct, frozen=True, gc=False, rename="camel"):
    """A tracked flow that leads to no endpoint of its Service.

    Attributes:
        service: namespace/name.
        protocol: its protocol.
        client: where its packets come from.
        front: where they are sent to.
        endpoint: where they are translated to; the front if they are not.
        state: the state of the flow.
        ends: it ends by itself, because its client sees that nothing answers; kube-proxy does not delete it.
    """

    service: str
    protocol: str
    client: str
    front: str
    endpoint: str
    state: str
    ends: bool


def stale(
    snapshot: Snapshot, machine: Machine, node: NodeConfig, plans: Mapping[Key, ServicePlan]
) -> list[StaleFlow]:
    """Lists the stale flows of a family.

    Raises:
        OSError: the kernel has no ctnetlink, or we lack CAP_NET_ADMIN.
    """
    judge = _FlowJudge(snapshot, node, plans)
    family = socket.AF_INET if node.family == IPV4 else socket.AF_INET6
    found = []
    for protocol in sorted({protocol for protocol, _ in judge.owners}):
        for flow in conntrack.flows(machine, family, protocol):
            owners = judge.owners_of(flow)
            if owners and judge.is_stale(flow, owners):
                found.append(_shown(flow, owners[0][0]))
    return found


class _FlowJudge:
    """Decides for a flow. `owners` has the Services and ports of each front.

    In a mode with a relay flows lead to the sockets of the relay, and no others.
    """

    def __init__(self, snapshot: Snapshot, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> None:
        self._snapshot, self._node = snapshot, node
        self._own = frozenset(pack(address) for address in snapshot.local_addresses[node.family])
        self._datagrams = Fronts()
        self._known: dict[Key, frozenset[Place]] = {}
        lead = snapshot.mode.lead
        if lead is not None:
            plans = lead(plans, node, snapshot.sockets_of(node.family) or ())
            self._known = {
                key: frozenset(flows.place(e.address, e.port) for port in plan.ports for e in port.endpoints)
                for key, plan in plans.items()
            }
        self.owners: dict[tuple[int, Place], list[tuple[Key, PortPlan]]] = {}
        for key, plan in plans.items():
            self._datagrams.set(key, plan)
            for port in plan.ports:
                for front in flows.fronts(port):
                    self.owners.setdefault((_NUMBERS[port.protocol], front), []).append((key, port))

    def owners_of(self, flow: ConntrackFlow) -> Sequence[tuple[Key, PortPlan]]:
        """The Service ports that a flow is for."""
        protocol, destination = flow.protocol, flow.destination
        found = self.owners.get((protocol, destination))
        if found is None and self._local(destination[:-2]):
            found = self.owners.get((protocol, destination[-2:]))
        return found or ()

    def is_stale(self, flow: ConntrackFlow, owners: Sequence[tuple[Key, PortPlan]]) -> bool:
        """Whether a flow leads to no endpoint."""
        if flow.protocol != TCP:
            return self._datagrams.is_stale(flow, self._local)
        if flow.state in OVER:
            return False
        if flow.source == flow.destination:
            return (
                flow.zone == 0 and flow.unanswered and any(port.cluster or port.local for _, port in owners)
            )
        return not any(flow.source in self._endpoints(key) for key, _ in owners)

    def _endpoints(self, key: Key) -> frozenset[Place]:
        """All endpoints of a Service, whatever their state: connections to terminating ones may end."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = frozenset(
                flows.place(each.address, port.port)
                for row in self._snapshot.state.slices(key)
                if row.family == self._node.family
                for each in row.endpoints
                for port in row.ports
            )
        return found

    def _local(self, address: bytes) -> bool:
        here = address in self._own or (len(address) == 4 and address[0] == 127)
        return here and self._node.serves_node_ports(unpack(address))


_NUMBERS: Final = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}


def _shown(flow: ConntrackFlow, key: Key) -> StaleFlow:
    state = flow.state
    return StaleFlow(
        "/".join(key),
        NAMES[flow.protocol],
        _place(flow.client),
        _place(flow.destination),
        _place(flow.source),
        state,
        ends=flow.protocol == TCP and not flow.unanswered,
    )


def _place(place: Place) -> str:
    return join(unpack(place[:-2]), int.from_bytes(place[-2:]))
