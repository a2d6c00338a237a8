"""Any combination of what a Service can ask for: its load balancers are those of the reference's rules.

The rules are written down here once more, from the behaviour of the reference and the deviations that are
wanted: from the objects of Kubernetes, without plans.
"""

from collections import Counter
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.windows.fake_profiles import WS2025
from kubeproxy.windows.values import HnsVersion
from tests.fakes.cluster import service
from tests.fakes.hns import ADDRESSES, SOURCE_VIP, WindowsNode, show

READY, WAITING, DRAINING, GONE = (
    types.EndpointConditions(ready, serving, terminating)
    for ready, serving, terminating in (
        (True, True, False),
        (False, False, False),
        (False, True, True),
        (False, False, True),
    )
)
SUPPORTS_ALL, NO_AFFINITY, NO_DSR = HnsVersion(15, 5), HnsVersion(11, 10), HnsVersion(9, 2)
HOST = {IPV4: "10.244.1.2", IPV6: "fd00:10:244:1::2"}
POD = {IPV4: "10.244.{node}.{number}", IPV6: "fd00:10:244:{node}::{number}"}
PUBLIC = {IPV4: "203.0.113.{number}", IPV6: "2001:db8:9::{number}"}
CLUSTER_IP = {IPV4: "10.96.0.10", IPV6: "fd00:10:96::a"}
INGRESS = {IPV4: ("198.51.100.11", "198.51.100.12"), IPV6: ("2001:db8:51::11", "2001:db8:51::12")}
EXTERNAL = {IPV4: ("198.51.100.1",), IPV6: ("2001:db8:51::1",)}
HEALTHZ, HEALTH_CHECK = 10256, 31000


class Pod(NamedTuple):
    """An endpoint, with its address left open."""

    local: bool
    public: bool
    conditions: types.EndpointConditions
    port: int


class Asked(NamedTuple):
    """A Service, its endpoints, and the node."""

    pods: list[Pod]
    node_port: bool
    external_ips: bool
    ingress: int
    internal_local: bool
    external_local: bool
    affinity: bool
    preserve: bool
    protocol: str
    overlay: bool
    dsr: bool
    version: HnsVersion
    health_vips: bool
    health_check_port: bool

    def address(self, number: int, family: Family) -> str:
        """The address of an endpoint."""
        pod = self.pods[number]
        if pod.public and not pod.local:
            return PUBLIC[family].format(number=number + 20)
        return POD[family].format(node=1 if pod.local else 2, number=number + 20)

    @property
    def has_dsr(self) -> bool:
        return self.version != NO_DSR

    @property
    def external(self) -> bool:
        """Whether it has fronts for traffic from outside."""
        return self.node_port or self.external_ips or bool(self.ingress)


CONDITIONS = st.sampled_from([READY, READY, WAITING, DRAINING, GONE])
PODS = st.builds(Pod, st.booleans(), st.integers(0, 4).map(lambda n: n == 0), CONDITIONS, st.sampled_from([8080, 8080, 9090]))  # fmt: skip
ASKED = st.builds(
    Asked,
    pods=st.lists(PODS, max_size=6),
    node_port=st.booleans(),
    external_ips=st.booleans(),
    ingress=st.integers(0, 2),
    internal_local=st.booleans(),
    external_local=st.booleans(),
    affinity=st.booleans(),
    preserve=st.booleans(),
    protocol=st.sampled_from(["TCP", "UDP", "SCTP"]),
    overlay=st.booleans(),
    dsr=st.booleans(),
    version=st.sampled_from([SUPPORTS_ALL, SUPPORTS_ALL, NO_AFFINITY, NO_DSR]),
    health_vips=st.booleans(),
    health_check_port=st.booleans(),
)


def expected(a: Asked, family: Family) -> list[str]:
    """The load balancers."""

    def usable(numbers: list[int]) -> list[int]:
        ready = [n for n in numbers if a.pods[n].conditions is READY]
        return ready or [n for n in numbers if a.pods[n].conditions is DRAINING]

    everywhere = usable(list(range(len(a.pods))))
    here = usable([n for n, pod in enumerate(a.pods) if pod.local])
    dsr_local = a.external_local and a.has_dsr
    preserve = a.preserve and a.has_dsr
    ipv6 = 2 if family == IPV6 else 0
    direct = 1 if dsr_local else 0
    distribution = 2 if a.affinity and a.version == SUPPORTS_ALL else 0
    protocol = {"TCP": 6, "UDP": 17, "SCTP": 132}[a.protocol]
    source = ""
    if a.overlay:
        public = any(not a.pods[n].local and a.pods[n].public for n in everywhere)
        taken = not a.internal_local or a.external
        source = ADDRESSES[family] if public and taken else SOURCE_VIP

    found: list[str] = []

    def add(vip: str, port: int, numbers: list[int], flags: int, port_flags: int) -> None:
        if not numbers:
            return
        counts = Counter(a.pods[n].port for n in numbers)
        internal = min(counts, key=lambda each: (-counts[each], each))
        backends = [a.address(n, family) for n in numbers if a.pods[n].port == internal]
        found.append(
            show(vip, port, internal, protocol, flags | ipv6, port_flags, distribution, source, backends)
        )

    add(CLUSTER_IP[family], 80, here if a.internal_local else everywhere, int(a.dsr and a.has_dsr), 0)
    outside = here if dsr_local else everywhere
    inside = here if dsr_local or preserve else everywhere
    if a.node_port:
        add("", 30080, inside, direct, 18)
    for ip in EXTERNAL[family] if a.external_ips else ():
        add(ip, 80, outside, direct, 16)
    for ip in INGRESS[family][: a.ingress]:
        add(ip, 80, inside, 1 if preserve else direct, 28 if preserve else 16)
        served = a.health_check_port and a.external_local
        ready_here = any(pod.local and pod.conditions is READY for pod in a.pods)
        if a.health_vips and outside and (not (served and dsr_local) or ready_here):
            number = HEALTH_CHECK if served else HEALTHZ
            found.append(show(ip, number, number, 6, ipv6, 12 if preserve else 0, 0, "", [HOST[family]]))
    return sorted(found)


