"""The lab for tests: one for each worker, its node as new for each test; and a bare namespace for those who need no lab.

Where it cannot be built the tests fail and say what is missing: a packet test that is skipped proves nothing.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest

from tests.lab import netns
from tests.lab.topology import Lab

PROGRAMS = (
    "ip",
    "nft",
    *(f"{family}-{verb}" for family in ("iptables", "ip6tables") for verb in ("save", "restore")),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/kernel --all-recorded` measures the reference's own rules in every case."""
    parser.addoption(
        "--all-recorded", action="store_true", help="validate the lab with the recorded rules of all cases"
    )


def _demand() -> None:
    """Fails where these tests cannot run."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.fail(f"the kernel tests need these programs: {', '.join(missing)}", pytrace=False)
    if os.geteuid() != 0:
        pytest.fail("the kernel tests need root: they build network namespaces", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def lock_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The lock of the legacy iptables programs is one for the machine: other workers would wait for it in vain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("xtables") / "lock"))
        yield


@pytest.fixture
def space() -> Iterator[str]:
    """The name of a new network namespace with nothing in it but loopback."""
    _demand()
    name = f"{netns.unique_prefix()}bare"
    netns.create([name])
    try:
        netns.finish(netns.ip_batch("link set lo up", namespace=name))
        yield name
    finally:
        netns.delete([name])


@pytest.fixture(scope="session")
def built_lab() -> Iterator[Lab]:
    """The worker's lab."""
    _demand()
    lab = Lab()
    try:
        lab.__enter__()
    except (OSError, RuntimeError) as error:
        pytest.fail(
            f"the kernel tests need network namespaces, and building them failed: {error}", pytrace=False
        )
    with contextlib.closing(lab):
        yield lab


@pytest.fixture
def lab(built_lab: Lab) -> Lab:
    """A lab whose node has no rules and tracks no connections."""
    built_lab.reset()
    return built_lab
