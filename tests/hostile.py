"""Objects no API server would hold, or should: what a folder of manifests, a broken controller or a tenant may write.

Each case is one Service with what belongs to it, what must be said of it, and the ports that are served all the same.
Strategies here change good objects into such: any value anywhere may be another one.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

Wire = dict[str, Any]


class Case(NamedTuple):
    """A Service that is not as it should be.

    Attributes:
        name: what is wrong; unless the case has no usable name, the Service's name too.
        objects: it, and its EndpointSlices.
        says: what the log must say, each in one line; " ... " stands for anything.
        ports: its ports in the plan of its family, as "NAME ADDRESS:PORT/PROTOCOL"; none if it has no plan.
    """

    name: str
    objects: Sequence[Wire]
    says: Sequence[str] = ()
    ports: Sequence[str] = ()


def service(name: Any, ip: Any = "10.96.7.1", ports: Any = ({"port": 80},), **spec: Any) -> Wire:
    """A Service."""
    ports = list(ports) if isinstance(ports, tuple) else ports
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": ip, "ports": ports, **spec},
    }


def endpoint_slice(name: str, *addresses: Any, **more: Any) -> Wire:
    """An EndpointSlice of a Service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [address]} for address in addresses],
        **more,
    }


def balancer(name: str, *ingress: Wire, **spec: Any) -> Wire:
    """A Service of type LoadBalancer."""
    made = service(name, type="LoadBalancer", **spec)
    return {**made, "status": {"loadBalancer": {"ingress": list(ingress)}}}


_CLUSTER_IP = "10.96.7.1"

PLAIN = ("default/{} 10.96.7.1:80/TCP",)
"""The one port of a Service that is served as it is."""


def _numbers() -> Iterator[Case]:
    for name, port in (
        ("port-zero", 0),
        ("port-negative", -1),
        ("port-high", 65536),
        ("port-giant", 2**31 - 1),
    ):
        says = f"Service default/{name}: spec.ports[0].port: {port} is not between 1 and 65535"
        yield Case(
            name,
            [service(name, ports=[{"port": port}, {"port": 81, "name": "b"}])],
            [says],
            ["default/{}:b 10.96.7.1:81/TCP"],
        )
    for name, port in (
        ("port-beyond", 2**31),
        ("port-far-beyond", -(2**70)),
        ("port-thousand-digits", 10**1000),
    ):
        yield Case(
            name,
            [service(name, ports=[{"port": port}])],
            [f"Service default/{name} ... is left out ... spec.ports[0].port: "],
        )
    for name, port in (("node-port-negative", -5), ("node-port-high", 70000)):
        says = f"Service default/{name}: spec.ports[0].nodePort: {port} is not between 0 and 65535"
        yield Case(name, [service(name, ports=[{"port": 80, "nodePort": port}])], [says], PLAIN)
    for name, seconds in (("affinity-zero", 0), ("affinity-negative", -1), ("affinity-long", 86401)):
        config = {"clientIP": {"timeoutSeconds": seconds}}
        made = service(name, sessionAffinity="ClientIP", sessionAffinityConfig=config)
        yield Case(name, [made], [f"timeoutSeconds: {seconds} is not between 1 and 86400"], PLAIN)
    name = "health-port-high"
    made = balancer(name, externalTrafficPolicy="Local", healthCheckNodePort=99999)
    yield Case(name, [made], ["spec.healthCheckNodePort: 99999 is not between 0 and 65535"], PLAIN)
    name = "endpoint-port-high"
    piece = endpoint_slice(name, "10.244.9.1", ports=[{"name": "", "port": 70000}])
    yield Case(
        name, [service(name), piece], [f"{name}-1: ports[0].port: 70000 is not between 1 and 65535"], PLAIN
    )


