"""The Kubernetes objects that are read, as they come over the wire: only the fields a service proxy needs.

Decoding skips everything else at memory speed, so a 20 KB object costs no more than its dozen useful fields.
Labels and annotations are Structs with the keys that are used, not dicts: smaller, and a typo is a type
error. A field that Go writes as `null` when empty (every list) accepts None. Wire objects live for one event:
they are flattened into rows (`flatten`) and dropped.

Field names and meanings: Kubernetes API reference v1.36 (core/v1, discovery.k8s.io/v1, networking.k8s.io/v1).
"""

from collections.abc import Collection
from itertools import islice
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct, field, structs

from kubeproxy.api import annotations, jsontext
from kubeproxy.api.jsontext import BROKEN

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
"""The range of Kubernetes' numbers; a number of a million digits could be neither stored nor printed."""


class Labels(Struct, gc=False, frozen=True):
    """The labels that select or place an object."""

    service: str | None = field(default=None, name="kubernetes.io/service-name")
    proxy_name: str | None = field(default=None, name="service.kubernetes.io/service-proxy-name")
    headless: str | None = field(default=None, name="service.kubernetes.io/headless")
    zone: str | None = field(default=None, name="topology.kubernetes.io/zone")
    group: str | None = field(default=None, name=annotations.GROUP)


Annotations = annotations.Annotations


class ObjectMeta(Struct, gc=False, frozen=True, rename="camel"):
    """The metadata that identifies and selects an object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: Labels | None = None
    annotations: Annotations | None = None


class ServicePort(Struct, gc=False, frozen=True, rename="camel"):
    """One port of a Service."""

    port: Int32
    name: str = ""
    protocol: str = "TCP"
    node_port: Int32 = 0


class ClientIPConfig(Struct, gc=False, frozen=True, rename="camel"):
    """How long a client stays with its endpoint, in seconds."""

    timeout_seconds: Int32 | None = None


class SessionAffinityConfig(Struct, gc=False, frozen=True):
    """Settings of session affinity."""

    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(Struct, gc=False, frozen=True, rename="camel"):
    """The spec of a Service."""

    ports: tuple[ServicePort, ...] | None = None
    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] | None = field(default=None, name="clusterIPs")
    ip_families: tuple[str, ...] | None = None
    external_ips: tuple[str, ...] | None = field(default=None, name="externalIPs")
    load_balancer_source_ranges: tuple[str, ...] | None = None
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    health_check_node_port: Int32 = 0


class LoadBalancerIngress(Struct, gc=False, frozen=True):
    """One address of a load balancer; `ip_mode` is defined by KEP-1860."""

    ip: str = ""
    ip_mode: str | None = field(default=None, name="ipMode")


class LoadBalancerStatus(Struct, gc=False, frozen=True):
    """The addresses of a load balancer."""

    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(Struct, gc=False, frozen=True, rename="camel"):
    """The status of a Service."""

    load_balancer: LoadBalancerStatus | None = None


class Service(Struct, gc=False, frozen=True, omit_defaults=True):
    """core/v1 Service.

    Attributes:
        unknown_annotations: the names of annotations with the prefix of ours that are none of ours; no field
            of the object.
    """

    metadata: ObjectMeta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus | None = None
    unknown_annotations: tuple[str, ...] = field(default=(), name="(unknown annotations)")


class EndpointConditions(Struct, gc=False, frozen=True):
    """Absent means ready, serving and not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Struct, gc=False, frozen=True):
    """A zone or node that should use an endpoint."""

    name: str = ""


class EndpointHints(Struct, gc=False, frozen=True, rename="camel"):
    """The zones and nodes that should use an endpoint (KEP-2433, KEP-3015)."""

    for_zones: tuple[Hint, ...] | None = None
    for_nodes: tuple[Hint, ...] | None = None


class TargetRef(Struct, gc=False, frozen=True):
    """The object that an endpoint stands for."""

    kind: str = ""
    name: str = ""


class SliceEndpoint(Struct, gc=False, frozen=True, rename="camel"):
    """One endpoint. All its addresses lead to it; the first is used."""

    addresses: tuple[str, ...] | None = None
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    target_ref: TargetRef | None = None


class EndpointPort(Struct, gc=False, frozen=True):
    """One port of every endpoint of a slice. A port without a number serves no Service port."""

    name: str | None = None
    port: Int32 | None = None
    protocol: str | None = None


class EndpointSlice(Struct, gc=False, frozen=True, rename="camel"):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: ObjectMeta
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


class EndpointAddress(Struct, gc=False, frozen=True, rename="camel"):
    """One address of an Endpoints subset."""

    ip: str = ""
    node_name: str | None = None
    target_ref: TargetRef | None = None


