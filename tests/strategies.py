"""Random clusters: Services, EndpointSlices, and the order in which they are received.

The universe is small on purpose, so that things meet: few names, addresses and ports. What the API server would
refuse is generated, too, where a folder of manifests can say it: two Services with one address or one node port.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.model.distribution import BalancingSupport
from kubeproxy.model.node import LocalTraffic, NodeConfig
from kubeproxy.model.plan import Key
from kubeproxy.model.state import State

NODE, OTHER_NODE = "here", "there"
ZONES = ("z1", "z2")
KEYS: Sequence[Key] = tuple(
    (namespace, name) for namespace in ("default", "shop") for name in ("web", "web-2", "db")
)
PORT_NAMES = ("http", "dns", "a")
CLUSTER_IPS = {
    IPV4: [f"10.96.0.{i}" for i in range(10, 18)],
    IPV6: [f"fd00:10:96::{i:x}" for i in range(10, 18)],
}
EXTERNAL_IPS = ("203.0.113.1", "203.0.113.2", "192.0.2.1", "2001:db8:203::1", "2001:db8:2::1")
RANGES = (
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.0.0.0/9",
    "10.128.0.0/9",
    "198.51.100.7/32",
    "192.0.2.0/24",
    "2001:db8::/32",
    "2001:db8::/33",
    "0.0.0.0/0",
    "::/0",
)
ENDPOINTS = {
    IPV4: [f"10.244.{net}.{host}" for net in (1, 2) for host in (11, 12, 13)],
    IPV6: [f"fd00:10:244:{net}::{host:x}" for net in (1, 2) for host in (11, 12, 13)],
}


ONLY_RANDOM = BalancingSupport()


class Gone(NamedTuple):
    """Word that an object is gone."""

    kind: str
    namespace: str
    name: str


Event = types.Service | types.EndpointSlice | Gone


def tell(state: State, event: Event) -> set[Key]:
    """Passes the events to a state; returns the Services it calls touched."""
    return set(state.gone(*event) if isinstance(event, Gone) else state.set(event))


def _some(pool: Sequence[str], most: int = 2) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(pool), max_size=most, unique=True).map(tuple)


def _families() -> st.SearchStrategy[tuple[Family, ...]]:
    return st.sampled_from([(IPV4,), (IPV4, IPV6), (IPV6,)])


@st.composite
def _ports(draw: st.DrawFn, *, node_ports: bool) -> tuple[types.ServicePort, ...]:
    names = draw(st.lists(st.sampled_from(PORT_NAMES), min_size=1, max_size=2, unique=True))
    if len(names) == 1 and draw(st.booleans()):
        names = [""]
    numbers = draw(
        st.lists(st.sampled_from([80, 443, 53]), min_size=len(names), max_size=len(names), unique=True)
    )
    return tuple(
        types.ServicePort(
            port=number,
            name=name,
            protocol=draw(st.sampled_from(["TCP", "TCP", "UDP", "SCTP"])),
            node_port=draw(st.integers(30000, 30005)) if node_ports else 0,
        )
        for name, number in zip(names, numbers, strict=True)
    )


@st.composite
def services(draw: st.DrawFn, keys: Sequence[Key] = KEYS) -> types.Service:
    """A Service of any type, policy and family."""
    namespace, name = draw(st.sampled_from(keys))
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]))
    balanced = kind == "LoadBalancer"
    affinity = draw(st.sampled_from([None, None, 10800, 1, 86400]))
    ips = tuple(draw(st.sampled_from(CLUSTER_IPS[family])) for family in draw(_families()))
    policies = st.sampled_from(["Cluster", "Local"])
    external_policy = draw(policies) if kind != "ClusterIP" or draw(st.booleans()) else None
    ingress = draw(_some(EXTERNAL_IPS)) if balanced else ()
    sources = st.one_of(st.none(), _some(RANGES, 3).map(lambda ranges: ", ".join(ranges) or None))
    annotations = types.Annotations(
        allowed_sources=draw(sources),
        denied_sources=draw(sources),
        removed_endpoints=draw(st.sampled_from([None, "end-connections"])),
        balancing=draw(st.sampled_from([None, None, "maglev"])),
        maglev_hash=draw(st.sampled_from([None, "source-and-port"])),
        maglev_table_size="251",
        weights=draw(
            st.sampled_from([None, None, "*=2", f"node:{NODE}=3", f"node:{OTHER_NODE}=0, group:a=5"])
        ),
    )
    return types.Service(
        metadata=types.ObjectMeta(name=name, namespace=namespace, annotations=annotations),
        spec=types.ServiceSpec(
            ports=draw(_ports(node_ports=kind != "ClusterIP" and draw(st.booleans()))),
            type=kind,
            cluster_ip=ips[0],
            cluster_ips=ips,
            external_ips=draw(st.one_of(st.just(()), _some(EXTERNAL_IPS))),
            load_balancer_source_ranges=draw(st.one_of(st.just(()), _some(RANGES, 4))) if balanced else None,
            session_affinity="ClientIP" if affinity else "None",
            session_affinity_config=types.SessionAffinityConfig(types.ClientIPConfig(affinity))
            if affinity
            else None,
            external_traffic_policy=external_policy,
            internal_traffic_policy=draw(st.sampled_from([None, "Cluster", "Local"])),
            health_check_node_port=draw(st.sampled_from([0, 31000, 31001]))
            if balanced and external_policy == "Local"
            else 0,
        ),
        status=types.ServiceStatus(
            types.LoadBalancerStatus(tuple(types.LoadBalancerIngress(ip) for ip in ingress))
        )
        if ingress
        else None,
    )


_conditions = st.sampled_from(
    [
        None,
        None,
        types.EndpointConditions(ready=True, serving=True),
        types.EndpointConditions(ready=False, serving=True, terminating=True),
        types.EndpointConditions(ready=False, serving=False, terminating=True),
        types.EndpointConditions(ready=False, serving=False),
    ]
)
_hints = st.one_of(
    st.none(),
    st.builds(
        types.EndpointHints,
        for_zones=st.one_of(st.none(), _some(ZONES).map(lambda names: tuple(map(types.Hint, names)))),
        for_nodes=st.one_of(
            st.none(), _some((NODE, OTHER_NODE)).map(lambda names: tuple(map(types.Hint, names)))
        ),
    ),
)


@st.composite
def slices(draw: st.DrawFn, keys: Sequence[Key] = KEYS) -> types.EndpointSlice:
    """An EndpointSlice of a Service; of the same name it may belong to another one next time."""
    namespace, service = draw(st.sampled_from(keys))
    family = draw(st.sampled_from([IPV4, IPV6]))
    addresses = draw(st.lists(st.sampled_from(ENDPOINTS[family]), max_size=4, unique=True))
    ports = draw(st.lists(st.sampled_from(["", *PORT_NAMES]), min_size=1, max_size=4, unique=True))
    return types.EndpointSlice(
        metadata=types.ObjectMeta(
            name=f"slice-{draw(st.integers(0, 5))}",
            namespace=namespace,
            labels=types.Labels(service=service, group=draw(st.sampled_from([None, "a"]))),
        ),
        address_type=family,
        endpoints=tuple(
            types.SliceEndpoint(
                addresses=(address,),
                conditions=draw(_conditions),
                node_name=draw(st.sampled_from([NODE, OTHER_NODE, None])),
                hints=draw(_hints),
            )
            for address in addresses
        ),
        ports=tuple(
            types.EndpointPort(
                name, draw(st.sampled_from([8080, 53])), draw(st.sampled_from(["TCP", "UDP", "SCTP"]))
            )
            for name in ports
        ),
    )


def _gone() -> st.SearchStrategy[Gone]:
    some_service = st.sampled_from(KEYS).map(lambda key: Gone("Service", *key))
    some_slice = st.builds(
        Gone,
        st.just("EndpointSlice"),
        st.sampled_from(sorted({namespace for namespace, _ in KEYS})),
        st.integers(0, 5).map(lambda i: f"slice-{i}"),
    )
    return st.one_of(some_service, some_slice)


def events() -> st.SearchStrategy[Event]:
    """Events: objects are added and changed more often than deleted."""
    return st.one_of(services(), services(), slices(), slices(), slices(), _gone())


def histories(most: int = 8) -> st.SearchStrategy[list[list[Event]]]:
    """Events of a cluster in batches, each of which is to be followed by a sync."""
    return st.lists(st.lists(events(), min_size=1, max_size=6), min_size=1, max_size=most)


RIVALS = KEYS[1:4]
"""Two of one namespace, and one of another, whose names do not come in the order of the namespaces."""

_CONTESTED = {
    IPV4: [*CLUSTER_IPS[IPV4][:2], "203.0.113.1", "192.0.2.1"],
    IPV6: [*CLUSTER_IPS[IPV6][:2], "2001:db8:203::1", "2001:db8:2::1"],
}


@st.composite
def _rivals(draw: st.DrawFn) -> types.Service:
    """A Service in a universe so small that it names fronts of others nearly always."""
    namespace, name = draw(st.sampled_from(RIVALS))
    families = draw(_families())
    pool = [address for family in families for address in _CONTESTED[family]]
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    policy = draw(st.sampled_from(["Cluster", "Local"]))
    given = draw(
        st.sampled_from([[(80, "TCP")], [(80, "TCP"), (30000, "TCP")], [(80, "UDP"), (30000, "TCP")]])
    )
    ports = tuple(
        types.ServicePort(
            number,
            "ab"[i] if len(given) > 1 else "",
            protocol,
            0 if kind == "ClusterIP" else draw(st.sampled_from([0, 30000, 30001])),
        )
        for i, (number, protocol) in enumerate(given)
    )
    ips = tuple(draw(st.sampled_from(CLUSTER_IPS[family][:2])) for family in families)
    spec = types.ServiceSpec(
        ports=ports,
        type=kind,
        cluster_ip=ips[0],
        cluster_ips=ips,
        external_ips=draw(_some(pool)),
        load_balancer_source_ranges=draw(st.sampled_from([(), ("10.0.0.0/8", "2001:db8::/32")])),
        external_traffic_policy=policy,
        internal_traffic_policy=draw(st.sampled_from(["Cluster", "Local"])),
        health_check_node_port=draw(st.sampled_from([0, 30000, 31000])) if policy == "Local" else 0,
    )
    ingress = draw(_some(pool)) if kind == "LoadBalancer" else ()
    balancers = types.LoadBalancerStatus(tuple(types.LoadBalancerIngress(ip) for ip in ingress))
    return types.Service(
        types.ObjectMeta(name=name, namespace=namespace), spec, types.ServiceStatus(balancers)
    )


def _endpoints_of_rivals() -> st.SearchStrategy[list[types.EndpointSlice]]:
    """A slice of each family for some of them, with endpoints of its own for all ports."""
    found = [
        types.EndpointSlice(
            types.ObjectMeta(name=f"{name}-{family}", namespace=namespace, labels=types.Labels(service=name)),
            address_type=family,
            endpoints=(types.SliceEndpoint((ENDPOINTS[family][i],), node_name=NODE),),
            ports=tuple(
                types.EndpointPort(port, 8080, protocol)
                for port in ("", "a", "b")
                for protocol in ("TCP", "UDP")
            ),
        )
        for i, (namespace, name) in enumerate(RIVALS)
        for family in (IPV4, IPV6)
    ]
    return st.lists(st.sampled_from(found), min_size=4, max_size=6, unique_by=lambda s: s.metadata.name)


@st.composite
def contests(draw: st.DrawFn, most: int = 8) -> list[list[Event]]:
    """A history of Services that name the same fronts, after their endpoints were received."""
    gone = st.sampled_from(RIVALS).map(lambda key: Gone("Service", *key))
    some = st.lists(st.one_of(_rivals(), _rivals(), _rivals(), gone), min_size=1, max_size=4)
    first: list[Event] = [*draw(_endpoints_of_rivals())]
    return [first, *map(list[Event], draw(st.lists(some, min_size=1, max_size=most)))]


@st.composite
def nodes(draw: st.DrawFn, family: Family = IPV4, balancing: BalancingSupport = ONLY_RANDOM) -> NodeConfig:
    """A node under a family, with any way to detect local traffic and any node port addresses."""
    ipv4 = family == IPV4
    traffic = draw(
        st.sampled_from(
            [
                None,
                LocalTraffic("range", "10.244.0.0/16" if ipv4 else "fd00:10:244::/48"),
                LocalTraffic("range", "0.0.0.0/0" if ipv4 else "::/0"),
                LocalTraffic("interface", "cni0"),
                LocalTraffic("prefix", "cali"),
            ]
        )
    )
    address = "192.0.2.1" if ipv4 else "2001:db8:2::1"
    ranged = draw(st.booleans())
    return NodeConfig(
        family=family,
        name=NODE,
        zone=draw(st.sampled_from(["", *ZONES])),
        address=address,
        local_traffic=traffic,
        masquerade_all=draw(st.booleans()),
        masquerade_mark=1 << draw(st.sampled_from([0, 14, 31])),
        node_port_ranges=(f"{address}/{32 if ipv4 else 128}",) if ranged else (),
        node_port_addresses=(address,) if ranged else (),
        localhost_node_ports=ipv4 and not ranged and draw(st.booleans()),
        counters=draw(st.booleans()),
        balancing=balancing,
    )