def _types() -> Iterator[Case]:
    for name, spec, field in (
        ("port-text", {"ports": [{"port": "80"}]}, "spec.ports[0].port: "),
        ("port-fraction", {"ports": [{"port": 80.5}]}, "spec.ports[0].port: "),
        ("port-true", {"ports": [{"port": True}]}, "spec.ports[0].port: "),
        ("port-missing", {"ports": [{"name": "a"}]}, "spec.ports[0]: "),
        ("ports-object", {"ports": {"port": 80}}, "spec.ports: "),
        ("ports-text", {"ports": "80"}, "spec.ports: "),
        ("ip-number", {"clusterIP": 10.96}, "spec.clusterIP: "),
        ("ips-text", {"clusterIPs": "10.96.7.1"}, "spec.clusterIPs: "),
        ("type-list", {"type": ["NodePort"]}, "spec.type: "),
        ("ranges-object", {"loadBalancerSourceRanges": {}}, "spec.loadBalancerSourceRanges: "),
    ):
        made = service(name)
        yield Case(
            name,
            [{**made, "spec": {**made["spec"], **spec}}],
            [f"Service default/{name} ... is left out ... {field}"],
        )
    yield Case(
        "spec-text",
        [{**service("spec-text"), "spec": "x"}],
        ["Service default/spec-text ... is left out ... spec: "],
    )
    yield Case(
        "status-list",
        [{**service("status-list"), "status": []}],
        ["default/status-list ... is left out ... status: "],
    )
    name = "slice-endpoints-text"
    piece = endpoint_slice(name, endpoints="10.244.9.1")
    yield Case(
        name,
        [service(name), piece],
        [f"EndpointSlice default/{name}-1 ... is left out ... endpoints: "],
        PLAIN,
    )


def _addresses() -> Iterator[Case]:
    for name, ip in (
        ("ip-words", "localhost"),
        ("ip-range", "10.96.7.0/24"),
        ("ip-port", "10.96.7.1:80"),
        ("ip-five", "10.96.7.1.1"),
        ("ip-256", "10.96.7.256"),
        ("ip-hex", "0x0a600701"),
        ("ip-newline", "10.96.7.1\n-A INPUT -j ACCEPT"),
        ("ip-nul", "10.96.7.1\0"),
        ("ip-blank", " 10.96.7.1"),
        ("ip-arabic", "\u0661\u0660.\u0669\u0666.\u0667.\u0661"),
        ("ip-brackets", "[fd00::1]"),
        ("ip-zone", "fe80::1%eth0"),
        ("ip-long", "1" * 5000),
    ):
        yield Case(
            name, [service(name, ip)], [f"Service default/{name}: spec.clusterIP: ... is not an IP address"]
        )
    for name, ip in (
        ("ip-nowhere", "0.0.0.0"),
        ("ip-nowhere-6", "::"),
        ("ip-group", "224.0.0.251"),
        ("ip-group-6", "ff02::1"),
        ("ip-all", "255.255.255.255"),
    ):
        yield Case(
            name,
            [service(name, ip)],
            [f"Service default/{name}: spec.clusterIP: {ip} is no address of one host"],
        )
        other = f"external-{name}"
        yield Case(
            other,
            [service(other, externalIPs=[ip])],
            [f"{other}: spec.externalIPs[0]: {ip} is no address of one host"],
            PLAIN,
        )
        other = f"ingress-{name}"
        says = f"{other}: status.loadBalancer.ingress[0].ip: {ip} is no address of one host"
        yield Case(other, [balancer(other, {"ip": ip})], [says], PLAIN)
    octal = ["default/{} 10.96.7.9:80/TCP"]
    yield Case("ip-octal", [service("ip-octal", "010.096.007.009")], [], octal)
    yield Case("ip-mapped", [service("ip-mapped", "::ffff:10.96.7.1")], [], PLAIN)
    yield Case(
        "ip-both",
        [service("ip-both", clusterIPs=["10.96.7.1", "10.96.7.2"])],
        ["more than one of a family; the first is used"],
        PLAIN,
    )
    name = "endpoint-other-family"
    piece = endpoint_slice(name, "fd00::1", "::ffff:10.244.9.1", "010.244.9.002")
    yield Case(
        name, [service(name), piece], [f"{name}-1: endpoints[0].addresses[0]: fd00::1 is not IPv4"], PLAIN
    )
    name = "endpoint-mapped-in-6"
    piece = endpoint_slice(name, "::ffff:10.244.9.1", addressType="IPv6")
    yield Case(name, [service(name), piece], ["endpoints[0].addresses[0]: 10.244.9.1 is not IPv6"], PLAIN)
    name = "endpoint-nowhere"
    piece = endpoint_slice(name, "0.0.0.0", "239.1.1.1", "255.255.255.255", "", "10.244.9.1\n")
    field = "endpoints[{}].addresses[0]: {} is {}"
    nowhere = [
        field.format(0, "0.0.0.0", "no address of one host"),
        field.format(3, "''", "not an IP address"),
    ]
    yield Case(name, [service(name), piece], nowhere, PLAIN)
    name = "ranges-wrong"
    made = balancer(name, {"ip": "203.0.113.7"}, loadBalancerSourceRanges=["10.0.0.0/33", "0.0.0.0/0\n"])
    yield Case(name, [made], ["spec.loadBalancerSourceRanges[0]: '10.0.0.0/33' is not a CIDR range"], PLAIN)


