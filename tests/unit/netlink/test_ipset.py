"""IP sets' messages as an independent decoder reads them; that the kernel agrees is shown in the virtual machine."""

from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2.netlink.nfnetlink.ipset import ipset_msg

from kubeproxy.api.addresses import pack
from kubeproxy.netlink import ipset, ipvs, wire
from kubeproxy.netlink.ipset import Element, Sets
from kubeproxy.netlink.wire import NetlinkError

ADD, DELETE, CREATE, SWAP = (6 << 8 | command for command in (9, 10, 2, 6))
V4, V6 = pack("10.96.0.1"), pack("fd00:10:96::1")


class Kernel:
    """Takes messages, and answers as told.

    Attributes:
        sent: the requests.
        refuse: places of requests to be refused, for each time something is submitted.
    """

    def __init__(self) -> None:
        self.sent: list[wire.Request] = []
        self.refuse: list[dict[int, NetlinkError]] = []

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[wire.Message]:
        self.sent.append(wire.Request(kind, flags, body))
        if kind & 0xFF == 13:  # which revision of a type there is
            return [wire.Message(kind, 0, 1, 1, memoryview(bytes(4) + wire.attribute(4, b"\7")))]
        return []

    def submit(self, requests: list[wire.Request]) -> dict[int, NetlinkError]:
        self.sent += requests
        return self.refuse.pop(0) if self.refuse else {}


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def sets(kernel: Kernel) -> Sets:
    made: Any = Sets.__new__(Sets)
    made._socket = kernel
    return made  # type: ignore[no-any-return]


def read(request: wire.Request) -> Any:
    decoded = ipset_msg(wire.message(request.type, wire.REQUEST | request.flags, request.body))
    decoded.decode()
    assert decoded.get("IPSET_ATTR_PROTOCOL") == 6
    return decoded


def value(found: Any) -> Any:
    """An address is in an attribute of its family."""
    return found["attrs"][0][1] if isinstance(found, dict) and "attrs" in found else found


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        (Element(V4), {"IP": "10.96.0.1"}),
        (Element(V6), {"IP": "fd00:10:96::1"}),
        (Element(port=30080), {"PORT": 30080}),
        (Element(port=0), {"PORT": 0}),
        (Element(V4, ipvs.TCP, 80), {"IP": "10.96.0.1", "PORT": 80, "PROTO": 6}),
        (
            Element(V6, ipvs.SCTP, 80, V6),
            {"IP": "fd00:10:96::1", "PORT": 80, "PROTO": 132, "IP2": "fd00:10:96::1"},
        ),
        (
            Element(V4, ipvs.UDP, 53, pack("10.0.0.0"), 8),
            {"IP": "10.96.0.1", "PORT": 53, "PROTO": 17, "IP2": "10.0.0.0", "CIDR2": 8},
        ),
    ],
)
def test_an_element(kernel: Kernel, sets: Sets, element: Element, expected: dict[str, Any]) -> None:
    assert sets.add("KUBE-X", [element]) == {}
    assert sets.delete("KUBE-X", [element]) == {}
    for request, command in zip(kernel.sent, (ADD, DELETE), strict=True):
        assert (request.type, request.flags) == (
            command,
            0,
        )  # without EXCL, what is there already is no error
        decoded = read(request)
        assert decoded.get("IPSET_ATTR_SETNAME") == "KUBE-X"
        ((_, data),) = decoded.get("IPSET_ATTR_ADT")["attrs"]
        found = {
            name.removeprefix("IPSET_ATTR_").removesuffix("_FROM"): value(v) for name, v in data["attrs"]
        }
        assert found == expected


@pytest.mark.parametrize(
    ("kind", "domain", "revision"), [(ipset.HASH_IP, AF_INET, 5), (ipset.HASH_IP_PORT_NET, AF_INET6, 7)]
)
def test_a_hash_is_made(kernel: Kernel, sets: Sets, kind: str, domain: int, revision: int) -> None:
    sets.create("KUBE-X", kind, domain, 1 << 17)
    request = kernel.sent[-1]
    assert (request.type, request.flags) == (CREATE, wire.CREATE)
    decoded = read(request)
    assert decoded.get("IPSET_ATTR_TYPENAME") == kind
    assert decoded.get("IPSET_ATTR_FAMILY") == domain
    assert decoded.get("IPSET_ATTR_REVISION") == revision
    data = decoded.get("IPSET_ATTR_DATA")
    assert (data.get("IPSET_ATTR_HASHSIZE"), data.get("IPSET_ATTR_MAXELEM")) == (1024, 1 << 17)


def test_a_bitmap_of_all_ports_is_made(kernel: Kernel, sets: Sets) -> None:
    sets.create("KUBE-X", ipset.BITMAP_PORT, AF_INET)
    decoded = read(kernel.sent[-1])
    assert decoded.get("IPSET_ATTR_FAMILY") == 0
    ports = [v for name, v in decoded.get("IPSET_ATTR_DATA")["attrs"] if "PORT" in name]
    assert ports == [0, 65535]


def test_sets_change_places(kernel: Kernel, sets: Sets) -> None:
    sets.swap("KUBE-X", "KUBE-Y")
    decoded = read(kernel.sent[-1])
    assert decoded["header"]["type"] == SWAP
    assert (decoded.get("IPSET_ATTR_SETNAME"), decoded.get("IPSET_ATTR_TYPENAME")) == ("KUBE-X", "KUBE-Y")


def test_many_elements_share_messages_that_fit(kernel: Kernel, sets: Sets) -> None:
    elements = [Element(V6, ipvs.TCP, port, V6) for port in range(3000)]
    assert sets.add("KUBE-X", elements) == {}
    assert 2 <= len(kernel.sent) <= 5
    ports = [
        data.get("IPSET_ATTR_PORT", data.get("IPSET_ATTR_PORT_FROM"))
        for request in kernel.sent
        for _, data in read(request).get("IPSET_ATTR_ADT")["attrs"]
    ]
    assert ports == list(range(3000))


def test_what_is_refused_is_found_and_the_rest_is_there(kernel: Kernel, sets: Sets) -> None:
    kernel.refuse = [{0: NetlinkError(4352)}, {1: NetlinkError(4352)}]
    one, two = Element(V4), Element(V6)
    refused = sets.add("KUBE-X", [one, two])
    assert list(refused) == [two]
    assert "the set is full" in str(refused[two])
    assert len(kernel.sent) == 3


def test_nothing_is_sent_for_no_elements(kernel: Kernel, sets: Sets) -> None:
    assert sets.add("KUBE-X", []) == {}
    assert kernel.sent == []
