"""nftables mode against what the reference was seen to do: the same packets' fates, through rules of our own.

The daemon runs as an operator would start it, on a folder of manifests.
"""

from pathlib import Path

import pytest

from tests.lab import cases, probe
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import Lab

MODE = "nftables"


@pytest.mark.parametrize("name", cases.NAMES)
def test_outcomes_are_the_reference_s(lab: Lab, tmp_path: Path, name: str) -> None:
    config, manifests = cases.write(name, MODE, tmp_path)
    with Daemon(lab, kube_proxy(config, manifests)):
        expected = cases.expected(MODE, name)
        measured = probe.outcomes(lab, expected, cases.endpoints(name))
        assert measured == expected, probe.differences(expected, measured)
