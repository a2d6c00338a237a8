"""ebpf mode against what the reference was seen to do: sockets reach the same endpoints, packets of others as before.

The clients are processes in the cgroup whose sockets are connected to endpoints.
"""

from pathlib import Path

import pytest

from tests.kernel import bpffs
from tests.lab import cases, probe
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import Lab
from tests.scenarios.connected import connected
from tests.scenarios.world import World


@pytest.mark.parametrize("scope", ["host", "all"])
@pytest.mark.parametrize("name", cases.NAMES)
def test_outcomes_are_the_reference_s(lab: Lab, tmp_path: Path, name: str, scope: str) -> None:
    config, manifests = cases.write(name, "ebpf", tmp_path)
    with bpffs.places() as places:
        bpffs.configure(config, places, scope=scope, strict=True)
        expected = connected(World(config, manifests), cases.expected("nftables", name))
        with Daemon(lab, kube_proxy(config, manifests)):
            measured = probe.outcomes(lab, expected, cases.endpoints(name), here=lambda: bpffs.inside(places))
    assert measured == expected, probe.differences(expected, measured)
