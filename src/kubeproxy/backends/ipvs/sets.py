"""Keeps the sets: their elements, and their size.

A set holds 65,536 elements at first, as the reference's do. One that needs more is filled again under another
name, twice as large, and exchanged with the small one, without a moment in which rules look up an empty one.
"""

import logging
from collections.abc import Collection, Mapping

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.ipvs.desired import Counted
from kubeproxy.backends.ipvs.kernel import IPVSKernel
from kubeproxy.backends.ipvs.names import SETS, set_name
from kubeproxy.netlink.ipset import BITMAP_PORT, Element

log = logging.getLogger(__name__)

FIRST_LIMIT = 65536

Refused = dict[tuple[str, Element], OSError]
"""Elements the kernel did not take, by the set's short name."""


class SetKeeper:
    """The sets of one family."""

    def __init__(self, kernel: IPVSKernel, family: Family) -> None:
        self._kernel = kernel
        self._names = {short: set_name(short, family) for short in SETS}
        self._spare = set_name("GROWING", family)
        self._limits: dict[str, int] = {}

    def read(self) -> dict[str, set[Element]]:
        """The elements of every set; a set that does not exist is made.

        Raises:
            OSError: the kernel refused.
            SyncError: a set of ours is of another type.
        """
        headers = self._kernel.headers()
        if self._spare in headers:
            self._kernel.destroy_set(self._spare)
        there: dict[str, set[Element]] = {}
        for short, kind in SETS.items():
            name = self._names[short]
            header = headers.get(name)
            if header is None:
                self._create(name, short, FIRST_LIMIT)
                there[short] = set()
            elif header.type != kind.type:
                raise SyncError(
                    f"set {name} is of type {header.type}, not {kind.type}: it is not ours; rename it, or destroy it"
                )
            else:
                self._limits[short] = header.limit or FIRST_LIMIT
                there[short] = self._kernel.elements(name)
        return there

    def adopt(
        self, wanted: Mapping[str, Counted[Element]], there: Mapping[str, set[Element]]
    ) -> tuple[Refused, dict[str, set[Element]]]:
        """Adds the elements that are missing.

        Args:
            wanted: what each set is to hold.
            there: what it holds.

        Returns:
            What was refused, and what is there and should not be.

        Raises:
            OSError: the kernel refused.
        """
        refused: Refused = {}
        leftovers: dict[str, set[Element]] = {}
        for short, held in there.items():
            missing = [element for element in wanted[short] if element not in held]
            superfluous = {element for element in held if element not in wanted[short]}
            if superfluous:
                leftovers[short] = superfluous
            refused.update(self.add(short, missing, wanted[short], len(superfluous)))
        return refused, leftovers

    def add(
        self, short: str, elements: Collection[Element], wanted: Counted[Element], superfluous: int = 0
    ) -> Refused:
        """Adds elements to a set, which is made larger if need be.

        Args:
            short: its short name.
            elements: the elements.
            wanted: all it is to hold.
            superfluous: how many it holds besides.

        Raises:
            OSError: the kernel refused to make it larger.
        """
        if not elements:
            return {}
        if len(wanted) + superfluous > self._limits[short] and SETS[short].type != BITMAP_PORT:
            return self._grow(short, wanted)
        found = self._kernel.add_elements(self._names[short], elements)
        return {(short, element): error for element, error in found.items()}

    def delete(self, short: str, elements: Collection[Element]) -> None:
        """Deletes elements from a set; what is refused stays."""
        refused = self._kernel.delete_elements(self._names[short], elements)
        for error in list(refused.values())[:1]:
            log.warning(
                "Set %(set)s keeps %(elements)d elements: %(err)s",
                {"set": self._names[short], "elements": len(refused), "err": error},
            )

    def intact(self, wanted: Mapping[str, Counted[Element]], refused: Collection[object]) -> bool:
        """Whether every set is there and holds as much as it should.

        Raises:
            OSError: the kernel refused.
        """
        headers = self._kernel.headers()
        for short, name in self._names.items():
            header = headers.get(name)
            size = len(wanted[short]) - sum(isinstance(r, tuple) and r[0] == short for r in refused)
            if header is None or (header.size >= 0 and header.size != size):
                return False
        return True

    def _create(self, name: str, short: str, limit: int) -> None:
        self._kernel.create_set(name, SETS[short].type, limit)
        self._limits[short] = limit

    def _grow(self, short: str, wanted: Counted[Element]) -> Refused:
        """Replaces a set by a larger one."""
        limit = 1 << len(wanted).bit_length()
        log.info(
            "Set %(set)s is full, replacing it by one for %(limit)d elements",
            {"set": self._names[short], "limit": limit},
        )
        self._create(self._spare, short, limit)
        found = self._kernel.add_elements(self._spare, list(wanted))
        self._kernel.swap_sets(self._names[short], self._spare)
        self._destroy_spare()
        return {(short, element): error for element, error in found.items()}

    def _destroy_spare(self) -> None:
        try:
            self._kernel.destroy_set(self._spare)
        except OSError as e:
            log.warning(
                "Set %(set)s is not used any more and cannot be deleted: %(err)s",
                {"set": self._spare, "err": e},
            )
