"""The start: sysctls, the scheduler, and what is told where something is missing."""

import errno
from typing import Any

import pytest
from msgspec.structs import replace

from kubeproxy.api.addresses import pack
from kubeproxy.backends.base import UnsupportedError
from kubeproxy.backends.ipvs import prepare
from kubeproxy.backends.ipvs.fake import FakeIPVSKernel
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import IPVSSettings
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Settings, Virtual
from tests.fakes.cluster import NODE6
from tests.unit.backends.ipvs.rig import HERE

CONNTRACK = "net/ipv4/vs/conntrack"


@pytest.mark.parametrize(
    ("release", "reuse"), [("4.19.0-27-amd64", True), ("5.8.18", True), ("5.9.0", False), ("6.1.0-40", False)]
)
def test_ports_that_come_again_are_a_matter_of_old_kernels(release: str, reuse: bool) -> None:
    wanted = prepare.sysctls(IPVSSettings(), release)
    assert wanted.get("net/ipv4/vs/conn_reuse_mode") == (0 if reuse else None)
    assert wanted[CONNTRACK] == wanted["net/ipv4/ip_forward"] == 1
    assert "net/ipv4/conf/all/arp_ignore" not in wanted


def test_strict_arp() -> None:
    wanted = prepare.sysctls(IPVSSettings(strict_arp=True), "6.1")
    assert wanted["net/ipv4/conf/all/arp_ignore"] == 1
    assert wanted["net/ipv4/conf/all/arp_announce"] == 2


def test_a_sysctl_there_is_not_or_that_cannot_be_set() -> None:
    machine = FakeMachine()
    with pytest.raises(UnsupportedError, match="the kernel has no net/ipv4/vs/conntrack"):
        prepare.set_sysctl(machine, CONNTRACK, 1)
    machine.settings[CONNTRACK] = "0"
    machine.fixed.add(CONNTRACK)
    with pytest.raises(
        UnsupportedError, match=r"conntrack must be 1 and cannot be set: Read-only.*--init-only"
    ):
        prepare.set_sysctl(machine, CONNTRACK, 1)


class TestScheduler:
    """The trial on an address nobody has."""

    def test_one_there_is(self) -> None:
        kernel: Any = FakeIPVSKernel()
        kernel.virtuals[Virtual(ipvs.TCP, pack("198.51.100.0"), 20000)] = (
            Settings("rr"),
            {},
        )  # of a crashed run
        prepare.try_scheduler(kernel, HERE)
        prepare.try_scheduler(kernel, replace(NODE6, ipvs=IPVSSettings(scheduler="mh")))
        assert not kernel.virtuals

    def test_one_there_is_not(self) -> None:
        kernel: Any = FakeIPVSKernel()
        node = replace(HERE, ipvs=IPVSSettings(scheduler="nosuch"))
        with pytest.raises(UnsupportedError, match=r"no scheduler 'nosuch' \(module ip_vs_nosuch\)"):
            prepare.try_scheduler(kernel, node)

    def test_another_refusal_is_told_as_it_is(self) -> None:
        kernel: Any = FakeIPVSKernel()
        kernel.refuse = lambda _: errno.EPERM
        with pytest.raises(UnsupportedError, match=r"IPv4: a virtual server is refused: .*not permitted"):
            prepare.try_scheduler(kernel, HERE)


def test_what_the_kernel_lacks_is_named() -> None:
    assert "CAP_NET_ADMIN is missing" in str(prepare.lacking("IPVS", "ip_vs", OSError(errno.EPERM, "")))
    error = prepare.lacking("IPVS", "ip_vs", OSError(errno.ENOENT, "No such file or directory"))
    assert (
        str(error) == "ipvs mode cannot run: the kernel has no IPVS (module ip_vs): No such file or directory"
    )
