"""Documents of HNS: requests are those of the reference, answers are read in any form."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.windows import documents, values
from kubeproxy.windows.documents import DocumentError
from kubeproxy.windows.values import (
    HcnEndpoint,
    HcnLoadBalancer,
    HcnNetwork,
    HnsVersion,
    PortMapping,
    RemoteSubnet,
)

NETWORK = "00000000-0000-0000-0000-000000000001"
ENDPOINT = "aaaaaaaa-0000-0000-0000-00000000000a"
BALANCER = "bbbbbbbb-0000-0000-0000-00000000000b"


def test_a_remote_endpoint_on_an_overlay_network() -> None:
    endpoint = HcnEndpoint(NETWORK, ("10.244.2.21",), "02-11-0a-f4-02-15", 1, "192.0.2.2")
    assert documents.endpoint_settings(endpoint) == (
        f'{{"HostComputeNetwork":"{NETWORK}","IpConfigurations":[{{"IpAddress":"10.244.2.21"}}],'
        '"MacAddress":"02-11-0a-f4-02-15","Flags":1,'
        '"Policies":[{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.2"}}],'
        '"Dns":{},"Health":{"Extra":{}},"SchemaVersion":{"Major":2,"Minor":0}}'
    )


def test_a_local_endpoint_has_neither_flags_nor_policies() -> None:
    endpoint = HcnEndpoint(NETWORK, ("10.244.1.250",), "00-15-5d-00-00-01")
    assert set(json.loads(documents.endpoint_settings(endpoint))) == {
        "HostComputeNetwork", "IpConfigurations", "MacAddress", "Dns", "Health", "SchemaVersion"
    }  # fmt: skip


def test_a_load_balancer_with_everything() -> None:
    mapping = PortMapping(6, 8080, 80, values.SOURCE_IP, 18)
    balancer = HcnLoadBalancer((ENDPOINT,), ("10.96.0.10",), (mapping,), "10.244.1.250", 1)
    assert documents.load_balancer_settings(balancer) == (
        f'{{"HostComputeEndpoints":["{ENDPOINT}"],"SourceVIP":"10.244.1.250","FrontendVIPs":["10.96.0.10"],'
        '"PortMappings":[{"Protocol":6,"InternalPort":8080,"ExternalPort":80,"DistributionType":2,"Flags":18}],'
        '"Flags":1,"SchemaVersion":{"Major":2,"Minor":0}}'
    )


def test_what_is_zero_or_empty_is_not_sent() -> None:
    balancer = HcnLoadBalancer((ENDPOINT,), (), (PortMapping(17, 53, 30053),))
    assert documents.load_balancer_settings(balancer) == (
        f'{{"HostComputeEndpoints":["{ENDPOINT}"],'
        '"PortMappings":[{"Protocol":17,"InternalPort":53,"ExternalPort":30053}],'
        '"SchemaVersion":{"Major":2,"Minor":0}}'
    )


def test_a_filter_is_a_text_that_holds_a_document() -> None:
    assert documents.query() == '{"SchemaVersion":{"Major":2,"Minor":0}}'
    assert documents.query({"Name": 'a"b'}) == (
        '{"SchemaVersion":{"Major":2,"Minor":0},"Filter":"{\\"Name\\":\\"a\\\\\\"b\\"}"}'
    )


def _text(**fields: Any) -> str:
    return json.dumps(fields)


def test_a_network() -> None:
    text = _text(
        ID=f"{{{NETWORK.upper()}}}",
        Name="vxlan0",
        Type="Overlay",
        Ipams=[{"Subnets": []}],
        Policies=[
            {"Type": "RemoteSubnetRoute", "Settings": {
                "DestinationPrefix": "10.244.2.0/24", "IsolationId": 4096, "ProviderAddress": "192.0.2.2",
                "DistributedRouterMacAddress": "00:15:5D:00:00:02"}},
            {"Type": "HostRoute", "Settings": None},
            {"Type": "remotesubnetroute", "Settings": {"DestinationPrefix": "10.244.3.0/24"}},
        ],
    )  # fmt: skip
    assert documents.read_network(text) == HcnNetwork(
        NETWORK,
        "vxlan0",
        "Overlay",
        (
            RemoteSubnet("10.244.2.0/24", "192.0.2.2", 4096, "00-15-5d-00-00-02"),
            RemoteSubnet("10.244.3.0/24"),
        ),
    )
    assert documents.read_network(text).overlay
    assert documents.read_network(_text(ID=NETWORK, Policies=None)) == HcnNetwork(NETWORK, "")


def test_an_endpoint() -> None:
    text = _text(
        ID=ENDPOINT.upper(),
        Name="cbr0",
        HostComputeNetwork=NETWORK.upper(),
        IpConfigurations=[{"IpAddress": "10.244.1.2", "PrefixLength": 24}, {"IpAddress": "FD00:0:0::2"}, {}],
        MacAddress="00155D000001",
        Flags="RemoteEndpoint",
        Policies=[{"Type": 7}, {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.0.2.1"}}],
        Health={"Extra": {"Resources": {}}},
    )
    assert documents.read_endpoint(text) == HcnEndpoint(
        NETWORK, ("10.244.1.2", "fd00::2"), "00-15-5d-00-00-01", 1, "192.0.2.1", "cbr0", ENDPOINT
    )


def test_numbers_may_be_names_and_lists_may_be_null() -> None:
    text = _text(
        ID=BALANCER,
        HostComputeEndpoints=["FF" + ENDPOINT[2:], ENDPOINT.upper()],
        FrontendVIPs=["FD00:10:96:0::A", ""],
        PortMappings=[
            {"Protocol": "TCP", "InternalPort": 8080, "ExternalPort": 80, "DistributionType": "SourceIP",
             "Flags": "LocalRoutedVIP, VipExternalIP"},
            {"Protocol": "17", "InternalPort": None},
        ],
        Flags="DSR|IPv6|Other",
        SourceVIP=None,
    )  # fmt: skip
    assert documents.read_load_balancer(text) == HcnLoadBalancer(
        (ENDPOINT, "ff" + ENDPOINT[2:]),
        ("fd00:10:96::a",),
        (PortMapping(6, 8080, 80, values.SOURCE_IP, 18), PortMapping(17, 0, 0)),
        "",
        3,
        BALANCER,
    )
    assert documents.read_load_balancer(_text(ID=BALANCER, PortMappings=None)) == HcnLoadBalancer(
        (), id=BALANCER
    )


def test_ids() -> None:
    assert documents.read_ids("null") == frozenset()
    assert documents.read_ids(json.dumps([ENDPOINT.upper(), "", "x"])) == {ENDPOINT}
    assert documents.read_id(_text(ID=ENDPOINT.upper(), Name=7)) == ENDPOINT


def test_the_version() -> None:
    assert documents.read_version('{"Success":true,"Output":{"Major":15,"Minor":5}}') == HnsVersion(15, 5)
    for text in ('{"Success":false,"Error":"HNS is starting"}', '{"Success":true}', "[]", ""):
        with pytest.raises(DocumentError):
            documents.read_version(text)
    with pytest.raises(DocumentError, match="HNS is starting"):
        documents.read_version('{"Success":false,"Error":"HNS is starting"}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(ENDPOINT),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["ID", "Flags", "Policies", "PortMappings", "FrontendVIPs", "Type", "Settings", "Protocol"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_document_is_read_or_is_an_error(tree: Any) -> None:
    text = json.dumps(tree)
    for read in (
        documents.read_ids,
        documents.read_network,
        documents.read_endpoint,
        documents.read_load_balancer,
    ):
        try:
            read(text)
        except DocumentError:
            continue


@pytest.mark.parametrize("text", ["[" * 100_000, '{"ID":' * 5000, "\ud800"])
def test_a_document_without_an_end(text: str) -> None:
    with pytest.raises(DocumentError):
        documents.read_endpoint(text)


PORTS = st.integers(1, 65535)


@given(
    st.lists(st.uuids().map(str), min_size=1, max_size=5, unique=True),
    st.lists(st.ip_addresses().filter(lambda each: not each.is_unspecified).map(str), max_size=1),
    st.builds(
        PortMapping, st.sampled_from([6, 17, 132]), PORTS, PORTS, st.integers(0, 2), st.integers(0, 31)
    ),
    st.integers(0, 3),
)
def test_a_load_balancer_is_read_as_it_was_sent(
    endpoints: list[str], vips: list[str], mapping: PortMapping, flags: int
) -> None:
    balancer = HcnLoadBalancer(tuple(sorted(endpoints)), tuple(vips), (mapping,), "10.0.0.1", flags, BALANCER)
    document = msgspec.json.decode(documents.load_balancer_settings(balancer)) | {"ID": BALANCER}
    assert documents.read_load_balancer(json.dumps(document)) == balancer
