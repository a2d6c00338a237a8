"""ipvs mode against what the reference was seen to do: rules, sets, virtual servers, addresses, and the packets' fates.

In the virtual machine, for IPVS is what the machine's kernel may lack. It is slow, so cases with one configuration share
a daemon, whose manifests are exchanged: what is in the kernel must be the reference's after a change, too.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab import cases, ipvs, kernel, probe
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import Lab

pytestmark = pytest.mark.vm
MODE = "ipvs"
CHANGE_SECONDS = 60.0


def configuration(name: str) -> str:
    return yaml.safe_dump(cases.documents(name)[0])


NAMES = sorted((path.stem for path in (cases.ORACLE / "expected" / MODE).glob("*.rules")), key=configuration)


@pytest.fixture(scope="module")
def show(built_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """Has a daemon run with a case: the one that runs, if only the manifests differ."""
    running: list[tuple[str, Daemon, Path]] = []

    def end() -> None:
        for _, daemon, _ in running:
            daemon.__exit__(None, None, None)
        running.clear()

    def show(name: str) -> None:
        config, manifests = cases.write(name, MODE, tmp_path_factory.mktemp(name))
        if running and running[0][0] == configuration(name):
            # Written aside and moved, as nobody should see half a file.
            there = running[0][2]
            shutil.copy(manifests / "case.yaml", there / ".case.yaml")
            (there / ".case.yaml").rename(there / "case.yaml")
            return
        end()
        built_lab.reset()
        daemon = Daemon(built_lab, kube_proxy(config, manifests), timeout=120)
        running.append((configuration(name), daemon.__enter__(), manifests))

    yield show
    end()


@pytest.mark.parametrize("name", NAMES)
def test_rules_sets_servers_and_outcomes_are_the_reference_s(
    built_lab: Lab, show: Callable[[str], None], name: str
) -> None:
    lab = built_lab
    show(name)
    recorded = ipvs.without_mangle(cases.rules(MODE, name))
    deadline = time.monotonic() + CHANGE_SECONDS
    while (found := ipvs.state(lab)) != recorded and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found == recorded
    kernel.flush_conntrack(lab.name("node"))
    expected = cases.expected(MODE, name)
    measured = _without_late_rejections(probe.outcomes(lab, expected, cases.endpoints(name)), expected)
    assert measured == expected, probe.differences(expected, measured)


def _without_late_rejections(measured: probe.Outcomes, expected: probe.Outcomes) -> probe.Outcomes:
    """Over IPv6 a TCP client believes only the second rejection, a second later.

    The recording did not wait so long, and called that "no answer"; here all takes so long that it may be heard.
    """

    def heard(client: str, front: str, outcome: probe.Outcome) -> probe.Outcome:
        late = outcome == "ECONNREFUSED" and "::" in front and front.endswith("/tcp")
        return expected[client][front] if late and expected[client][front] == probe.NO_ANSWER else outcome

    return {
        client: {front: heard(client, front, outcome) for front, outcome in fronts.items()}
        for client, fronts in measured.items()
    }
