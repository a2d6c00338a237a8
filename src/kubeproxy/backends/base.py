"""What every mode does for the control loop, and the values that pass between them.

A driver is handed differences of plans and brings the kernel there. It knows nothing of Kubernetes and remembers
no plan: the loop does. A full sync is the same call with nothing before, so whatever an earlier run or somebody else
left in the kernel is adopted, changed or removed, without a moment in which packets go astray.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

from kubeproxy.figures import Figure
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan

VIRTUAL_INTERFACE = "kube-ipvs0"
"""The interface that has Services' addresses in ipvs mode; they are not the host's own."""


class Change(Struct, frozen=True, gc=False):
    """One Service's plan, as it is in the kernel and as it should be. None: it has none there, or should have none."""

    key: Key
    before: ServicePlan | None
    after: ServicePlan | None


def meaning(change: Change) -> str:
    """What a change means on this node, in words for the log."""
    if change.after is None:
        return "it is removed"
    verb = "changes" if change.before else "is new"
    ports = "; ".join(
        f"{port.name} {port.protocol} port {port.port}: {port.internal_action} inside to"
        f" {len(port.internal_backends)} endpoints, {port.external_action} outside to {len(port.external_backends)}"
        for port in change.after.ports
    )
    return f"it {verb}: {ports or 'no ports'}"


Failures = Mapping[Key, str]
"""Services the kernel refused, each with its words. Of such a Service the kernel keeps what it had."""


class SyncError(Exception):
    """A sync did not happen: nothing, or not all that is common to all Services, reached the kernel."""


class StaleError(SyncError):
    """A difference could not be sent as it was; a full sync, at once, can do what it should have done."""


class UnsupportedError(Exception):
    """This mode cannot run here. The message says what is missing and what to do."""


class Driver(Protocol):
    """One proxy mode for one IP family."""

    async def sync(self, node: NodeConfig, changes: Sequence[Change], *, full: bool) -> Failures:
        """Brings the kernel from `before` to `after`.

        Args:
            node: the node as it is now. Between two full syncs it is the same, but for its ServiceCIDRs.
            changes: the Services that change; at a full sync all there are, with no `before`.
            full: compare with what the kernel holds, whoever put it there, and mend every difference.

        Raises:
            StaleError: this needs a full sync, now.
            SyncError: the sync did not happen; the next one must be full.
        """

    async def intact(self) -> bool:
        """Whether the kernel still holds what the last sync left there, as far as a cheap look can tell."""

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """From now on looks out, in the running event loop, for others that change what we put into the kernel.

        Called once, after the first full sync of all families: a great load takes the kernel twice the time when somebody
        listens.

        Args:
            disturbed: told what was done and by whom, as soon as the kernel tells; where it does not, `intact` must do.

        Returns:
            Whether somebody may have changed something since the last full sync.

        Raises:
            OSError: the kernel refuses.
        """

    async def close(self) -> None:
        """Lets go of the kernel; what is in it stays. Processes of its own have ended when it returns."""


@runtime_checkable
class Measured(Protocol):
    """A driver that has something to tell beside what every loop knows."""

    def figures(self) -> Iterable[Figure]:
        """What it counted; asked at each scrape, so it must be cheap."""


@runtime_checkable
class Leading(Protocol):
    """A driver that leads traffic to somebody in between."""

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        """A plan that was synced as the kernel knows it, with those in between as its backends."""


@runtime_checkable
class ByPrograms(Protocol):
    """A driver that writes rules through the iptables programs."""

    @property
    def variant(self) -> Literal["legacy", "nf_tables"]:
        """The variant of iptables its rules are in."""
