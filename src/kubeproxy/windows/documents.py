"""The JSON documents of HNS, from and to the values of this program.

Requests are as the reference sends them, because that is what HNS is known to accept: schema version 2.0,
what is 0 or empty is left out, but `Dns` and `Health` of endpoints are there.

What HNS returns is read with tolerance, because its form differs between versions: numbers may be names,
lists may be null or missing, and there are fields that this program does not know.

Source: HNS_Schema of Microsoft's Virtualization-Documentation; hnslib, hcn/.
"""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from kubeproxy import protocols
from kubeproxy.windows import values
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, HcnNetwork, HnsVersion, PortMapping

SCHEMA: Final[Mapping[str, Any]] = {"Major": 2, "Minor": 0}
REMOTE_SUBNET_ROUTE: Final = "RemoteSubnetRoute"
PROVIDER_ADDRESS: Final = "ProviderAddress"

_ENDPOINT_FLAGS: Final = {"remoteendpoint": values.REMOTE_ENDPOINT}
_FLAGS: Final = {"dsr": values.DSR, "enabledirectserverreturn": values.DSR, "ipv6": values.IPV6}
_MAPPING_FLAGS: Final = {
    "ilb": values.ILB,
    "enableinternalloadbalancer": values.ILB,
    "localroutedvip": values.LOCAL_ROUTED_VIP,
    "usemux": values.USE_MUX,
    "preservedip": values.PRESERVE_DIP,
    "vipexternalip": values.VIP_EXTERNAL_IP,
}
_DISTRIBUTIONS: Final = {"sourceipprotocol": values.SOURCE_IP_PROTOCOL, "sourceip": values.SOURCE_IP}
PROTOCOLS: Final = {name.lower(): number for name, number in protocols.NUMBERS.items()}


class DocumentError(ValueError):
    """HNS returned what cannot be read."""


class _AddressDocument(Struct, gc=False, rename="pascal"):
    ip_address: str | None = None


class _PolicyDocument(Struct, gc=False, rename="pascal"):
    type: str | int | None = None
    settings: Any = None


class _IdentityDocument(Struct, gc=False):
    id: str = field(name="ID")


class _NetworkDocument(Struct, gc=False, rename="pascal"):
    id: str = field(name="ID")
    name: str | None = None
    type: str | int | None = None
    policies: list[_PolicyDocument] | None = None


class _EndpointDocument(Struct, gc=False, rename="pascal"):
    id: str = field(name="ID")
    name: str | None = None
    host_compute_network: str | None = None
    ip_configurations: list[_AddressDocument] | None = None
    mac_address: str | None = None
    flags: int | str | None = None
    policies: list[_PolicyDocument] | None = None


class _MappingDocument(Struct, gc=False, rename="pascal"):
    protocol: int | str | None = None
    internal_port: int | None = None
    external_port: int | None = None
    distribution_type: int | str | None = None
    flags: int | str | None = None


class _LoadBalancerDocument(Struct, gc=False, rename="pascal"):
    id: str = field(name="ID")
    host_compute_endpoints: list[str] | None = None
    source_vip: str | None = field(name="SourceVIP", default=None)
    vips: list[str] | None = field(name="FrontendVIPs", default=None)
    port_mappings: list[_MappingDocument] | None = None
    flags: int | str | None = None


class _VersionDocument(Struct, gc=False, rename="pascal"):
    major: int
    minor: int


class _GlobalsDocument(Struct, gc=False, rename="pascal"):
    success: bool = False
    error: str | None = None
    output: _VersionDocument | None = None


class _RemoteSubnetDocument(Struct, gc=False, rename="pascal"):
    destination_prefix: str | None = None
    isolation_id: int | None = None
    provider_address: str | None = None
    distributed_router_mac_address: str | None = None


def query(filters: Mapping[str, str] | None = None) -> str:
    """The document of a query.

    Args:
        filters: what fields must be; names of fields of endpoints are those of version 1 of the API, e.g.
            `VirtualNetwork`. None: all objects.
    """
    document: dict[str, Any] = {"SchemaVersion": SCHEMA}
    if filters:
        document["Filter"] = _text(filters)  # a string that holds a document
    return _text(document)


def endpoint_settings(endpoint: HcnEndpoint) -> str:
    """The document that creates an endpoint."""
    document: dict[str, Any] = {
        "Name": endpoint.name,
        "HostComputeNetwork": endpoint.network,
        "IpConfigurations": [{"IpAddress": address} for address in endpoint.addresses],
        "MacAddress": endpoint.mac,
        "Flags": endpoint.flags,
    }
    if endpoint.provider:
        settings = {PROVIDER_ADDRESS: endpoint.provider}
        document["Policies"] = [{"Type": PROVIDER_ADDRESS, "Settings": settings}]
    return _text(_present(document) | {"Dns": {}, "Health": {"Extra": {}}, "SchemaVersion": SCHEMA})


