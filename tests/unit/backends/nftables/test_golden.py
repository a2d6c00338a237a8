"""Tables as people see them, kept in files: what Services of each kind come to.

A file holds the parts that a case of the oracle has and its node without Services has not; `frame.nft` is that node's
table. After a change that is meant: `python -m tests.unit.backends.nftables.test_golden` writes them anew.
"""

import re

import pytest

from tests.lab.topology import ROOT
from tests.scenarios.world import World
from tests.unit.backends.nftables.rig import listing

FOLDER = ROOT / "tests/golden/nftables"
CASES = (
    "affinity-local",
    "clusterip-no-endpoints",
    "dual-stack",
    "external-ips-no-endpoints",
    "ipv6-loadbalancer-local",
    "loadbalancer-source-ranges-node",
    "loadbalancer-two-ips",
    "long-names",
    "nodeport-addresses-cidr",
    "nodeport-local",
    "nodeport-udp",
    "sctp",
)


def parts(case: World) -> str:
    """What a case has besides what its node has without Services."""
    usual = set(_sections(listing(case, empty=True)))
    return "".join(section for section in _sections(listing(case)) if section not in usual)


def _sections(text: str) -> list[str]:
    """A table's head, each set and chain, and its end."""
    return re.findall(
        r"^table.*?\n(?=\t(?:set|map|chain) )|^\t(?:set|map|chain) .*?^\t\}\n|^\}\n",
        text,
        re.MULTILINE | re.DOTALL,
    )


def frame() -> str:
    """The tables of a node without Services."""
    return listing(World.of_case("dual-stack", "nftables"), empty=True)


def test_the_frame() -> None:
    assert frame() == (FOLDER / "frame.nft").read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_case(name: str) -> None:
    assert parts(World.of_case(name, "nftables")) == (FOLDER / f"{name}.nft").read_text()


def test_every_file_is_looked_at() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == {"frame", *CASES}


if __name__ == "__main__":
    (FOLDER / "frame.nft").write_text(frame())
    for each in CASES:
        (FOLDER / f"{each}.nft").write_text(parts(World.of_case(each, "nftables")))
