"""What the watchdog detects, and how often it looks."""

from collections.abc import Callable

import pytest

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.fake import FakeDriver
from kubeproxy.reconcile.watchdog import FULL_SYNC_SECONDS, Watchdog


class Driver(FakeDriver):
    """A driver whose rules another program can change.

    Attributes:
        whole: whether the kernel holds what was programmed.
        looks: how often that was asked.
        missed: whether something happened before it was watched; or why it cannot be watched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whole = True
        self.looks = 0
        self.missed: bool | OSError = False
        self.disturbed: Callable[[str], None] = lambda _: None

    async def intact(self) -> bool:
        self.looks += 1
        return self.whole

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        if isinstance(self.missed, OSError):
            raise self.missed
        self.disturbed = disturbed
        return self.missed


class Rig:
    """A watchdog that was told of a full sync that ended at 100 and took a second."""

    def __init__(self) -> None:
        self.driver = Driver()
        self.restored = 0
        self.compared = 0
        self.dog = Watchdog(
            self.driver, IPV4, look_seconds=30.0, restore=self._restore, compare=self._compare
        )
        self.dog.compared(100.0, 1.0)

    def _restore(self) -> None:
        self.restored += 1

    def _compare(self) -> None:
        self.compared += 1


async def test_it_looks_from_time_to_time_and_once_an_hour_all_is_compared() -> None:
    rig = Rig()
    now = 100.0
    while now < 100.0 + FULL_SYNC_SECONDS:
        assert rig.dog.next > now
        now = rig.dog.next
        await rig.dog.check(now)
    assert (rig.compared, rig.restored, rig.dog.repairs) == (1, 0, 0)
    assert rig.driver.looks == FULL_SYNC_SECONDS / 30 - 1


async def test_a_comparison_that_takes_long_is_done_less_often() -> None:
    rig = Rig()
    rig.dog.compared(100.0, 20.0)
    await rig.dog.check(100.0 + FULL_SYNC_SECONDS)
    assert rig.compared == 0
    await rig.dog.check(20_100.0)
    assert rig.compared == 1


async def test_drift_is_reported_once_until_its_repair_begins(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.dog.watch()
    rig.driver.disturbed("nft (pid 7) deleted chain x")
    rig.driver.disturbed("nft (pid 7) deleted chain y")
    rig.driver.whole = False
    await rig.dog.check(130.0)
    assert (rig.restored, rig.dog.repairs, rig.dog.drifted) == (1, 1, True)
    assert caplog.messages == ["IPv4: nft (pid 7) deleted chain x; all rules are compared and restored"]
    rig.dog.began()
    assert not rig.dog.drifted
    await rig.dog.check(160.0)
    assert (rig.restored, rig.dog.repairs) == (2, 2)


def test_what_happened_before_it_watched_is_compared_and_is_no_drift() -> None:
    rig = Rig()
    rig.driver.missed = True
    rig.dog.watch()
    assert (rig.restored, rig.compared, rig.dog.repairs, rig.dog.drifted) == (1, 0, 0, False)


def test_a_kernel_that_sends_no_notifications_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.driver.missed = PermissionError(1, "Operation not permitted")
    rig.dog.watch()
    assert rig.restored == 0
    (said,) = caplog.messages
    assert said.startswith("IPv4: changes of the rules by other programs are not detected at once: ")
    assert "Operation not permitted" in said
