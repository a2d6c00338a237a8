"""Userspace mode against what the reference's nftables mode was seen to do, but for the differences of `scenarios.carried`."""

from pathlib import Path

import pytest
import yaml

from tests.lab import cases, probe
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import Lab
from tests.scenarios.carried import carried, forgive
from tests.scenarios.world import World


@pytest.mark.parametrize("name", cases.NAMES)
def test_outcomes_are_those_of_nftables_mode_but_for_the_source(lab: Lab, tmp_path: Path, name: str) -> None:
    config, manifests = cases.write(name, "userspace", tmp_path)
    # What the reference's nftables mode takes for granted; this mode's default is every address.
    settings = {"nodePortAddresses": ["primary"], **yaml.safe_load(config.read_text())}
    config.write_text(yaml.safe_dump(settings))
    wanted = carried(World.of_case(name, "nftables"), cases.expected("nftables", name))
    with Daemon(lab, kube_proxy(config, manifests)):
        measured = probe.outcomes(lab, wanted, cases.endpoints(name))
        forgive(wanted, measured)
        assert measured == wanted, probe.differences(wanted, measured)