def _names() -> Iterator[Case]:
    for number, name in enumerate(
        (
            "a\nb",
            'a"b',
            "a'b",
            "a b",
            "a;b",
            "a$(b)",
            "a\x00b",
            "a\x1b[31mb",
            "-a",
            "a/b",
            "é",
            "\u202eb",
            "x" * 64,
            "x" * 5000,
        )
    ):
        yield Case(
            f"name-{number}",
            [service(name)],
            ["metadata.name: ... is not a DNS name of at most 63 characters; the object is left out"],
        )
    for case, namespace in (
        ("namespace-slash", "a/b"),
        ("namespace-long", "n" * 64),
        ("namespace-line", "a\nb"),
    ):
        made = service(case)
        made["metadata"]["namespace"] = namespace
        yield Case(case, [made], ["metadata.namespace: ... is not a DNS label; the object is left out"])
    for case, name in (
        ("port-name-line", "a\n-A INPUT -j ACCEPT"),
        ("port-name-quote", 'a" -j ACCEPT --comment "b'),
        ("port-name-long", "p" * 253),
        ("port-name-nul", "\0"),
    ):
        ports = [{"port": 80}, {"port": 81, "name": name}]
        yield Case(
            case,
            [service(case, ports=ports)],
            [f"Service default/{case}: spec.ports[1].name: ... is not a DNS label"],
            PLAIN,
        )
    yield Case("x" * 63, [service("x" * 63)], [], PLAIN)
    name = "slice-name-long"
    piece = endpoint_slice(name, "10.244.9.1")
    piece["metadata"]["name"] = "x" * 254
    yield Case(
        name,
        [service(name), piece],
        ["metadata.name: ... at most 253 characters; the object is left out"],
        PLAIN,
    )


def _words() -> Iterator[Case]:
    for name, spec, field in (
        ("type-unknown", {"type": "Magic"}, "spec.type: 'Magic' is unknown; ClusterIP is assumed"),
        (
            "policy-unknown",
            {"externalTrafficPolicy": "Here"},
            "spec.externalTrafficPolicy: 'Here' is unknown",
        ),
        (
            "inner-policy-unknown",
            {"internalTrafficPolicy": "x\n"},
            "spec.internalTrafficPolicy: 'x\\n' is unknown",
        ),
        ("affinity-unknown", {"sessionAffinity": "Cookie"}, "spec.sessionAffinity: 'Cookie' is unknown"),
    ):
        yield Case(name, [service(name, **spec)], [f"Service default/{name}: {field}"], PLAIN)
    name = "protocol-unknown"
    ports = [
        {"port": 80},
        {"port": 81, "name": "b", "protocol": "ICMP"},
        {"port": 82, "name": "c", "protocol": "tcp"},
    ]
    says = ["spec.ports[1].protocol: 'ICMP' is not TCP, UDP or SCTP", "spec.ports[2].protocol: 'tcp' is not"]
    yield Case(name, [service(name, ports=ports)], says, PLAIN)
    name = "mode-unknown"
    made = balancer(name, {"ip": "203.0.113.7", "ipMode": "Tunnel"})
    yield Case(name, [made], ["ingress[0].ipMode: 'Tunnel' is unknown; the address is not served"], PLAIN)
    name = "address-type-unknown"
    piece = endpoint_slice(name, "10.244.9.1", addressType="IPX")
    yield Case(
        name,
        [service(name), piece],
        ["addressType: 'IPX' is neither IPv4, IPv6 nor FQDN; the object is left out"],
        PLAIN,
    )


