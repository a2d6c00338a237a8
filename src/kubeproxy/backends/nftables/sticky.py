"""Services with session affinity: the ones that have chains and sets of their own.

A set for each endpoint remembers its clients, so all fronts of a Service port share what is known of a
client, and what is known of an endpoint goes with it. A chain first asks each set for the client, then picks
any endpoint:

    ip saddr @affinity-E1 update @affinity-E1 { ip saddr } meta l4proto tcp dnat to E1
    ...
    numgen random mod 2 0 update @affinity-E1 { ip saddr } meta l4proto tcp dnat to E1
    update @affinity-E2 { ip saddr } meta l4proto tcp dnat to E2
    meta l4proto tcp dnat to E2                             (when the set is full)

Each new connection restarts the client's timeout. There are three chains at most: service-X for the endpoints
of the Cluster policy, local-X for those of the Local policy, external-X where external traffic enters.
"""

from typing import NamedTuple

from kubeproxy.api.addresses import join
from kubeproxy.api.rows import Protocol
from kubeproxy.backends.nftables import names
from kubeproxy.backends.nftables.chains import go_to, short_circuit
from kubeproxy.backends.nftables.statements import Rule, Statements
from kubeproxy.model.plan import FORWARD, PortPlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink.nft import expressions as x

CLIENTS = 65535
"""How many clients an endpoint's set can hold."""


class Own(NamedTuple):
    """The chains and sets of a Service port with affinity.

    Attributes:
        internal: the chain for its ClusterIP, "" for none.
        external: the chain for its external fronts, "" for none.
        chains: all its chains and their rules.
        sets: its sets, each with the milliseconds a client is remembered.
    """

    internal: str
    external: str
    chains: dict[str, list[Rule]]
    sets: dict[str, int]


def own_objects(port: PortPlan, statements: Statements) -> Own:
    """The chains and sets of a Service port."""
    base = names.port(port.name, port.protocol)
    service, local, external = f"service-{base}", f"local-{base}", f"external-{base}"
    chains: dict[str, list[Rule]] = {}
    sets: dict[str, str] = {}
    for endpoint in port.endpoints:
        sets[join(endpoint.address, endpoint.port)] = (
            f"affinity-{names.endpoint(port.name, port.protocol, endpoint.address, endpoint.port)}"
        )
    if port.cluster:
        chains[service] = _balance(port.protocol, port.cluster, sets, statements)
    if port.local:
        chains[local] = _balance(port.protocol, port.local, sets, statements)
    if port.external and port.any:
        if port.external_local:
            chains[external] = short_circuit(statements, go_to(service))
            if port.local:
                chains[external].append(Rule((go_to(local),)))
        else:
            chains[external] = [Rule((*statements.mark(), go_to(service)), "masquerade")]
    internal = local if port.internal_local else service
    return Own(
        internal=internal if port.internal_action == FORWARD else "",
        external=external if external in chains else "",
        chains=chains,
        sets=dict.fromkeys(sets.values(), 1000 * port.affinity),
    )


def _balance(
    protocol: Protocol, endpoints: tuple[Endpoint, ...], sets: dict[str, str], statements: Statements
) -> list[Rule]:
    known, fresh = [], []
    for i, endpoint in enumerate(endpoints):
        clients = sets[join(endpoint.address, endpoint.port)]
        send = statements.send(protocol, endpoint.address, endpoint.port)
        remember = x.update(clients, 0)
        known.append(Rule((statements.source(0), x.lookup(clients, 0), remember, *send)))
        left = len(endpoints) - i
        chance = (x.number(0, left), x.compare(0, bytes(4))) if left > 1 else ()
        fresh.append(Rule((*chance, statements.source(0), remember, *send)))
    return [*known, *fresh, Rule(send)]
