"""Services with session affinity: each endpoint has a set that remembers its clients.

So all fronts of a Service port share what is known of a client, and what is known of an endpoint goes with
it. A chain first asks each set for the client, then picks any endpoint:

    ip saddr @affinity-E1 update @affinity-E1 { ip saddr } meta l4proto tcp dnat to E1
    ...
    numgen random mod 2 0 update @affinity-E1 { ip saddr } meta l4proto tcp dnat to E1
    update @affinity-E2 { ip saddr } meta l4proto tcp dnat to E2
    meta l4proto tcp dnat to E2                             (when the set is full)

Each new connection restarts the client's timeout. The chains are those of `own`.
"""

from kubeproxy.api.addresses import join
from kubeproxy.backends.nftables import names
from kubeproxy.backends.nftables.statements import Rule, Statements
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.plan import PortPlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink.nft import expressions as x

CLIENTS = 65535
"""How many clients an endpoint's set can hold."""


def sets(port: PortPlan, endpoints: tuple[Endpoint, ...]) -> dict[str, str]:
    """The names of the sets of endpoints, by address and port."""
    return {
        join(each.address, each.port): (
            f"affinity-{names.endpoint(port.name, port.protocol, each.address, each.port)}"
        )
        for each in endpoints
    }


def balance(
    port: PortPlan, endpoints: tuple[Endpoint, ...], distribution: Distribution | None, statements: Statements
) -> list[Rule]:
    """The rules of a chain that sends to one of some endpoints."""
    known, fresh = [], []
    remembering = sets(port, endpoints)
    weights = (distribution.weights if distribution is not None else ()) or (1,) * len(endpoints)
    left = sum(weights)
    for endpoint, weight in zip(endpoints, weights, strict=True):
        clients = remembering[join(endpoint.address, endpoint.port)]
        send = statements.send(port.protocol, endpoint.address, endpoint.port)
        remember = x.update(clients, 0)
        known.append(Rule((statements.source(0), x.lookup(clients, 0), remember, *send)))
        chance = statements.chance(weight, left)
        fresh.append(Rule((*chance, statements.source(0), remember, *send)))
        left -= weight
    return [*known, *fresh, Rule(send)]