def asked_of(a: Asked, family: Family) -> tuple[types.Service, types.EndpointSlice, types.EndpointSlice]:
    """The objects of Kubernetes; endpoints with different ports are in different slices."""
    spec: dict[str, Any] = {
        "ports": (types.ServicePort(80, protocol=a.protocol, node_port=30080 if a.node_port else 0),),
        "type": "LoadBalancer",
        "external_traffic_policy": "Local" if a.external_local else "Cluster",
        "internal_traffic_policy": "Local" if a.internal_local else "Cluster",
        "session_affinity": "ClientIP" if a.affinity else "None",
        "health_check_node_port": HEALTH_CHECK if a.health_check_port and a.external_local else 0,
        "external_ips": EXTERNAL[family] if a.external_ips else (),
    }
    made = service("web", CLUSTER_IP[family], balancer=INGRESS[family][: a.ingress], **spec)
    if a.preserve:
        annotations = types.Annotations(preserve_destination="true")
        made = replace(made, metadata=replace(made.metadata, annotations=annotations))

    def piece(port: int) -> types.EndpointSlice:
        return types.EndpointSlice(
            types.ObjectMeta(name=f"web-{port}", namespace="default", labels=types.Labels(service="web")),
            address_type=family,
            endpoints=tuple(
                types.SliceEndpoint(
                    (a.address(n, family),), pod.conditions, "node1" if pod.local else "node2"
                )
                for n, pod in enumerate(a.pods)
                if pod.port == port
            ),
            ports=(types.EndpointPort("", port, a.protocol),),
        )

    return made, piece(8080), piece(9090)


def node_of(a: Asked, family: Family) -> WindowsNode:
    made = WindowsNode(
        replace(WS2025, version=a.version),
        "Overlay" if a.overlay else "L2Bridge",
        local=[a.address(n, family) for n, pod in enumerate(a.pods) if pod.local],
        dsr=a.dsr and a.has_dsr,
        root_endpoint="cbr0",
        health_vips=a.health_vips,
        healthz_port=HEALTHZ,
    )
    made.add_local(HOST[family], name="cbr0")
    return made


@settings(max_examples=300)
@given(ASKED, st.sampled_from([IPV4, IPV6]))
def test_any_combination(a: Asked, family: Family) -> None:
    if a.overlay:
        family = IPV4
    at = node_of(a, family)
    proxy = at.proxy(family)
    proxy.tell(*asked_of(a, family))
    assert not proxy.full()
    assert at.balancers() == expected(a, family)
    at.calls()
    assert not proxy.full()
    again = proxy.restarted()
    assert not again.full()
    assert at.calls() == []


@settings(max_examples=150)
@given(ASKED, ASKED, st.sampled_from([IPV4, IPV6]))
def test_any_change_of_one_combination_to_another(before: Asked, after: Asked, family: Family) -> None:
    """The node stays as it was: only objects of Kubernetes change."""
    after = after._replace(
        overlay=False, dsr=before.dsr, version=before.version, health_vips=before.health_vips
    )
    before = before._replace(overlay=False)
    pods = [pod if n >= len(after.pods) or pod.local == after.pods[n].local else after.pods[n] for n, pod in enumerate(before.pods)]  # fmt: skip
    before = before._replace(pods=pods)
    at = node_of(before, family)
    for n, pod in enumerate(after.pods):
        if pod.local and n >= len(before.pods):
            at.add_local(after.address(n, family))
    proxy = at.proxy(family)
    proxy.tell(*asked_of(before, family))
    assert not proxy.full()
    assert at.balancers() == expected(before, family)
    proxy.tell(*asked_of(after, family))
    assert not proxy.sync()
    assert at.balancers() == expected(after, family)
    remote = {each.addresses[0] for each in at.hns.endpoints().values() if each.remote}
    named = {ident for each in at.hns.load_balancers().values() for ident in each.endpoints}
    assert remote == {
        each.addresses[0] for each in at.hns.endpoints().values() if each.remote and each.id in named
    }
    at.calls()
    assert not proxy.full()
    assert at.calls() == []