def load_balancer_settings(balancer: HcnLoadBalancer) -> str:
    """The document that creates a load balancer, or replaces the settings of one."""
    document = {
        "HostComputeEndpoints": balancer.endpoints,
        "SourceVIP": balancer.source_vip,
        "FrontendVIPs": balancer.vips,
        "PortMappings": [
            _present(
                {
                    "Protocol": mapping.protocol,
                    "InternalPort": mapping.internal_port,
                    "ExternalPort": mapping.external_port,
                    "DistributionType": mapping.distribution,
                    "Flags": mapping.flags,
                }
            )
            for mapping in balancer.mappings
        ],
        "Flags": balancer.flags,
    }
    return _text(_present(document) | {"SchemaVersion": SCHEMA})


def read_ids(text: str) -> frozenset[str]:
    """The ids in the answer of an enumeration; what is no id is left out.

    Raises:
        DocumentError: it is no list of texts.
    """
    return frozenset(values.same_id(found) for found in _read(text, list[str] | None) or () if is_id(found))


def read_id(text: str) -> str:
    """The id of an object of any kind.

    Raises:
        DocumentError: it cannot be read.
    """
    return values.same_id(_read(text, _IdentityDocument).id)


def read_network(text: str) -> HcnNetwork:
    """A network.

    Raises:
        DocumentError: it cannot be read.
    """
    read = _read(text, _NetworkDocument)
    subnets = []
    for policy in read.policies or ():
        if str(policy.type).lower() == REMOTE_SUBNET_ROUTE.lower():
            settings = _convert(policy.settings, _RemoteSubnetDocument)
            subnets.append(
                values.RemoteSubnet(
                    settings.destination_prefix or "",
                    values.same_address(settings.provider_address or ""),
                    settings.isolation_id or 0,
                    values.same_mac(settings.distributed_router_mac_address or ""),
                )
            )
    return HcnNetwork(
        id=values.same_id(read.id), name=read.name or "", type=str(read.type or ""), subnets=tuple(subnets)
    )


def read_endpoint(text: str) -> HcnEndpoint:
    """An endpoint.

    Raises:
        DocumentError: it cannot be read.
    """
    read = _read(text, _EndpointDocument)
    provider = ""
    for policy in read.policies or ():
        if str(policy.type).lower() == PROVIDER_ADDRESS.lower() and isinstance(policy.settings, dict):
            provider = values.same_address(str(policy.settings.get(PROVIDER_ADDRESS) or ""))
    found = (configuration.ip_address for configuration in read.ip_configurations or ())
    return HcnEndpoint(
        network=values.same_id(read.host_compute_network or ""),
        addresses=tuple(values.same_address(address) for address in found if address),
        mac=values.same_mac(read.mac_address or ""),
        flags=_number(read.flags, _ENDPOINT_FLAGS),
        provider=provider,
        name=read.name or "",
        id=values.same_id(read.id),
    )


def read_load_balancer(text: str) -> HcnLoadBalancer:
    """A load balancer.

    Raises:
        DocumentError: it cannot be read.
    """
    read = _read(text, _LoadBalancerDocument)
    mappings = (
        PortMapping(
            protocol=_number(mapping.protocol, PROTOCOLS),
            internal_port=mapping.internal_port or 0,
            external_port=mapping.external_port or 0,
            distribution=_number(mapping.distribution_type, _DISTRIBUTIONS),
            flags=_number(mapping.flags, _MAPPING_FLAGS),
        )
        for mapping in read.port_mappings or ()
    )
    return HcnLoadBalancer(
        endpoints=tuple(sorted(map(values.same_id, read.host_compute_endpoints or ()))),
        vips=tuple(sorted(filter(None, map(_specified, read.vips or ())))),
        mappings=tuple(mappings),
        source_vip=_specified(read.source_vip),
        flags=_number(read.flags, _FLAGS),
        id=values.same_id(read.id),
    )


def read_version(text: str) -> HnsVersion:
    """The version of HNS.

    Raises:
        DocumentError: it cannot be read, or it is a failure.
    """
    read = _read(text, _GlobalsDocument)
    if not read.success or read.output is None:
        raise DocumentError(f"HNS does not return its version: {read.error or 'no reason is given'}")
    return HnsVersion(read.output.major, read.output.minor)


def is_id(text: str) -> bool:
    """Whether a text is a GUID."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _text(document: Mapping[str, Any]) -> str:
    return msgspec.json.encode(document).decode()


def _present(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if value}


def _read(text: str, type_: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=type_)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as e:
        raise DocumentError(str(e)) from None


def _convert(tree: Any, type_: Any) -> Any:
    try:
        return msgspec.convert(tree, type_)
    except msgspec.ValidationError as e:
        raise DocumentError(str(e)) from None


def _specified(address: str | None) -> str:
    """An address in the one form; "" if there is none, which HNS may say by the unspecified address."""
    same = values.same_address(address or "")
    return "" if same in _UNSPECIFIED else same


_UNSPECIFIED: Final = {"0.0.0.0", "::"}


def _number(value: int | str | None, names: Mapping[str, int]) -> int:
    """A number that HNS may print as a name, as several, or as digits in a text; names it has not are 0."""
    if value is None or isinstance(value, int):
        return value or 0
    parts: Iterable[str] = value.replace("|", ",").split(",")
    number = 0
    for part in parts:
        word = part.strip().lower()
        number |= int(word) if word.isascii() and word.isdigit() else names.get(word, 0)
    return number
