"""IPVS' messages as an independent decoder reads them, and the table the kernel prints."""

import struct
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2.netlink.generic.ipvs import ipvsmsg

from kubeproxy.api.addresses import pack
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.netlink import ipvs, wire
from kubeproxy.netlink.ipvs import IPVSSocket, Load, Real, Settings, Virtual

FAMILY = 33
V4 = Virtual(ipvs.TCP, pack("10.96.0.1"), 80), Real(pack("10.244.1.11"), 8080), AF_INET
V6 = Virtual(ipvs.SCTP, pack("fd00:10:96::1"), 443), Real(pack("fd00:10:244:1::b"), 8443), AF_INET6


@pytest.fixture
def machine() -> IPVSSocket:
    """What makes requests, without a kernel."""
    made = IPVSSocket.__new__(IPVSSocket)
    made._family = FAMILY
    return made


def read(request: wire.Request) -> Any:
    assert (request.type, request.flags) == (FAMILY, 0)
    decoded = ipvsmsg(wire.message(request.type, wire.REQUEST, request.body))
    decoded.decode()
    return decoded


@pytest.mark.parametrize(("virtual", "real", "domain"), [V4, V6])
def test_a_virtual_server(machine: IPVSSocket, virtual: Virtual, real: Real, domain: int) -> None:
    settings = Settings("mh", ipvs.PERSISTENT | ipvs.SCHEDULER_2, 10800)
    for command, request in ((1, machine.add(virtual, settings)), (2, machine.edit(virtual, settings))):
        decoded = read(request)
        assert (decoded["cmd"], decoded["version"]) == (command, 1)
        service = decoded.get("service")
        assert service.get("af") == domain
        assert service.get("protocol") == virtual.protocol
        assert service.get("port") == virtual.port
        assert pack(service.get("addr")) == virtual.address
        assert service.get("sched_name") == "mh"
        assert service.get("timeout") == 10800
        assert service.get("flags")["flags"] == 0x11
        assert service.get("flags")["mask"] & 0x11 == 0x11
        whole = "255.255.255.255" if domain == AF_INET else "128.0.0.0"
        assert service.get("netmask") == whole
    decoded = read(machine.delete(virtual))
    assert decoded["cmd"] == 3
    assert decoded.get("service").get("port") == virtual.port
    assert decoded.get("service").get("sched_name") is None


@pytest.mark.parametrize(("virtual", "real", "domain"), [V4, V6])
def test_a_real_server(machine: IPVSSocket, virtual: Virtual, real: Real, domain: int) -> None:
    for command, weight, request in (
        (5, 1, machine.add_real(virtual, real)),
        (6, 0, machine.edit_real(virtual, real, 0)),
        (7, None, machine.delete_real(virtual, real)),
    ):
        decoded = read(request)
        assert decoded["cmd"] == command
        assert decoded.get("service").get("port") == virtual.port
        dest = decoded.get("dest")
        assert dest.get("addr_family") == domain
        assert dest.get("port") == real.port
        assert dest.get("weight") == weight
        assert dest.get("fwd_method") == (None if weight is None else 0)
        raw = wire.attributes(wire.attributes(request.body[4:])[2])[1]
        assert bytes(raw) == real.address.ljust(16, b"\0")


def test_the_table_the_kernel_prints() -> None:
    text = b"""IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
SCTP  [fd00:0010:0096:0000:0000:0000:0000:0001]:01BB mh persistent 25000 80000000
  -> [fd00:0010:0244:0001:0000:0000:0000:000b]:20FB      Masq    0      7          2         \x20
FWM  00000001 rr\x20\x20
  -> 0A000009:1F90      Masq    1      0          0         \x20
UDP  0A600001:0035 rr\x20\x20
TCP  0A600001:0050 rr\x20\x20
  -> 0AF4010B:1F90      Masq    1      3          0         \x20
  -> 0AF4010C:1F90      Route   1      0          4         \x20
"""
    assert ipvs.read_table(text) == {
        V6[0]: {V6[1]: Load(0, 7, 2)},
        Virtual(ipvs.UDP, V4[0].address, 53): {},
        V4[0]: {V4[1]: Load(1, 3, 0), Real(pack("10.244.1.12"), 8080): Load(1, 0, 4)},
    }


def test_its_fingerprint_changes_with_all_but_connections() -> None:
    line = b"  -> [fd00:0010:0244:0001:0000:0000:0000:000b]:20FB      Masq    0      7          2         \n"
    text = b"IP Virtual Server\nProt\n  -> RemoteAddress\nTCP  0A600001:0050 rr  \n" + line
    number = ipvs.hash_table(text)
    busy = line.replace(b"7          2   ", b"12345678   1234")
    assert ipvs.hash_table(text.replace(line, busy)) == number
    for before, after in (
        (b"Masq    0", b"Masq    1"),
        (b"20FB", b"20FC"),
        (b"0050 rr", b"0050 lc"),
        (line, b""),
    ):
        assert ipvs.hash_table(text.replace(before, after)) != number


def test_what_it_remembers() -> None:
    machine = FakeMachine()
    head = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
    other = "UDP 0AF40102 9C40 0A600001 0050 0AF4010B 1F90 UDP             299\n"
    six = "fd00:0010:0244:0001:0000:0000:0000:000b"
    front = "fd00:0010:0096:0000:0000:0000:0000:0001"
    machine.files["ip_vs_conn"] = (
        f"{head}{other}SCTP {six} 9C40 {front} 01BB {six} 20FB ESTABLISHED     899\n"
    ).encode()
    assert ipvs.remembers(machine, {V4[0], V6[0]})
    assert not ipvs.remembers(machine, {V4[0]})
    machine.files["ip_vs_conn"] = (head + other.replace("UDP ", "TCP ", 1)).encode()
    assert ipvs.remembers(machine, {V4[0]})
    machine.files["ip_vs_conn"] = (head).encode()
    assert not ipvs.remembers(machine, {V4[0]})


def test_an_empty_table() -> None:
    assert ipvs.read_table(b"IP Virtual Server\nProt\n  -> RemoteAddress\n") == {}


def test_flags_are_set_and_unset_by_a_mask(machine: IPVSSocket) -> None:
    body = wire.attributes(machine.edit(V4[0], Settings("rr")).body[4:])
    flags, mask = struct.unpack("=II", wire.attributes(body[1])[7])
    assert flags == 0
    assert mask & (ipvs.PERSISTENT | ipvs.SCHEDULER_2) == ipvs.PERSISTENT | ipvs.SCHEDULER_2
