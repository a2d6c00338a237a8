"""A mode whose kernel is a table of plans: for tests, and for nodes that are simulated on a fake machine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from kubeproxy.backends.base import Change, Driver, Failures
from kubeproxy.backends.mode import Mode
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan


class FakeDriver:
    """See `base.Driver`.

    Attributes:
        plans: what is programmed.
        loads: how often all was loaded.
        applied: the Services of each `apply`.
    """

    def __init__(self) -> None:
        self.plans: dict[Key, ServicePlan] = {}
        self.loads = 0
        self.applied: list[list[Key]] = []

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:  # noqa: ARG002
        """See `Driver`."""
        self.loads += 1
        self.plans = dict(plans)
        return {}

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:  # noqa: ARG002
        """See `Driver`."""
        self.applied.append([change.key for change in changes])
        for change in changes:
            if change.after is None:
                self.plans.pop(change.key, None)
            else:
                self.plans[change.key] = change.after
        return {}

    async def intact(self) -> bool:
        """See `Driver`. No other program changes the table."""
        return True

    def watch(self, disturbed: Callable[[str], None]) -> bool:  # noqa: ARG002
        """See `Driver`. No other program changes the table."""
        return False

    async def close(self) -> None:
        """See `Driver`. It holds nothing."""


def _open(_: Machine, __: NodeConfig) -> Driver:
    return FakeDriver()


MODE: Final = Mode(
    name="fake", platforms=frozenset({"linux", "win32"}), tracked=False, lasting=False, open=_open
)
"""The mode, which no configuration names."""
