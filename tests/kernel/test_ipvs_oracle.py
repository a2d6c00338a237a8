"""ipvs mode against what the reference was seen to do: rules, sets, virtual servers, addresses, and the packets' fates.

In the virtual machine, for IPVS is what the machine's kernel may lack.
"""

import re
from pathlib import Path

import pytest

from tests.lab import cases, ipvs, probe, rules
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import Lab

pytestmark = pytest.mark.vm
MODE = "ipvs"
NAMES = tuple(sorted(path.stem for path in (cases.ORACLE / "expected" / MODE).glob("*.rules")))


@pytest.mark.parametrize("name", NAMES)
def test_rules_sets_servers_and_outcomes_are_the_reference_s(lab: Lab, tmp_path: Path, name: str) -> None:
    config, manifests = cases.write(name, MODE, tmp_path)
    with Daemon(lab, kube_proxy(config, manifests), timeout=120):
        assert _without_mangle(f"{rules.read_iptables(lab)}\n{ipvs.read(lab)}") == _without_mangle(
            cases.rules(MODE, name)
        )
        expected = cases.expected(MODE, name)
        measured = probe.outcomes(lab, expected, cases.endpoints(name))
        assert measured == expected, probe.differences(expected, measured)


def _without_mangle(text: str) -> str:
    """The reference leaves an empty table mangle; we do not even look at it."""
    return re.sub(r"^(# ip6?tables-save mangle\n)(?::.*\n)*", r"\1", text, flags=re.MULTILINE)
