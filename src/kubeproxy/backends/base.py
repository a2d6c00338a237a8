"""What every mode does for the control loop, and the values that pass between them.

A driver programs plans: all of them by `load`, which reads what the kernel has and adopts, changes or removes
what an earlier run or another program left there, without a moment in which packets are misrouted; and
afterwards by `apply` the difference for the Services that change, at the cost of the change. A driver knows
nothing of Kubernetes, and the plans belong to the loop: it passes what a Service's plan was, and what it is
to be.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, Protocol, runtime_checkable

from msgspec import Struct

from kubeproxy.figures import Figure
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortId, ServicePlan

VIRTUAL_INTERFACE = "kube-ipvs0"
"""The interface that has the addresses of Services in ipvs mode; they are not the host's own."""


class Change(Struct, frozen=True, gc=False):
    """A Service's plan changes.

    Attributes:
        key: the Service.
        before: the plan that was programmed last; None: there was none.
        after: the plan that is to be programmed; None: the Service is to be removed.
    """

    key: Key
    before: ServicePlan | None
    after: ServicePlan | None


def meaning(change: Change) -> str:
    """A description of what a change means on this node, for the log."""
    if change.after is None:
        return "it is removed"
    verb = "changes" if change.before else "is new"
    ports = "; ".join(
        f"{port.name} {port.protocol} port {port.port}: {port.internal_action} inside to"
        f" {len(port.internal_endpoints)} endpoints, {port.external_action} outside to {len(port.external_endpoints)}"
        for port in change.after.ports
    )
    return f"it {verb}: {ports or 'no ports'}"


Failures = Mapping[Key, str]
"""Services the kernel refused, each with the message. Of such a Service the kernel keeps what it had."""


class SyncError(Exception):
    """A sync did not happen: nothing, or not all that is common to all Services, reached the kernel."""


class StaleError(SyncError):
    """A difference could not be sent as it was; a full sync, at once, can do what it should have done."""


class AwaitedError(SyncError):
    """What another program makes is not there yet. It is looked for often: it may come at any time."""

    FIRST_SECONDS: Final = 1.0
    LONGEST_SECONDS: Final = 10.0


class UnsupportedError(Exception):
    """This mode cannot run here. The message names what is missing and the remedy."""


class Driver(Protocol):
    """One proxy mode for one IP family."""

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """Programs the full state: compares it with the kernel and corrects every difference.

        Args:
            node: the node as it is now.
            plans: the plans of all Services.

        Returns:
            The Services that the kernel refused; all others are programmed.

        Raises:
            SyncError: the state was not programmed, and must be retried.
        """

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """Programs the difference for some Services, after a `load`; the cost is that of the change.

        Args:
            node: the node as it is now; only its ServiceCIDRs may differ from those of the last `load`.
            changes: the Services that change.

        Returns:
            Always empty: if the kernel refuses something, the driver raises StaleError, and `load` identifies
            the Service.

        Raises:
            StaleError: a `load` is needed at once.
            SyncError: the changes were not programmed; the next call must be `load`.
        """

    async def intact(self) -> bool:
        """Whether the kernel's state is still that of the last sync, as far as a cheap check can detect."""

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """Starts to detect drift, in the running event loop.

        Called once, after the first `load` of all families, because a large `load` takes the kernel twice as
        long while a process receives notifications.

        Args:
            disturbed: called with a description of the change and of the program that made it, when the
                kernel reports one. Changes that the kernel does not report are detected by `intact`.

        Returns:
            Whether another program may have changed something since the last `load`.

        Raises:
            OSError: the kernel refuses.
        """

    async def close(self) -> None:
        """Closes sockets and ends its processes; the rules stay in the kernel."""


@runtime_checkable
class Retrying(Protocol):
    """A driver that retries what the kernel refused piece by piece, each at its own pace."""

    @property
    def next_retry(self) -> float:
        """When the next piece is to be tried, by the machine's clock; infinite if none was refused."""

    async def retry(self) -> Failures:
        """Tries the pieces whose time has come.

        Returns:
            All Services that the kernel refuses now.

        Raises:
            SyncError: a `load` is needed.
        """


@runtime_checkable
class Measured(Protocol):
    """A driver with metrics of its own."""

    def figures(self) -> Iterable[Figure]:
        """Its metrics; called at each scrape, so it must be cheap."""


