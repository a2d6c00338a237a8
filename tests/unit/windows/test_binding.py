"""The binding of computenetwork.dll: pointers, GUIDs, UTF-16, who frees what, and HRESULTs, on C functions."""

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kubeproxy.windows import binding, errors, values
from kubeproxy.windows import text as text16
from kubeproxy.windows.calls import Entity, HnsNotice, NoticeKind
from kubeproxy.windows.documents import query
from kubeproxy.windows.errors import HcnError, HcnTrouble, HnsMissingError
from kubeproxy.windows.fake import FakeHns
from kubeproxy.windows.fake_profiles import WS2022, WS2025
from kubeproxy.windows.hcn import HostNetworking
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, HnsVersion, PortMapping
from tests.fakes.hns_functions import CHns, Heap, error_record, text_at

ABSENT = "01234567-89ab-cdef-0123-456789abcdef"
Part = tuple[FakeHns, CHns, HostNetworking]


@pytest.fixture
def part() -> Any:
    """HNS, its C functions, and the connection through the binding; nothing may be left unfreed."""
    hns = FakeHns(WS2025)
    functions = CHns(hns)
    yield hns, functions, HostNetworking(functions.bound())
    assert not functions.heap.texts
    assert hns.open_handles == 0


def used(network: str, hcn: HostNetworking) -> list[Any]:
    """Calls every method; returns what they return."""
    remote = HcnEndpoint(network, ("10.244.2.21",), mac="02-11-0a-f4-02-15", flags=1)
    first = hcn.create_endpoint(remote)
    second = hcn.create_endpoint(msgspec.structs.replace(remote, addresses=("10.244.2.22",), id=ABSENT))
    mapping = PortMapping(17, 53, 5353, values.SOURCE_IP, 18)
    balancer = HcnLoadBalancer((first,), (), (mapping,), source_vip="10.244.1.250", flags=values.DSR)
    made = hcn.create_load_balancer(balancer).id
    before = hcn.load_balancer(made)
    hcn.modify_load_balancer(msgspec.structs.replace(balancer, id=made, endpoints=(first, second)))
    found = [hcn.version, hcn.network("cbr0"), hcn.endpoint_ids(network), hcn.endpoint(second), made, before]
    found += [hcn.load_balancer(made), hcn.endpoint_named("none"), hcn.load_balancer_ids()]
    hcn.delete_load_balancer(made)
    hcn.delete_endpoint(first)
    hcn.delete_endpoint(first)
    return [*found, hcn.endpoint(first), hcn.endpoint_ids(network), hcn.load_balancer_ids()]


def test_the_binding_does_the_same_as_the_fake(part: Part) -> None:
    hns, functions, hcn = part
    direct = FakeHns(WS2025)
    expected = used(direct.add_network("cbr0", remote={"10.244.2.0/24": "192.0.2.2"}), direct.hcn())
    assert used(hns.add_network("cbr0", remote={"10.244.2.0/24": "192.0.2.2"}), hcn) == expected
    assert hns.calls == direct.calls
    assert expected[0] == HnsVersion(15, 5)
    assert functions.heap.freed > 10


def test_the_error_record_is_read_and_freed(part: Part) -> None:
    hns, functions, _ = part
    bound = functions.bound()
    freed = functions.heap.freed
    with pytest.raises(HcnError, match=r"Element not found\.") as caught:
        bound.open(Entity.LOAD_BALANCER, ABSENT)
    assert (caught.value.code, caught.value.text) == (errors.NOT_FOUND, "Element not found.")
    assert functions.heap.freed == freed + 1
    assert hns.calls[-1].ident == ABSENT


@pytest.mark.parametrize("record", [None, "", "Access is denied.\r\n", '{"Error":7}', '["x"]', "{"])
def test_an_error_record_may_be_missing_or_no_document(part: Part, record: str | None) -> None:
    hns, functions, hcn = part
    functions.record = lambda _: record
    hns.fail("HcnEnumerate*", errors.E_ACCESSDENIED)
    with pytest.raises(HcnError) as caught:
        hcn.load_balancer_ids()
    assert (caught.value.code, caught.value.trouble) == (errors.E_ACCESSDENIED, HcnTrouble.DENIED)
    assert caught.value.text == " ".join((record or "").split())


def test_an_error_record_is_an_error_even_when_the_hresult_is_not(part: Part) -> None:
    hns, functions, hcn = part
    network = hns.add_network("cbr0")
    real = functions.computenetwork.HcnEnumerateEndpoints
    give = error_record(HcnError("", errors.PORT_ALREADY_EXISTS, "The port exists"))

    @ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3)
    def strange(_: int, out: int, record: int) -> int:
        functions.heap.give("[]", out)
        functions.heap.give(give, record)
        return 0

    functions.computenetwork.HcnEnumerateEndpoints = strange
    with pytest.raises(HcnError) as caught:
        HostNetworking(functions.bound()).endpoint_ids(network)
    assert caught.value.code == errors.PORT_ALREADY_EXISTS
    functions.computenetwork.HcnEnumerateEndpoints = real
    assert hcn.endpoint_ids(network) == frozenset()


