"""What the HNS in memory accepts: the rules for documents, endpoints and load balancers.

They are those that are known of HNS or suspected, and stricter where a mistake of this program would
otherwise not be seen: a field that the schema does not have is an error.

Source: HNS_Schema, Reference and HCN HRESULT of Microsoft's Virtualization-Documentation; public reports.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from kubeproxy.windows import documents, errors, values
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.fake_profiles import Profile
from kubeproxy.windows.features import Feature, supports

Document = dict[str, Any]
"""An object as HNS returns it."""

FrontKey = tuple[str, int, int, bool]
"""What only one load balancer may have: VIP, protocol, external port, whether it is IPv6."""

_Port = Annotated[int, Meta(ge=0, le=65535)]
_Number = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_FILTERS: Final = {
    Entity.NETWORK: {"ID", "Name"},
    Entity.ENDPOINT: {"ID", "Name", "VirtualNetwork"},
    Entity.LOAD_BALANCER: {"ID"},
}
_MAPPING_FLAGS: Final = 31
_FLAGS: Final = values.DSR | values.IPV6


class RuleError(Exception):
    """A request is not accepted.

    Attributes:
        code: the HRESULT.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Strict(Struct, forbid_unknown_fields=True, rename="pascal"):
    pass


class _SchemaVersion(_Strict):
    major: Literal[2]
    minor: _Number


class _QueryRequest(_Strict):
    schema_version: _SchemaVersion
    flags: Literal[0, 1] = 0
    filter: str = ""


class _AddressRequest(_Strict):
    ip_address: str
    prefix_length: Annotated[int, Meta(ge=0, le=128)] = 0


class _ProviderSettings(_Strict):
    provider_address: str


class _PolicyRequest(_Strict):
    type: Literal["ProviderAddress"]
    settings: _ProviderSettings


class _EndpointRequest(_Strict):
    schema_version: _SchemaVersion
    host_compute_network: str
    ip_configurations: list[_AddressRequest] = []
    name: str = ""
    mac_address: str = ""
    flags: Literal[0, 1] = 0
    policies: list[_PolicyRequest] = []
    dns: dict[str, Any] = {}
    health: dict[str, Any] = {}


class _MappingRequest(_Strict):
    protocol: _Number = 0
    internal_port: _Port = 0
    external_port: _Port = 0
    distribution_type: Literal[0, 1, 2] = 0
    flags: _Number = 0


class _LoadBalancerRequest(_Strict):
    schema_version: _SchemaVersion
    host_compute_endpoints: list[str] = []
    source_vip: str = field(name="SourceVIP", default="")
    vips: list[str] = field(name="FrontendVIPs", default_factory=list)
    port_mappings: list[_MappingRequest] = []
    flags: _Number = 0
    name: str = ""
    owner: str = ""


def identity(text: str) -> str:
    """A GUID in the form in which it is stored.

    Raises:
        RuleError: it is none.
    """
    if not documents.is_id(text):
        raise RuleError(errors.GUID_CONVERSION_FAILURE, f"{text!r} is no GUID")
    return values.same_id(text)


def filters(entity: Entity, query: str) -> Mapping[str, str]:
    """The filters of a query.

    Raises:
        RuleError: it is no query for objects of this kind.
    """
    read = _read(query, _QueryRequest)
    found = _read(read.filter, dict[str, str]) if read.filter else {}
    if unknown := found.keys() - _FILTERS[entity]:
        raise RuleError(errors.INVALID_JSON, f"no filter {min(unknown)}")
    return {name: identity(text) if name != "Name" else text for name, text in found.items()}


def new_endpoint(settings: str, network: Document, others: Iterable[Document], profile: Profile) -> Document:
    """An endpoint as it is stored.

    Args:
        settings: the request.
        network: its network.
        others: the other endpoints of the network.
        profile: the version of Windows.

    Raises:
        RuleError: it is not accepted.
    """
    request = _read(settings, _EndpointRequest)
    if identity(request.host_compute_network) != values.same_id(network["ID"]):
        raise RuleError(errors.NETWORK_NOT_FOUND, "the endpoint is of another network than its handle")
    if len(request.ip_configurations) != 1:
        raise RuleError(errors.INVALID_IP, "an endpoint needs one address")
    address = _address(request.ip_configurations[0].ip_address)
    remote = bool(request.flags & values.REMOTE_ENDPOINT)
    overlay = network["Type"].lower() == values.OVERLAY
    if request.policies and not overlay:
        raise RuleError(errors.INVALID_POLICY_TYPE, "a provider address needs an overlay network")
    if overlay and remote and len(request.policies) != 1:
        raise RuleError(
            errors.INVALID_REMOTE_ENDPOINT_OPERATION, "a remote endpoint needs a provider address"
        )
    for policy in request.policies:
        _address(policy.settings.provider_address)
    subnets = [ipaddress.ip_network(text) for text in network_prefixes(network)]
    if subnets and not remote and not any(address in subnet for subnet in subnets):
        raise RuleError(errors.SUBNET_NOT_FOUND, f"{address} is in no subnet of the network")
    if profile.unique_macs or not (remote or profile.twins):
        _check_others(request, others, profile)
    document: Document = msgspec.json.decode(settings)
    return document


