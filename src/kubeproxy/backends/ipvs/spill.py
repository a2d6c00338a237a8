"""Near endpoints get all connections until each has its limit of them open, then the others get the rest.

The kernel does both. With the scheduler `sed` the real server with the fewest connections in proportion to
its weight gets the next one: near ones have a weight so large that they always come first. A real server with
as many connections as its upper threshold is passed over.

But the kernel compares the threshold with all connections that it remembers, also with those that have ended
a minute or two ago. So their number is read at intervals and added to the limit.

Source: net/netfilter/ipvs/ip_vs_sed.c; ip_vs_bind_dest, ip_vs_unbind_dest of ip_vs_conn.c;
__ip_vs_update_dest of ip_vs_ctl.c.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from kubeproxy.backends.ipvs.compile import Target
from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange
from kubeproxy.netlink.ipvs import Real, Virtual

STEER_SECONDS: Final = 0.5
"""How often connections that have ended are counted."""


class SpillOver:
    """The virtual servers with near endpoints."""

    def __init__(self) -> None:
        self._targets: dict[Virtual, Target] = {}
        self._limits: dict[tuple[Virtual, Real], int] = {}

    def __bool__(self) -> bool:
        return bool(self._targets)

    def follow(self, virtual: Virtual, target: Target | None) -> None:
        """A virtual server was changed in the kernel."""
        before = self._targets.pop(virtual, None)
        for real in before.reals if before is not None else ():
            self._limits.pop((virtual, real), None)
        if target is not None and target.bounds:
            self._targets[virtual] = target

    def load(self, targets: Iterable[tuple[Virtual, Target]]) -> None:
        """These are all virtual servers in the kernel."""
        self._limits.clear()
        self._targets = {virtual: target for virtual, target in targets if target.bounds}

    def steered(self, kernel: IPVSKernel) -> Sequence[ServerChange]:
        """The thresholds that must be changed.

        Raises:
            OSError: the number of connections cannot be read.
        """
        return [
            change
            for virtual, target in self._targets.items()
            for change in self._of(virtual, target, kernel)
        ]

    def _of(self, virtual: Virtual, target: Target, kernel: IPVSKernel) -> Iterator[ServerChange]:
        there = kernel.reals(virtual)
        for real, weight, bound in zip(target.reals, target.weights, target.bounds, strict=True):
            if not bound or real not in there:
                continue
            limit = bound + there[real].inactive
            if self._limits.get((virtual, real)) != limit:
                self._limits[virtual, real] = limit
                # Without a threshold first: otherwise the kernel passes it over until a connection ends.
                yield ServerChange("edit", virtual, real=real, weight=weight)
                yield ServerChange("edit", virtual, real=real, weight=weight, limit=limit)
