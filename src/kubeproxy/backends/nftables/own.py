"""Services that have chains of their own: those with session affinity, and those with Maglev hashing.

There are three chains at most: service-X for the endpoints of the Cluster policy, local-X for those of the
Local policy, external-X where external traffic enters. With affinity, the first two are as in `sticky`. With
Maglev hashing, each has one rule that looks up a table of its own, which all fronts of the port share:

    meta l4proto tcp dnat ip to jhash ip saddr mod 1021 seed 0x0 map @maglev-1021-X
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from kubeproxy.backends.nftables import names, sticky
from kubeproxy.backends.nftables.chains import go_to, short_circuit
from kubeproxy.backends.nftables.statements import Rule, Statements
from kubeproxy.model import maglev
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.plan import FORWARD, PortPlan
from kubeproxy.model.select import Endpoint


class SlotTable(NamedTuple):
    """A table of Maglev hashing.

    Attributes:
        endpoints: the endpoints.
        slots: for each slot the index of its endpoint.
    """

    endpoints: tuple[Endpoint, ...]
    slots: memoryview


class Own(NamedTuple):
    """The objects of its own that a Service port has.

    Attributes:
        internal: the chain for its ClusterIP, "" for none.
        external: the chain for its external fronts, "" for none.
        chains: all its chains and their rules.
        sets: its sets of clients, each with the milliseconds a client is remembered.
        tables: its tables of Maglev hashing, by the names of their maps.
    """

    internal: str
    external: str
    chains: Mapping[str, list[Rule]]
    sets: Mapping[str, int]
    tables: Mapping[str, SlotTable]


NONE: Final = Own("", "", {}, {}, {})


def own_objects(port: PortPlan, statements: Statements) -> Own:
    """The objects of its own that a Service port has; nearly all have none."""
    if not port.any or not (port.affinity or _is_hashed(port)):
        return NONE
    base = names.port(port.name, port.protocol)
    service, local, external = f"service-{base}", f"local-{base}", f"external-{base}"
    chains: dict[str, list[Rule]] = {}
    sets: dict[str, int] = {}
    tables: dict[str, SlotTable] = {}
    for chain, endpoints, distribution in (
        (service, port.cluster, port.cluster_distribution),
        (local, port.local, port.local_distribution),
    ):
        if not endpoints:
            continue
        if port.affinity:
            sets |= dict.fromkeys(sticky.sets(port, endpoints).values(), 1000 * port.affinity)
            chains[chain] = sticky.balance(port, endpoints, distribution, statements)
        elif distribution is not None:
            size = distribution.table_size
            name = names.table(port.name, port.protocol, size, local=chain == local)
            tables[name] = SlotTable(endpoints, maglev.table(endpoints, distribution.weights, size))
            hashed = statements.pick_hashed(port.protocol, name, size, with_port=distribution.by_port)
            chains[chain] = [Rule(hashed)]
    if port.external:
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
        sets=sets,
        tables=tables,
    )


def _is_hashed(port: PortPlan) -> bool:
    return any(_has_table(each) for each in (port.cluster_distribution, port.local_distribution))


def _has_table(distribution: Distribution | None) -> bool:
    return distribution is not None and distribution.table_size > 0
