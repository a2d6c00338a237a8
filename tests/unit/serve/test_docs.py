"""docs/metrics.md names every metric, with its type, and no other."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

from kubeproxy import backends, sysctls
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.localhost import Localhost
from kubeproxy.config.load import load
from kubeproxy.contests import Contests
from kubeproxy.exchange import Exchange
from kubeproxy.figures import Figure
from kubeproxy.flows import FlowCleaner
from kubeproxy.forwarding import Forwarding
from kubeproxy.hub import Hub
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.reporter import Reporter
from kubeproxy.serve import metrics
from kubeproxy.serve.convergence import Convergence
from kubeproxy.serve.healthz import Health
from kubeproxy.serve.http import Door
from kubeproxy.serve.metrics import FlowMetrics, LoopMetrics
from kubeproxy.serve.nodehealth import NodeHealth
from kubeproxy.serve.stability import LEVELS
from kubeproxy.silence import SilenceWatch
from kubeproxy.sources.base import Status
from kubeproxy.sources.doubts import Doubts
from kubeproxy.sources.unusable import Unusable
from kubeproxy.spill import SpillWatch
from tests.fakes.relay import FakeRelay
from tests.unit.serve.stage import Stage, ask, plan

DOCS = Path(__file__).parents[3] / "docs/metrics.md"
COUNTED_BY_THE_KERNEL = {
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total": "counter",
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total": "counter",
    "kubeproxy_endpoint_connections_total": "counter",
    "kubeproxy_other_endpoints_connections_total": "counter",
}


async def served(machine: FakeMachine) -> dict[str, str]:
    """The types of all metrics that start with our prefix."""
    health = Health(timeout=60, eligible=lambda: True)
    for handler in health.routes().values():
        await ask(handler)
    found: list[Figure] = [
        *health.figures(),
        *metrics.of_changes(Hub("here")),
        *Reporter(Hub("here").state, "here", lambda *_: None, files=True).figures(),
        *metrics.of_options(load({}, "linux")),
        *_of_exchange(machine),
        *(await _of_convergence()),
        *Unusable().figures(),
        *sysctls.figures(machine),
        *Forwarding(machine, [Stage().loop], lambda *_, **__: None).figures(),
        *Doubts().figures(),
        *metrics.of_sources([Status("Service", received=1)], 2),
        *FlowMetrics(FlowCleaner(machine, Stage().loop)).figures(),
        *SilenceWatch(machine, Stage().loop, Hub("here"), lambda *_: None).figures(),
        *SpillWatch(machine, Stage().loop, Hub("here")).figures(),
        *Localhost(IPTablesDriver(FakeTables(), counters=False, drop_invalid=True), FakeRelay()).figures(),
        *NodeHealth(machine, Stage().loop, Door(), lambda: True, lambda *_: None).figures(),
    ]
    contests = Contests(Hub("here").state, "here", lambda *_: None)
    contests.follow(Stage().loop.ledger)
    found += contests.figures()
    for mode in ("iptables", "nftables", "ipvs", "userspace"):
        stage = Stage()
        stage.loop.resync()
        found += LoopMetrics(stage.loop, backends.mode(mode), clock=stage.clock).figures()
    return {figure.name: figure.kind for figure in found} | COUNTED_BY_THE_KERNEL


def _of_exchange(machine: FakeMachine) -> Iterable[Figure]:
    options = load({"hostname-override": "here", "manifests": [str(DOCS.parent)]}, "linux")
    return Exchange(options, machine, mode=None, supervise=asyncio.ensure_future, end=print).figures()


async def _of_convergence() -> Iterable[Figure]:
    stage, convergence = Stage(), Convergence()
    convergence.follow(stage.loop)
    stage.synced(plan())
    return convergence.figures()


def described(text: str) -> dict[str, str]:
    """The types of the metrics in the tables of a text."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1] in {"counter", "gauge", "histogram"}:
            found |= {f"kubeproxy_{name}": cells[1] for name in re.findall(r"`([a-z_]+)`", cells[0])}
    return found


async def test_every_metric_is_described() -> None:
    machine = FakeMachine()
    for setting in ("netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max", "ipv4/conf/all/forwarding"):
        machine.settings[f"net/{setting}"] = "1"
    assert described(DOCS.read_text()) == await served(machine)


def test_the_references_metrics_have_a_level_and_ours_have_none() -> None:
    section = DOCS.read_text().partition("## Those of the reference")[2].partition("## Ours")[0]
    assert described(section).keys() == {name for name in LEVELS if name.startswith("kubeproxy_")}
