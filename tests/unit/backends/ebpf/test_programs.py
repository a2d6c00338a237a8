"""The programs as they are assembled: `tests/golden/ebpf` has the listing of each.

After a change that is intended, write them again: UPDATE_GOLDEN=1 pytest tests/unit/backends/ebpf/test_programs.py
"""

import os
import socket
from pathlib import Path

import pytest

from kubeproxy.api.addresses import FAMILIES
from kubeproxy.backends.ebpf import names
from kubeproxy.backends.ebpf.layout import LAYOUTS, Capacity
from kubeproxy.backends.ebpf.programs import of_family
from kubeproxy.backends.ebpf.programs.context import Options
from kubeproxy.linux.bpf import steer
from kubeproxy.linux.bpf.disassembly import listing

GOLDEN = Path(__file__).resolve().parents[3] / "golden/ebpf"
PROGRAMS = {
    name: hooked.program for family in FAMILIES for name, hooked in of_family(family, Options(0x1234)).items()
} | {"localhost4": steer.program(socket.AF_INET), "localhost6": steer.program(socket.AF_INET6)}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_as_recorded(name: str) -> None:
    found = "\n".join(listing(PROGRAMS[name])) + "\n"
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(found)
    assert found == file.read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_uses_the_maps_of_its_family(family: str) -> None:
    maps = {f"{name}{names.digit(family)}" for name in LAYOUTS[family].maps(Capacity())}  # type: ignore[index, arg-type]
    for hooked in of_family(family, Options(1)).values():  # type: ignore[arg-type]
        assert set(hooked.program.maps.values()) <= maps
        assert len(hooked.program.name) <= 15


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pin_is_recognised(family: str) -> None:
    """What is not recognised would not be removed."""
    digit = names.digit(family)  # type: ignore[arg-type]
    pins = [f"{name}{digit}" for name in LAYOUTS[family].maps(Capacity())]  # type: ignore[index]
    for name in of_family(family, Options(1)):  # type: ignore[arg-type]
        pins += [names.link(name), f"{names.program(name)}_0123456789ab"]
    for pin in pins:
        assert names.family_of(pin) == family
        assert names.family_of(f"{pin}_new") == family
    assert names.family_of("something") is None