def test_a_handle_that_comes_with_an_error_is_closed(part: Part) -> None:
    hns, functions, _ = part
    hns.add_network("cbr0")

    @ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3)
    def strange(_: int, out: int, record: int) -> int:
        ctypes.c_void_p.from_address(out).value = 0x7FFD_0000_0007
        functions.heap.give(error_record(HcnError("", errors.DEGRADED_OPERATION)), record)
        return 0

    closed = []

    @ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
    def close(handle: int) -> int:
        closed.append(handle)
        return 0

    functions.computenetwork.HcnOpenEndpoint = strange
    functions.computenetwork.HcnCloseEndpoint = close
    with pytest.raises(HcnError) as caught:
        functions.bound().open(Entity.ENDPOINT, ABSENT)
    assert caught.value.trouble is HcnTrouble.DAMAGED
    assert closed == [0x7FFD_0000_0007]


@pytest.mark.parametrize("function", ["HcnQueryEndpointProperties", "HcnQueryLoadBalancerProperties"])
def test_handles_are_closed_when_a_query_fails(part: Part, function: str) -> None:
    hns, _, hcn = part
    network = hns.add_network("cbr0")
    ident = hcn.create_endpoint(HcnEndpoint(network, ("10.244.2.21",), flags=1))
    balancer = HcnLoadBalancer((ident,), (), (PortMapping(6, 80, 80),))
    hns.fail(function, errors.RPC_FAILED, times=-1)
    calls: list[Callable[[], object]] = (
        [
            lambda: hcn.endpoint(ident),
            lambda: hcn.create_endpoint(HcnEndpoint(network, ("10.244.2.22",), flags=1)),
        ]
        if "Endpoint" in function
        else [lambda: hcn.create_load_balancer(balancer)]
    )
    for call in calls:
        with pytest.raises(HcnError):
            call()
        assert hns.open_handles == 0


def test_ids_are_stored_as_windows_does() -> None:
    raw = bytes(binding.Guid.of("01234567-89ab-cdef-0123-456789abcdef"))
    assert raw.hex() == "67452301ab89efcd0123456789abcdef"
    assert bytes(binding.Guid.of("")) == bytes(16)
    assert ctypes.sizeof(binding.Guid) == 16


@pytest.mark.parametrize("text", ["", "cbr0", "Zürich", "網路", "🙂", "x" * 100_000, "ā" * 4097, "a\u0100b"])
def test_texts_are_utf_16_of_any_length(text: str) -> None:
    assert text_at(ctypes.addressof(text16.wide(text))) == text
    heap, out = Heap(), ctypes.c_void_p()
    heap.give(text, ctypes.addressof(out))
    assert text16.narrow(out.value or 0) == text


def test_a_text_that_is_no_utf_16_does_not_stop_the_program() -> None:
    assert text_at(ctypes.addressof(text16.wide("a\udc00b"))) == "a?b"
    buffer = (ctypes.c_uint16 * 3)(0x61, 0xDC00, 0)
    assert text16.narrow(ctypes.addressof(buffer)) == "a\ufffd"


def test_names_of_networks_are_any_text(part: Part) -> None:
    hns, _, hcn = part
    ident = hns.add_network("Netzwerk „Zürich“ 🙂")
    found = hcn.network("Netzwerk „Zürich“ 🙂")
    assert found is not None
    assert found.id == ident


def test_notifications_are_copied_and_their_function_is_kept(part: Part) -> None:
    hns, _, hcn = part
    notices: list[HnsNotice] = []
    hcn.watch(notices.append)
    gc.collect()
    network = hns.add_network("cbr0")
    hns.stop()
    assert [notice.kind for notice in notices] == [NoticeKind.NETWORK_CREATE, NoticeKind.SERVICE_DISCONNECT]
    assert network in notices[0].data
    assert notices[1].data == ""
    hns.start()
    hcn.watch(notices.append)
    hcn.close()
    gc.collect()
    hns.add_network("other")
    assert len(notices) == 2


def test_a_windows_without_hns() -> None:
    functions = CHns(FakeHns())
    del functions.computenetwork.HcnOpenLoadBalancer
    with pytest.raises(HnsMissingError, match=r"HcnOpenLoadBalancer is missing.*Containers"):
        functions.bound()
    functions = CHns(FakeHns())
    del functions.vmcompute.HNSCall
    with pytest.raises(HnsMissingError, match="HNSCall is missing"):
        functions.bound()
    with pytest.raises(HnsMissingError, match="not Windows"):
        binding.system_binding()


def test_an_old_windows_without_modify_and_notifications() -> None:
    hns = FakeHns(WS2022)
    functions = CHns(hns)
    del functions.computenetwork.HcnModifyLoadBalancer
    del functions.computenetwork.HcnRegisterServiceCallback
    hcn = HostNetworking(functions.bound())
    ident = hcn.create_endpoint(HcnEndpoint(hns.add_network("cbr0"), ("10.244.2.21",), flags=1))
    balancer = HcnLoadBalancer((ident,), (), (PortMapping(6, 80, 80),))
    balancer = msgspec.structs.replace(balancer, id=hcn.create_load_balancer(balancer).id)
    calls: list[Callable[[], object]] = [
        lambda: hcn.modify_load_balancer(balancer),
        lambda: hcn.watch(lambda _: None),
    ]
    for call in calls:
        with pytest.raises(HcnError) as caught:
            call()
        assert caught.value.trouble is HcnTrouble.UNSUPPORTED
    assert hns.open_handles == 0


def test_arguments_reach_the_function_unchanged(part: Part) -> None:
    hns, functions, _ = part
    bound = functions.bound()
    network = bound.open(Entity.NETWORK, hns.add_network("cbr0"))
    assert network > 0xFFFFFFFF
    bound.close(Entity.NETWORK, network)
    text = query({"Name": "cbr0"})
    bound.enumerate(Entity.NETWORK, text)
    assert hns.calls[-1].document == text
