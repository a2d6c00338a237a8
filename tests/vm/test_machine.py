"""The virtual machine is what the tests in it think it is."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.vm.machine import inside

pytestmark = pytest.mark.vm


def test_tests_run_in_it() -> None:
    assert inside()
    assert platform.node() == "guest"
    assert os.geteuid() == 0


def test_its_kernel_loads_what_is_asked_for() -> None:
    assert (
        "IP Virtual Server"
        in subprocess.run(["ipvsadm", "-L"], check=True, capture_output=True, text=True).stdout
    )
    subprocess.run(["ip", "link", "add", "d0", "type", "dummy"], check=True)
    subprocess.run(["ip", "link", "delete", "d0"], check=True)


def test_files_can_be_changed() -> None:
    file = Path(__file__).with_name("written-inside")
    file.write_text("a layer of memory takes it, the host has no such file")
    assert file in set(file.parent.iterdir())


@pytest.mark.parametrize("what", ["a b", "[x]", "/"])
def test_names_of_every_kind_come_back(what: str) -> None:
    assert what
