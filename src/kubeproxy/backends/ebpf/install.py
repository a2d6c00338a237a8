"""What is in the kernel whatever Services there are: maps, programs and links, pinned so that they stay.

The names of programs have a digest of their code and of what it depends on. What a run finds is used as it is
if the programs are those it would load, and use the maps that are pinned; otherwise new maps and programs are
made. New maps are filled before the first link leads to them: a link changes from one program to the other at
once, so no connection meets an empty map.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from kubeproxy.api.addresses import Family
from kubeproxy.backends.ebpf import names
from kubeproxy.backends.ebpf.layout import LAYOUTS, Capacity
from kubeproxy.backends.ebpf.programs import Hooked, of_family
from kubeproxy.backends.ebpf.programs.context import Options
from kubeproxy.backends.ebpf.tables import LASTING, KernelMaps
from kubeproxy.linux.bpf import maps as bpf_maps
from kubeproxy.linux.bpf import pins, programs, syscall
from kubeproxy.linux.bpf.host import BpfHost
from kubeproxy.linux.bpf.maps import BpfObject
from kubeproxy.linux.bpf.programs import Attach

log = logging.getLogger(__name__)

SOURCE = "kubeproxy/backends/ebpf/programs"
"""Where the lines of C are said to be."""


class Installation:
    """The maps, programs and links of one family.

    Attributes:
        maps: the maps that are to be filled; None before `prepare`.
        active: links lead to programs that use these maps.
    """

    def __init__(self, host: BpfHost, family: Family, options: Options) -> None:
        """Nothing is done before `prepare`.

        Args:
            host: the host.
            family: the IP family.
            options: what the programs depend on.
        """
        self._host = host
        self._layout = LAYOUTS[family]
        self._folder = host.folder(names.VERSION)
        self._digit = names.digit(family)
        self._hooked: Mapping[str, Hooked] = of_family(family, options)
        self._programs: dict[str, BpfObject] = {}
        self._links: dict[str, BpfObject] = {}
        self.maps: KernelMaps | None = None
        self.active = False

    def adopt(self, *, writable: bool = True) -> bool:
        """Takes over what is pinned; returns whether it is complete, and what this version would make.

        Raises:
            OSError: it may not be opened.
        """
        found = self._pinned_maps()
        if found is None:
            return False
        numbers = {name: bpf_maps.info(item.fd).number for name, item in found.items()}
        for name, hooked in self._hooked.items():
            item = self._folder.get(self._program_pin(name))
            if item is None:
                return False
            uses = frozenset(numbers[each[:-1]] for each in hooked.program.maps.values())
            if pins.loaded(item.fd).maps != uses:
                return False
            self._programs[name] = item
        self._set_maps(KernelMaps(self._layout, found, writable=writable))
        self._links = {
            name: link for name in self._hooked if (link := self._folder.get(names.link(name))) is not None
        }
        self.active = self.whole()
        return True

    def make(self, capacity: Capacity) -> KernelMaps:
        """Makes new maps, empty; programs keep using the old ones until `activate`.

        Raises:
            OSError: the kernel refused.
        """
        kept = self._pinned_maps() or {}
        made = {}
        for name, spec in self._layout.maps(capacity).items():
            there = kept.get(name) if name in LASTING else None
            made[name] = there if there is not None else BpfObject(spec.create())
        self._set_maps(KernelMaps(self._layout, made))
        self._programs = {}
        self.active = False
        assert self.maps is not None
        return self.maps

    def activate(self) -> None:
        """Lets all links lead to programs that use the maps; pins everything.

        Raises:
            OSError: the kernel refused.
        """
        assert self.maps is not None
        if not self._programs:
            self._load()
        cgroup = self._host.open_cgroup()
        try:
            for name, hooked in self._hooked.items():
                self._link(name, hooked.attach, cgroup)
        finally:
            os.close(cgroup)
        for name, item in self._unpinned().items():
            self._folder.put(name, item)
        self._remove_others()
        self.active = True

    def missing(self) -> list[str]:
        """The programs that are not attached as they should be.

        Raises:
            OSError: that cannot be read.
        """
        cgroup = Path(self._host.cgroup()).stat().st_ino
        found = []
        for name, hooked in self._hooked.items():
            link, program = self._links.get(name), self._programs.get(name)
            if link is not None and program is not None:
                there = pins.linked(link.fd)
                wanted = pins.loaded(program.fd).number, cgroup, programs.ATTACH[hooked.attach]
                if (there.program, there.cgroup, there.attach) == wanted:
                    continue
            found.append(name)
        return found

    def whole(self) -> bool:
        """Whether all programs are attached, and everything has its name.

        Raises:
            OSError: that cannot be read.
        """
        return not self.missing() and not self._unpinned()

    def attached(self) -> bool:
        """Whether any program of the family is attached, of whichever version."""
        pinned = self._folder.names()
        return any(names.link(name) in pinned for name in self._hooked)

    def take_maps(self) -> KernelMaps:
        """The maps alone; everything else is closed."""
        assert self.maps is not None
        found, self.maps = self.maps, None
        self.close()
        return found

    def hooks(self) -> dict[Attach, frozenset[int]]:
        """The IDs of the programs that are pinned, by hook."""
        found: dict[Attach, frozenset[int]] = {}
        for name, hooked in self._hooked.items():
            link = self._folder.get(names.link(name))
            number = pins.linked(link.fd).program if link is not None else 0
            found[hooked.attach] = found.get(hooked.attach, frozenset()) | {number}
        return found

    def close(self) -> None:
        """Closes all descriptors; what is pinned stays."""
        self._set_maps(None)
        for item in (*self._programs.values(), *self._links.values()):
            item.close()
        self._programs, self._links = {}, {}

    def _set_maps(self, found: KernelMaps | None) -> None:
        if self.maps is not None:
            self.maps.close()
        self.maps = found

    def _pinned_maps(self) -> dict[str, BpfObject] | None:
        """The maps that are pinned; None unless all are there and of this layout."""
        found = {}
        for name, spec in self._layout.maps(Capacity()).items():
            item = self._folder.get(f"{name}{self._digit}")
            if item is None or not spec.fits(bpf_maps.info(item.fd)):
                return None
            found[name] = item
        return found

    def _unpinned(self) -> dict[str, BpfObject]:
        """What has lost its name, or has none yet."""
        wanted = self._map_pins()
        wanted |= {self._program_pin(name): item for name, item in self._programs.items()}
        wanted |= {names.link(name): item for name, item in self._links.items()}
        there = set(self._folder.names())
        return {name: item for name, item in wanted.items() if name not in there}

    def _map_pins(self) -> dict[str, BpfObject]:
        assert self.maps is not None
        return {f"{name}{self._digit}": item for name, item in self.maps.objects.items()}

    def _load(self) -> None:
        """Loads the programs and pins them, after the maps that they use."""
        objects = self._map_pins()
        descriptors = {name: item.fd for name, item in objects.items()}
        made = {
            name: BpfObject(programs.load(each.program, each.attach, descriptors, SOURCE))
            for name, each in self._hooked.items()
        }
        for name, item in objects.items():
            self._folder.put(name, item)
        for name, item in made.items():
            self._folder.put(self._program_pin(name), item)
        self._programs = made

    def _link(self, name: str, hook: Attach, cgroup: int) -> None:
        """Lets a link lead to its program; one to another cgroup is replaced."""
        program, link = self._programs[name], self._links.get(name) or self._folder.get(names.link(name))
        number = pins.loaded(program.fd).number
        if link is not None:
            there = pins.linked(link.fd)
            if there.cgroup == os.fstat(cgroup).st_ino:
                if there.program != number:
                    syscall.update_link(link.fd, program.fd)
                self._links[name] = link
                return
            link.close()
        self._links[name] = pins.attach(program, cgroup, hook)
        self._folder.put(names.link(name), self._links[name])

    def _program_pin(self, name: str) -> str:
        program = self._hooked[name].program
        code = program.code(dict.fromkeys(program.maps.values(), 0))
        return f"{names.program(name)}_{hashlib.sha256(code).hexdigest()[:12]}"

    def _remove_others(self) -> None:
        """Removes programs of the family that other versions pinned."""
        mine = {self._program_pin(name) for name in self._hooked}
        for pin in self._folder.names():
            name = pin.removeprefix(names.program("")).rpartition("_")[0]
            if pin.startswith(names.program("")) and name in self._hooked and pin not in mine:
                with contextlib.suppress(OSError):
                    self._folder.remove(pin)