def _check_others(request: _EndpointRequest, others: Iterable[Document], profile: Profile) -> None:
    """Checks that the addresses of a new endpoint are free, as far as a version of Windows wants that."""
    remote = bool(request.flags & values.REMOTE_ENDPOINT)
    address, wanted = (
        values.same_address(request.ip_configurations[0].ip_address),
        values.same_mac(request.mac_address),
    )
    for other in others:
        if not remote and not profile.twins and address in addresses(other):
            raise RuleError(errors.ALREADY_EXISTS, f"{address} has an endpoint")
        mac = values.same_mac(other.get("MacAddress", "")) if profile.unique_macs else ""
        if mac.startswith("02-") and mac == wanted:
            raise RuleError(errors.ALREADY_EXISTS, f"{mac} has an endpoint")


def new_load_balancer(settings: str, endpoints: Mapping[str, Document], profile: Profile) -> Document:
    """A load balancer as it is stored; whether its keys are free is not checked.

    Args:
        settings: the request.
        endpoints: all endpoints, by id.
        profile: the version of Windows.

    Raises:
        RuleError: it is not accepted.
    """
    request = _read(settings, _LoadBalancerRequest)
    if not request.host_compute_endpoints:
        raise RuleError(errors.INVALID_POLICY, "no endpoints")
    idents = [identity(text) for text in request.host_compute_endpoints]
    if len(set(idents)) < len(idents):
        raise RuleError(errors.INVALID_POLICY, "an endpoint is named twice")
    for ident in idents:
        if ident not in endpoints:
            raise RuleError(errors.ENDPOINT_NOT_FOUND, f"no endpoint {ident}")
    if not request.port_mappings:
        raise RuleError(errors.INVALID_POLICY, "no port mappings")
    if request.flags & ~_FLAGS:
        raise RuleError(errors.INVALID_POLICY, f"flags {request.flags}")
    if request.flags & values.DSR and not supports(profile.version, Feature.DSR):
        raise RuleError(errors.REQUEST_UNSUPPORTED, "no DSR")
    ipv6 = bool(request.flags & values.IPV6)
    for text in (*request.vips, *([request.source_vip] if request.source_vip else [])):
        if (_address(text).version == 6) != ipv6:
            raise RuleError(errors.INVALID_POLICY, f"{text} is of the other family than the load balancer")
    version = 6 if ipv6 else 4
    for ident in idents:
        if all(ipaddress.ip_address(text).version != version for text in addresses(endpoints[ident])):
            raise RuleError(errors.INVALID_IP, f"endpoint {ident} has no IPv{version} address")
    for mapping in request.port_mappings:
        _check_mapping(mapping, profile)
    document: Document = msgspec.json.decode(settings)
    if not profile.keeps_names:
        document.pop("Name", None)
        document.pop("Owner", None)
    if not supports(profile.version, Feature.SESSION_AFFINITY):
        for tree in document["PortMappings"]:
            tree.pop("DistributionType", None)
    return document


def _check_mapping(mapping: _MappingRequest, profile: Profile) -> None:
    if mapping.protocol not in documents.PROTOCOLS.values():
        raise RuleError(errors.INVALID_POLICY, f"protocol {mapping.protocol}")
    if not mapping.internal_port:
        raise RuleError(errors.INVALID_INTERNAL_PORT, "internal port 0")
    if not mapping.external_port:
        raise RuleError(errors.INVALID_POLICY, "external port 0")
    if mapping.flags & ~_MAPPING_FLAGS:
        raise RuleError(errors.INVALID_POLICY, f"flags {mapping.flags} of a port mapping")
    affinity = supports(profile.version, Feature.SESSION_AFFINITY) or profile.ignores_affinity
    if mapping.distribution_type and not affinity:
        raise RuleError(errors.INVALID_POLICY, "no session affinity")


def keys(document: Document) -> Iterator[FrontKey]:
    """The keys of a load balancer."""
    ipv6 = bool((document.get("Flags") or 0) & values.IPV6)
    for mapping in document.get("PortMappings") or ():
        for vip in document.get("FrontendVIPs") or ("",):
            yield values.same_address(vip), mapping.get("Protocol", 0), mapping.get("ExternalPort", 0), ipv6


def addresses(document: Document) -> set[str]:
    """The addresses of an endpoint."""
    return {values.same_address(found["IpAddress"]) for found in document["IpConfigurations"]}


def network_prefixes(network: Document) -> Iterator[str]:
    """The subnets of a network on this host."""
    for ipam in network.get("Ipams", ()):
        for subnet in ipam["Subnets"]:
            yield subnet["IpAddressPrefix"]


def other_settings(document: Document) -> tuple[Any, ...]:
    """What HNS is not known to change in a load balancer: all but its endpoints and source address."""
    mappings = [
        tuple(mapping.get(name, 0) for name in ("InternalPort", "DistributionType", "Flags"))
        for mapping in document["PortMappings"]
    ]
    return sorted(keys(document)), mappings, document.get("Flags", 0)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise RuleError(errors.INVALID_IP, f"{text!r} is no address") from None


def _read(text: str, type_: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=type_)
    except msgspec.MsgspecError as e:
        raise RuleError(errors.INVALID_JSON, str(e)) from None
