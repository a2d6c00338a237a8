"""Listing addresses while they change; that they are the host's is shown in tests/kernel/test_netlink.py."""

import errno
from collections.abc import Iterator

import pytest

from kubeproxy.netlink import route, wire
from kubeproxy.netlink.route import Address
from tests.machines import MACHINE

ONE = Address(b"\x7f\0\0\1", 8, 1)


@pytest.mark.parametrize("times", [1, 9])
def test_a_listing_that_a_change_ran_into_is_done_again(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def addresses(_: wire.Socket) -> Iterator[Address]:
        runs.append(1)
        yield ONE
        if len(runs) <= times:
            raise wire.NetlinkError(errno.EINTR)

    monkeypatch.setattr(route, "_addresses", addresses)
    assert route.addresses(MACHINE) == [ONE]
    assert len(runs) == times + 1


@pytest.mark.parametrize(("code", "runs"), [(errno.EINTR, 10), (errno.EPERM, 1)])
def test_what_does_not_get_better_is_raised(code: int, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def addresses(_: wire.Socket) -> Iterator[Address]:
        ran.append(1)
        yield ONE
        raise wire.NetlinkError(code)

    monkeypatch.setattr(route, "_addresses", addresses)
    with pytest.raises(OSError) as caught:
        route.addresses(MACHINE)
    assert caught.value.errno == code
    assert len(ran) == runs