@runtime_checkable
class Leading(Protocol):
    """A driver whose rules send traffic to a relay."""

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        """A plan as it is in the kernel, with the relay's listeners as its endpoints."""


@runtime_checkable
class Carrying(Protocol):
    """A driver that carries connections itself."""

    async def drain(self, seconds: float) -> None:
        """To be called before `close` when another driver has taken over: lets connections end by themselves.

        No new ones are accepted. Returns when none is left, or after so many seconds.
        """


@runtime_checkable
class ByPrograms(Protocol):
    """A driver that writes rules through the iptables programs."""

    @property
    def variant(self) -> Literal["legacy", "nf_tables"]:
        """The variant of iptables its rules are in."""


class HeldState(Protocol):
    """What the kernel holds of a mode, as it was read: a value that can be compared and printed."""

    @property
    def empty(self) -> bool:
        """Whether the kernel holds nothing."""

    def lines(self) -> list[str]:
        """It in the syntax of the system's own tools."""


class LoadSteps(Protocol):
    """What a `load` would do: a value that can be compared and printed. Nothing to do is false."""

    def __len__(self) -> int:
        """The number of transactions, inputs of a program or calls."""

    def lines(self) -> list[str]:
        """The steps in their order, in the syntax of the system's own tools."""


class KernelComparison(Struct, frozen=True, gc=False):
    """What the kernel holds compared with some plans, each line in the syntax of the system's own tools.

    Attributes:
        lacking: what it does not hold, and should.
        foreign: what it holds, and should not.
        reordered: it holds everything, but rules are in another order; what moves them.
        writes: the number of transactions, inputs of a program or calls that correct it.
    """

    lacking: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    reordered: tuple[str, ...] = ()
    writes: int = 0

    def __bool__(self) -> bool:
        return bool(self.lacking or self.foreign or self.reordered)


@runtime_checkable
class Readable(Protocol):
    """A driver whose part of the kernel can be read, compared and described, without changing anything."""

    async def read(self) -> HeldState:
        """Reads what the kernel holds.

        Raises:
            SyncError: it could not be read.
        """

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> LoadSteps:
        """What `load` would do if the kernel held this: the code of `load` itself, over a copy in memory.

        Args:
            held: what `read` returned.
            node: the node.
            plans: the plans of all Services.

        Raises:
            SyncError: `load` would fail.
        """

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """What the kernel must contain for a Service, in the syntax of the system's own tools."""


class HeldPart(HeldState, Protocol):
    """What the kernel holds of some Services, or of all."""

    def commands(self) -> list[str]:
        """It as commands of the system's own tools, each complete in itself."""


@runtime_checkable
class Comparable(Readable, Protocol):
    """A readable driver that can be asked about some Services only, at their cost."""

    async def close(self) -> None:
        """See `Driver`."""

    async def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldPart:
        """Reads what concerns some Services and what is common to all; the cost is that of these Services.

        The value is to be compared with the plans of the same Services.

        Args:
            node: the node.
            plans: the plans of these Services.

        Raises:
            SyncError: it could not be read.
        """

    def compare(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> KernelComparison:
        """What the kernel lacks and what it holds instead, if it held this: by `difference`.

        Args:
            held: what `read` or `read_part` returned.
            node: the node.
            plans: the plans of all Services, or of those that `read_part` was asked for.

        Raises:
            SyncError: `load` would fail.
        """


EndpointCounts = dict[PortId, dict[tuple[str, int], int]]
"""New connections of Service ports, by the address and port of the endpoint that they were sent to."""


class ConnectionCounter(Protocol):
    """Counts of new connections that the kernel keeps at the rules of a mode. It changes nothing.

    Attributes:
        by_service: counts of some Services can be read at the cost of these Services.
        partial: other connections are not counted, but reported by connection tracking.
    """

    by_service: bool
    partial: bool

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """A Service has this plan now; None if it is gone."""

    def read(self, only: Collection[Key] = ()) -> EndpointCounts | None:
        """The connections since the rules were written. Counts never become lower from one call to the next.

        Args:
            only: read only what is counted for these Services, if `by_service`.

        Returns:
            The counts of all Services, as they were last read; None if the rules do not count.

        Raises:
            OSError: the kernel refused.
            SyncError: the rules cannot be read.
        """

    def close(self) -> None:
        """Closes its sockets."""