class EndpointSubset(Struct, gc=False, frozen=True, rename="camel"):
    """Addresses that share ports."""

    addresses: tuple[EndpointAddress, ...] | None = None
    not_ready_addresses: tuple[EndpointAddress, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


class Endpoints(Struct, gc=False, frozen=True):
    """core/v1 Endpoints, the predecessor of EndpointSlice."""

    metadata: ObjectMeta
    subsets: tuple[EndpointSubset, ...] | None = None


class Taint(Struct, gc=False, frozen=True):
    """A taint of a Node."""

    key: str = ""


class NodeAddress(Struct, gc=False, frozen=True):
    """One address of a Node."""

    type: str = ""
    address: str = ""


class NodeSpec(Struct, gc=False, frozen=True, rename="camel"):
    """The spec of a Node."""

    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: tuple[str, ...] | None = field(default=None, name="podCIDRs")
    taints: tuple[Taint, ...] | None = None


class NodeStatus(Struct, gc=False, frozen=True):
    """The status of a Node."""

    addresses: tuple[NodeAddress, ...] | None = None


class Node(Struct, gc=False, frozen=True):
    """core/v1 Node."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ServiceCIDRSpec(Struct, gc=False, frozen=True):
    """Ranges ClusterIPs are taken from."""

    cidrs: tuple[str, ...] | None = None


class ServiceCIDR(Struct, gc=False, frozen=True):
    """networking.k8s.io/v1 ServiceCIDR (KEP-1880)."""

    metadata: ObjectMeta
    spec: ServiceCIDRSpec = ServiceCIDRSpec()


Object = Service | EndpointSlice | Endpoints | Node | ServiceCIDR
"""Any object a source can report."""

KINDS: Final[dict[str, type[Service | EndpointSlice | Endpoints | Node | ServiceCIDR]]] = {
    "Service": Service,
    "EndpointSlice": EndpointSlice,
    "Endpoints": Endpoints,
    "Node": Node,
    "ServiceCIDR": ServiceCIDR,
}
"""The kinds a source can report, by their Kubernetes name, which is also the class's."""


class UndecodableError(Exception):
    """An object that does not have the shape of its kind.

    Attributes:
        kind: its Kubernetes kind.
        name: `namespace/name`, or as much of it as could be read.
        reason: what is wrong and at which field, e.g. "spec.ports[0].port: Expected `int`, got `str`".
    """

    def __init__(self, kind: str, name: str, reason: str) -> None:
        super().__init__(f"{kind} {name}: {reason}")
        self.kind = kind
        self.name = name
        self.reason = reason


class _Named(Struct, gc=False):
    """Just enough of an undecodable object to name it."""

    metadata: dict[str, object] = {}


_decoders = {kind: msgspec.json.Decoder(type_) for kind, type_ in KINDS.items()}
_named = msgspec.json.Decoder(_Named)


def decode(kind: str, data: bytes | msgspec.Raw) -> Object:
    """Decodes one object of a kind from JSON.

    Raises:
        UndecodableError: the JSON is broken, a field has the wrong type or there is no name. The error has
            the object's name if that can be read.
    """
    try:
        obj = _with_name(kind, _decoders[kind].decode(data))
        if isinstance(obj, Service) and obj.metadata.annotations is not None:
            return _with_unknown(obj, annotations.unknown_in(data))
    except BROKEN as e:
        error = e
    else:
        return obj
    try:
        return convert(kind, msgspec.json.decode(data))
    except BROKEN:
        raise UndecodableError(kind, _name(data), _reason(error)) from None


def convert(kind: str, data: object) -> Object:
    """Takes one object of a kind from decoded YAML or JSON.

    Raises:
        UndecodableError: a field has the wrong type or there is no name.
    """
    try:
        tree = _without_nulls(data, {})
        obj = _with_name(kind, msgspec.convert(tree, KINDS[kind]))
        if isinstance(obj, Service) and isinstance(tree, dict):
            return _with_unknown(obj, annotations.unknown(tree["metadata"].get("annotations") or ()))
    except (msgspec.ValidationError, RecursionError) as e:
        metadata = data.get("metadata") if isinstance(data, dict) else None
        raise UndecodableError(kind, _join(metadata), _reason(e)) from None
    return obj


def _with_unknown(service: Service, found: tuple[str, ...]) -> Service:
    return structs.replace(service, unknown_annotations=found) if found else service


def _with_name(kind: str, obj: Object) -> Object:
    """Refuses an object without a name, because sources identify objects by name."""
    if not obj.metadata.name:
        raise UndecodableError(kind, "(unnamed)", "metadata.name: is not set")
    return obj


def _without_nulls(value: object, seen: dict[int, object]) -> object:
    """Removes fields that are null (`namespace:` without a value), which Kubernetes reads as absent.

    A value that YAML aliases put in several places stays one value (`seen`).
    """
    if isinstance(value, dict) and id(value) not in seen:
        fields: dict[object, object] = {}
        seen[id(value)] = fields
        fields.update((k, _without_nulls(inner, seen)) for k, inner in value.items() if inner is not None)
    elif isinstance(value, list) and id(value) not in seen:
        items: list[object] = []
        seen[id(value)] = items
        items.extend(_without_nulls(inner, seen) for inner in value)
    elif isinstance(value, float) and value.is_integer():
        return int(value)  # 80.0 and 8e1 are whole numbers to Kubernetes
    return seen.get(id(value), value)


def _reason(error: Exception) -> str:
    """Converts msgspec's "Expected `int`, got `str` - at `$.a.b`" to "a.b: Expected `int`, got `str`"."""
    what, _, where = jsontext.reason(error).partition(" - at `")
    path = where.rpartition("$")[2].rstrip("`").removeprefix(".")
    return f"{path}: {what}" if path else what


def _name(data: bytes | msgspec.Raw) -> str:
    try:
        return _join(_named.decode(data).metadata)
    except BROKEN:
        return "(unnamed)"


def _join(metadata: object) -> str:
    fields = metadata if isinstance(metadata, dict) else {}
    namespace, name = fields.get("namespace"), fields.get("name")
    own = printable(name) if name and isinstance(name, str) else "(unnamed)"
    return f"{printable(namespace)}/{own}" if namespace and isinstance(namespace, str) else own


def printable(name: str) -> str:
    """A name of any length and content, shortened and escaped for a message."""
    short = name[:253]
    return short if short.isprintable() else ascii(short)


def listed(names: Collection[str], most: int) -> str:
    """The first names of a list, and how many more there are, as the text of a message."""
    more = len(names) - most
    return ", ".join(islice(names, most)) + (f" and {more} more" if more > 0 else "")
