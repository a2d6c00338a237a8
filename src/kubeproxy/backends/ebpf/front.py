"""The programs and maps of a family at work: adopted or made, filled, made larger, and checked.

A process without the rights to make maps and load programs uses those that are pinned (`--init-only` makes
them). What they cannot hold is left to nftables mode.
"""

import errno
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Final

from kubeproxy.backends.base import Change, StaleError, SyncError
from kubeproxy.backends.ebpf import capacity, held
from kubeproxy.backends.ebpf.blocks import FullError
from kubeproxy.backends.ebpf.compile import FrontCompiler, PortFronts
from kubeproxy.backends.ebpf.content import FrontContent
from kubeproxy.backends.ebpf.held import HeldFronts
from kubeproxy.backends.ebpf.install import Installation
from kubeproxy.backends.ebpf.layout import Capacity
from kubeproxy.clock import Clock
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortId, ServicePlan

log = logging.getLogger(__name__)

LEAST: Final = Capacity()
"""What new maps hold at least."""

_COST_FACTOR: Final = 1000.0
"""Comparing everything after our own changes takes a thousandth of the time at most."""

RIGHTLESS: Final = frozenset({errno.EPERM, errno.EACCES})


class ConnectFront:
    """The front of one family."""

    def __init__(self, installation: Installation, clock: Clock, left: frozenset[int]) -> None:
        """Makes it from an installation that has been adopted, or has maps.

        Args:
            installation: the maps, programs and links.
            clock: the time.
            left: the ports that are left to nftables mode.
        """
        self._installation = installation
        self._clock = clock
        self._left_ports = left
        self._content: FrontContent | None = None
        self._left_out = 0
        self._digest: int | None = None  # of maps that were equal to the plans, and not changed by us since
        self._next_comparison = -math.inf
        self._changed = clock.now()

    def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> None:
        """Makes the maps equal to the plans, and attaches what is not attached; blocks.

        Raises:
            SyncError: the kernel refused.
        """
        compiler = self.compiler(node)
        numbers: Mapping[PortId, int] = self._content.numbers.of if self._content is not None else {}
        self._content = self._digest = None  # until it is done, `apply` cannot
        self._left_out = 0
        try:
            wanted = compiler.all(plans.values())
            needed = capacity.needed(wanted.values(), len(compiler.hosts()))
            maps = self._installation.maps
            if maps is None or not maps.capacity.holds(needed):
                wanted = self._grow(needed, wanted, node)
                maps = self._installation.maps
            assert maps is not None
            found = FrontContent(maps, compiler, self._clock.now, numbers)
            found.load(wanted, self._changed)
            if not self._installation.active:
                self._installation.activate()
            self._digest = maps.digest()
        except FullError as e:
            # Blocks that were freed a moment ago can be used soon.
            raise SyncError("the maps of connect-time programs are full") from e
        except OSError as e:
            raise SyncError(f"connect-time programs: {e}") from e
        finally:
            self._changed = self._clock.now()
        self._content = found

    def apply(self, changes: Sequence[Change]) -> None:
        """Makes the maps what some plans are now.

        Raises:
            StaleError: a `load` is needed.
        """
        if self._content is None:
            raise StaleError("the maps of connect-time programs were not programmed")
        if self._left_out:
            raise StaleError("the maps of connect-time programs do not hold all Services")
        self._changed = self._clock.now()
        self._digest = None
        try:
            self._content.apply(changes)
        except (FullError, OSError) as e:
            self._content = None
            raise StaleError(f"the maps of connect-time programs: {e or 'they are full'}") from e

    def intact(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> bool:
        """Whether all programs are attached and pinned, and the maps equal to the plans; blocks.

        The kernel does not report changes of maps. If a checksum is the same, nothing was changed; otherwise
        everything is compared, after our own changes only as often as its cost permits. What is not intact is
        restored by the next `load`.
        """
        try:
            self._installation.active = self._installation.whole()
            return self._installation.active and self._same(node, plans)
        except OSError:
            self._installation.active = False
            return False

    def _same(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> bool:
        maps = self._installation.maps
        if maps is None or self._content is None or self._left_out:
            return True
        digest, started = maps.digest(), self._clock.now()
        if digest == self._digest or (self._digest is None and started < self._next_comparison):
            return True
        there, wanted = held.read(maps), held.wanted(plans.values(), self.compiler(node))
        self._digest = digest if there == wanted else None
        now = self._clock.now()
        self._next_comparison = now + _COST_FACTOR * (now - started)
        return there == wanted

    def read(self) -> HeldFronts:
        """What the maps hold.

        Raises:
            OSError: that cannot be read.
        """
        maps = self._installation.maps
        return held.read(maps, self._installation.missing()) if maps is not None else HeldFronts()

    def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldFronts:
        """What the maps hold of some Services.

        Raises:
            OSError: that cannot be read.
        """
        maps = self._installation.maps
        if maps is None:
            return HeldFronts()
        keys = held.keys_of(plans.values(), self.compiler(node))
        return held.read_part(maps, keys, self._installation.missing())

    def compiler(self, node: NodeConfig) -> FrontCompiler:
        """Compiles plans for a node."""
        return FrontCompiler(node, self._left_ports)

    def close(self) -> None:
        """Closes descriptors; what is pinned stays."""
        self._content = None
        self._installation.close()

    def _grow(
        self, needed: Capacity, wanted: dict[PortId, PortFronts], node: NodeConfig
    ) -> dict[PortId, PortFronts]:
        """Makes larger maps; returns what they can hold."""
        before = self._installation.maps
        try:
            self._installation.make(capacity.grown(needed, LEAST))
        except OSError as e:
            if e.errno not in RIGHTLESS or before is None:
                raise
            kept = capacity.fitting(wanted, before.capacity, needed.hosts)
            self._left_out = len(wanted) - len(kept)
            log.warning(
                "%(ipFamily)s: the maps of connect-time programs are full and this process may not make larger ones:"
                " %(count)d Service ports are left to nftables rules",
                {"ipFamily": node.family, "count": self._left_out},
            )
            return kept
        return wanted
