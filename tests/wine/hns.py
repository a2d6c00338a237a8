"""What the driver asks of HNS, through the C functions that Windows documents."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from kubeproxy.windows.calls import HnsNotice, NoticeKind
from kubeproxy.windows.errors import HcnError, HcnTrouble
from kubeproxy.windows.hcn import HostNetworking
from kubeproxy.windows.values import REMOTE_ENDPOINT, HcnEndpoint, HcnLoadBalancer, HnsVersion, PortMapping
from tests.wine.client import WineCalls, build


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WineCalls]:
    folder: Path = tmp_path_factory.mktemp("wine")
    with WineCalls(build(folder), folder / "prefix") as made:
        yield made


@pytest.fixture
def hns(calls: WineCalls) -> Iterator[HostNetworking]:
    """HNS; every handle is closed at the end."""
    made = HostNetworking(calls)
    yield made
    made.close()
    assert calls.handles() == 0


def remote(hns: HostNetworking, address: str = "10.244.2.21") -> HcnEndpoint:
    network = hns.network("cbr0net")
    assert network is not None
    return HcnEndpoint(network.id, (address,), "02-11-0a-f4-02-15", REMOTE_ENDPOINT)


def test_the_version_and_the_network(hns: HostNetworking) -> None:
    assert hns.version == HnsVersion(15, 5)
    found = hns.network("cbr0net")
    assert found is not None
    assert (found.id, found.type) == ("0a0b0c0d-0102-0304-0506-0708090a0b0c", "L2Bridge")
    assert hns.network("none") is None


def test_an_endpoint(hns: HostNetworking) -> None:
    wanted = remote(hns)
    ident = hns.create_endpoint(wanted)
    assert hns.endpoint_ids(wanted.network) == {ident}
    assert hns.endpoint(ident) == replace(wanted, id=ident)
    hns.delete_endpoint(ident)
    assert hns.endpoint(ident) is None
    assert not hns.endpoint_ids(wanted.network)


def test_a_load_balancer_is_created_changed_and_deleted(hns: HostNetworking) -> None:
    first, second = (hns.create_endpoint(remote(hns, f"10.244.2.{i}")) for i in (21, 22))
    wanted = HcnLoadBalancer((first,), ("10.96.0.10",), (PortMapping(6, 8080, 80, 2, 16),), "10.244.1.250", 1)
    ident = hns.create_load_balancer(wanted).id
    assert hns.load_balancer_ids() == {ident}
    assert hns.load_balancer(ident) == replace(wanted, id=ident)
    changed = replace(wanted, id=ident, endpoints=tuple(sorted((first, second))))
    hns.modify_load_balancer(changed)
    assert hns.load_balancer(ident) == changed
    hns.delete_load_balancer(ident)
    for each in (first, second):
        hns.delete_endpoint(each)
    assert not hns.load_balancer_ids()


def test_an_error_has_its_code_and_its_record(hns: HostNetworking) -> None:
    nothing = HcnLoadBalancer((), (), (), id="11111111-2222-3333-4444-555555555555")
    with pytest.raises(HcnError, match="Element not found") as raised:
        hns.modify_load_balancer(nothing)
    assert raised.value.trouble is HcnTrouble.NOT_FOUND


def test_text_that_is_not_ascii(hns: HostNetworking) -> None:
    wanted = replace(remote(hns), mac="02-11-0a-f4-02-16", provider="Übung \N{GRINNING FACE}")
    ident = hns.create_endpoint(wanted)
    found = hns.endpoint(ident)
    assert found is not None
    assert found.provider == wanted.provider
    hns.delete_endpoint(ident)


def test_it_is_reported_that_hns_stops(calls: WineCalls, hns: HostNetworking) -> None:
    seen: list[HnsNotice] = []
    hns.watch(seen.append)
    calls.disconnect()
    assert [each.kind for each in seen] == [NoticeKind.SERVICE_DISCONNECT]