def _sizes() -> Iterator[Case]:
    name = "many-ports"
    ports = [{"name": f"p{i}", "port": i + 1, "nodePort": i + 1} for i in range(10_000)]
    piece = endpoint_slice(
        name, "10.244.9.1", ports=[{"name": f"p{i}", "port": i + 1} for i in range(10_000)]
    )
    yield Case(
        name,
        [service(name, ports=ports), piece],
        [],
        [f"default/{{}}:p{i} 10.96.7.1:{i + 1}/TCP" for i in range(10_000)],
    )
    name = "same-ports"
    ports = [{"port": 80}] * 5000
    says = [
        "spec.ports[1]: has the name or the number of spec.ports[0]",
        "4979 more parts are wrong and left out",
    ]
    yield Case(name, [service(name, ports=ports)], says, PLAIN)
    name = "same-node-ports"
    ports = [{"port": 80, "nodePort": 30777}, {"port": 81, "name": "b", "nodePort": 30777}]
    says = ["spec.ports[1].nodePort: 30777 is that of spec.ports[0]"]
    yield Case(name, [service(name, ports=ports)], says, [*PLAIN, "default/{}:b 10.96.7.1:81/TCP"])
    name = "many-bad-endpoints"
    piece = endpoint_slice(name, *["x"] * 5000)
    yield Case(name, [service(name), piece], ["4980 more parts are wrong and left out"], PLAIN)
    name = "many-addresses"
    made = service(name, externalIPs=[f"10.{i >> 8}.{i & 255}.1" for i in range(3000)])
    yield Case(name, [made], [], PLAIN)
    name = "big-annotation"
    made = service(name)
    made["metadata"]["annotations"] = {"x": "y" * 1_000_000}
    yield Case(name, [made], [], PLAIN)


CASES: Sequence[Case] = (*_numbers(), *_types(), *_addresses(), *_names(), *_words(), *_sizes())


def apart(cases: Sequence[Case]) -> Iterator[Case]:
    """The cases, each Service with a ClusterIP of its own: they are to live side by side, and a front has one owner."""
    for number, case in enumerate(cases):
        ip = f"10.96.{100 + number // 200}.{1 + number % 200}"
        yield Case(case.name, *(_replaced(part, _CLUSTER_IP, ip) for part in case[1:]))


def _replaced(value: Any, old: str, new: str) -> Any:
    """A value with a text replaced wherever it stands."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(each, old, new) for key, each in value.items()}
    return [_replaced(each, old, new) for each in value] if isinstance(value, list | tuple) else value


GOOD = (service("good", "10.96.8.1"), endpoint_slice("good", "10.244.9.9"))
"""The neighbour that all this must not affect."""

_VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 80, 65535, 65536, 2**31, -(2**31), 2**63, 10**400, 0.5, 1e300,
    "", " ", "a", "None", "TCP", "x" * 300, "a\nb", 'a" -j ACCEPT', "\0", "\x1b[31m", "é", "\ud800", "\u2028",
    "10.96.7.9", "010.96.7.9", "::ffff:10.96.7.9", "0.0.0.0", "::", "fd00::9", "10.0.0.0/8", "10.0.0.0/33", "0.0.0.0/0", "1e3",
    [], {}, [[]], [None], [""], [{}], {"": ""}, {"name": "x"}, {"port": 80},
)  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn, good: Sequence[Wire]) -> Wire:
    """One of these objects with some values changed for any others, removed, repeated, or put elsewhere."""
    obj = copy.deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(obj))
        if not places:
            return obj
        holder, key = draw(st.sampled_from(places))
        match draw(st.integers(0, 5)):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder[key]) for _ in range(draw(st.integers(1, 3))))
            case 2:
                other, there = draw(st.sampled_from(places))
                holder[key] = copy.deepcopy(other[there])
            case _:
                holder[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
    return obj


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree: what holds it and under which key; kind and apiVersion say what it is at all."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("kind", "apiVersion"):
                yield value, key
                yield from _places(inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield value, index
            yield from _places(inner)
