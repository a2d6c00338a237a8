"""The forms in which the HNS in memory returns objects, which are not always what it was sent.

What of this a real HNS does is not known. A client must not take another form for another object, nor write
an object again because of it.
"""

import ipaddress
from typing import Any, Final, Literal

from kubeproxy import protocols
from kubeproxy.windows import values

ReturnedForm = Literal["case", "names", "defaults", "order", "bits", "lossy", "host address"]
"""case: ids and MAC addresses in upper case, IPv6 addresses in full, nulls.
names: enumerations as names. defaults: what was not sent is there with the value that means nothing.
order: lists and fields in another order. bits: flags have bits more. lossy: some are missing, and so is the
distribution. host address: node ports have the address of the host.
"""

HOST_ADDRESS: Final = "192.0.2.1"
_MORE_BITS: Final = 4096
_FLAGS: Final = {values.DSR: "DSR", values.IPV6: "IPv6"}
_MAPPING_FLAGS: Final = {
    values.ILB: "ILB",
    values.LOCAL_ROUTED_VIP: "LocalRoutedVIP",
    values.USE_MUX: "UseMux",
    values.PRESERVE_DIP: "PreserveDIP",
    values.VIP_EXTERNAL_IP: "VipExternalIP",
}
_DISTRIBUTIONS: Final = {values.SOURCE_IP: "SourceIP", values.SOURCE_IP_PROTOCOL: "SourceIPProtocol"}


def returned(document: dict[str, Any], forms: frozenset[ReturnedForm]) -> dict[str, Any]:
    """A document as HNS returns it."""
    if forms and "PortMappings" in document:
        document = _load_balancer(document, forms)
    if "order" in forms:
        document = _reversed(document)
    if "case" in forms:
        document = _other_case(document)
    return document


def _load_balancer(document: dict[str, Any], forms: frozenset[ReturnedForm]) -> dict[str, Any]:
    found = dict(document)
    found["PortMappings"] = [_mapping(dict(tree), forms) for tree in found["PortMappings"] or ()]
    ipv6 = bool(found.get("Flags", 0) & values.IPV6)
    if "host address" in forms and not found.get("FrontendVIPs"):
        found["FrontendVIPs"] = ["2001:db8:2::1" if ipv6 else HOST_ADDRESS]
    if "defaults" in forms:
        nowhere = "::" if ipv6 else "0.0.0.0"
        found = {"Flags": 0, "SourceVIP": nowhere, "FrontendVIPs": [nowhere]} | found
    if "bits" in forms:
        found["Flags"] = found.get("Flags", 0) | _MORE_BITS
    if "names" in forms:
        found["Flags"] = _names(found.get("Flags", 0), _FLAGS)
    return found


def _mapping(found: dict[str, Any], forms: frozenset[ReturnedForm]) -> dict[str, Any]:
    if "defaults" in forms:
        found = {"DistributionType": 0, "Flags": 0} | found
    if "bits" in forms:
        found["Flags"] = found.get("Flags", 0) | _MORE_BITS
    if "lossy" in forms:
        found["Flags"] = found.get("Flags", 0) & ~values.VIP_EXTERNAL_IP
        found.pop("DistributionType", None)
    if "names" in forms:
        found["Flags"] = _names(found.get("Flags", 0), _MAPPING_FLAGS)
        found["Protocol"] = protocols.NAMES[found["Protocol"]].lower()
        found["DistributionType"] = _DISTRIBUTIONS.get(found.get("DistributionType", 0), "None")
    return found


def _names(flags: int, names: dict[int, str]) -> str:
    """Flags as names; those without one as a number."""
    left = flags & ~sum(names)
    return (
        ", ".join([name for flag, name in names.items() if flags & flag] + [str(left)] * bool(left)) or "None"
    )


def _reversed(tree: Any) -> Any:
    match tree:
        case dict():
            return {name: _reversed(value) for name, value in reversed(tree.items())}
        case list():
            return [_reversed(value) for value in reversed(tree)]
        case _:
            return tree


def _other_case(tree: Any, name: str = "") -> Any:
    match tree:
        case dict():
            return {name: _other_case(value, name) for name, value in tree.items()} | {"Extra": None}
        case list():
            return [_other_case(value, name) for value in tree]
        case str() if name in {"ID", "HostComputeNetwork", "HostComputeEndpoints", "MacAddress"}:
            return tree.upper()
        case str() if name in {"IpAddress", "FrontendVIPs", "SourceVIP", "ProviderAddress"}:
            return ipaddress.ip_address(tree).exploded.upper()
        case _:
            return tree
