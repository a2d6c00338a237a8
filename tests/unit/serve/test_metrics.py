"""What is served under /metrics."""

import gzip
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kubeproxy import backends
from kubeproxy.api import types
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.figures import Figure, Histogram
from kubeproxy.flows import Cleaned, FlowCleaner
from kubeproxy.hub import Hub
from kubeproxy.serve import metrics
from kubeproxy.serve.exposition import CONTENT_TYPE, Exposition, of_build
from kubeproxy.serve.metrics import FlowMetrics, LoopMetrics
from kubeproxy.sources.base import Status
from tests.machines import MACHINE
from tests.unit.serve.stage import HERE, THERE, Stage, ask, plan

V4 = (("ip_family", "IPv4"),)


class Scrape:
    """What one scrape found.

    Attributes:
        types: the type of each metric.
        values: the value of each sample, by its name and its sorted labels.
    """

    def __init__(self, exposition: Exposition) -> None:
        self.text = exposition.render().decode()
        self.types: dict[str, str] = {}
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for family in text_string_to_metric_families(self.text):
            name = family.name + ("_total" if family.type == "counter" else "")
            assert name not in self.types, "a metric stands there once"
            self.types[name] = family.type
            for sample in family.samples:
                self.values[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def __getitem__(self, name: str) -> float:
        return self.values[name, V4]

    def labelled(self, name: str, **labels: str) -> float:
        return self.values[name, tuple(sorted((*V4, *labels.items())))]

    def bounds(self, name: str) -> list[str]:
        return [
            label
            for (sample, labels) in self.values
            if sample == f"{name}_bucket"
            for key, label in labels
            if key == "le"
        ]


class Rig:
    """One family's loop in a mode."""

    def __init__(self, mode: str = "iptables") -> None:
        self.stage = Stage()
        self.exposition = Exposition(process=False)
        self.wall = 5000.0
        loop = LoopMetrics(
            self.stage.loop, backends.mode(mode), clock=self.stage.clock, wall=lambda: self.wall
        )
        self.exposition.providers.append(loop.figures)

    def scrape(self) -> Scrape:
        return Scrape(self.exposition)


def test_syncs_are_told_as_the_reference_tells_them() -> None:
    rig = Rig()
    rig.stage.synced(plan(), full=True, seconds=0.05, kernel=0.04)
    rig.wall = 6000.0
    rig.stage.synced(plan("api"), seconds=0.0015, kernel=0.0005)
    found = rig.scrape()
    for scope, count, total in (("", 2, 0.0515), ("full_", 1, 0.05), ("partial_", 1, 0.0015)):
        name = f"kubeproxy_sync_{scope}proxy_rules_duration_seconds"
        assert found.types[name] == "histogram"
        assert found[f"{name}_count"] == count
        assert found[f"{name}_sum"] == pytest.approx(total)
        assert found.bounds(name)[:2] == ["0.001", "0.002"]
        assert found.bounds(name)[-2:] == ["16.384", "+Inf"]
        assert len(found.bounds(name)) == 16
    assert found.labelled("kubeproxy_sync_proxy_rules_duration_seconds_bucket", le="0.002") == 1
    assert found["kubeproxy_kernel_commit_duration_seconds_sum"] == pytest.approx(0.0405)
    assert found["kubeproxy_sync_proxy_rules_last_timestamp_seconds"] == 6000.0
    assert found["kubeproxy_services"] == 2


def test_when_a_sync_was_asked_for_is_a_time_that_stays() -> None:
    rig = Rig()
    name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"
    assert name not in rig.scrape().types
    rig.stage.loop.resync()
    rig.stage.clock.time += 10
    rig.wall += 10
    assert rig.scrape()[name] == 5000.0
    rig.wall += 12345  # somebody set the clock
    assert rig.scrape()[name] == 5000.0


def test_latency_is_from_the_cluster_to_the_kernel() -> None:
    rig = Rig()
    rig.stage.synced(plan(), triggered=(4998.5, 4999.6, 5000.1))
    found = rig.scrape()
    name = "kubeproxy_network_programming_duration_seconds"
    assert found[f"{name}_count"] == 3
    assert found[f"{name}_sum"] == pytest.approx(1.8)
    counts = [found.labelled(f"{name}_bucket", le=bound) for bound in ("0", "0.25", "0.5", "1", "2")]
    assert counts == [1, 1, 2, 2, 3]
    bounds = found.bounds(name)
    assert bounds[:5] == ["0", "0.25", "0.5", "1", "2"]
    assert bounds[-4:] == ["240", "270", "300", "+Inf"]
    assert {"59", "60", "65", "115", "120", "150"} <= set(bounds)
    assert len(bounds) == 1 + 2 + 59 + 12 + 7 + 1


def test_ports_whose_endpoints_are_all_elsewhere_are_counted() -> None:
    rig = Rig()

    def counts() -> tuple[float, float]:
        name, found = "kubeproxy_sync_proxy_rules_no_local_endpoints_total", rig.scrape()
        assert found.types[name] == "gauge"
        inside, outside = (found.labelled(name, traffic_policy=p) for p in ("internal", "external"))
        return inside, outside

    far: dict[str, Any] = {"cluster": (THERE,), "any": True, "node_port": 30000}
    rig.stage.synced(
        plan("both", internal_local=True, external_local=True, **far),
        plan("inside", internal_local=True, **far),
        plan("cluster", **far),
        plan("none", internal_local=True, external_local=True, node_port=30001),
        plan("near", internal_local=True, external_local=True, local=(HERE,), **far),
        plan("closed", external_local=True, cluster=(THERE,), any=True),
        full=True,
    )
    assert counts() == (2, 1)
    rig.stage.synced(plan("both", external_local=True, **far), gone=(("default", "inside"),))
    assert counts() == (0, 1)
    rig.stage.synced(plan("other"), full=True)
    assert counts() == (0, 0)
    refused = {("default", "new"): "no", ("default", "other"): "no"}
    changed = plan("other", internal_local=True, external_local=True, **far)
    rig.stage.synced(plan("new", internal_local=True, **far), changed, full=True, failures=refused)
    assert counts() == (0, 0), "a plan that the kernel refuses drops nothing"
    rig.stage.synced(changed, full=True)
    assert counts() == (1, 1)
    rig.stage.synced(plan("other"), full=True, failures={("default", "other"): "no"})
    assert counts() == (1, 1), "what the kernel kept does"
    assert rig.scrape()["kubeproxy_services"] == 1


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("iptables", {"iptables_restore_failures_total": 5, "iptables_partial_restore_failures_total": 2}),
        ("ipvs", {"iptables_restore_failures_total": 5}),
        ("nftables", {"nftables_sync_failures_total": 5}),
        ("userspace", {}),
    ],
)
def test_failures_have_the_names_of_the_mode(mode: str, names: dict[str, int]) -> None:
    rig = Rig(mode)
    rig.stage.loop.failed = {True: 3, False: 2}
    found = rig.scrape()
    told = {
        name.removeprefix("kubeproxy_sync_proxy_rules_"): found[name]
        for name in found.types
        if "failures" in name and name.startswith("kubeproxy_sync_proxy_rules_")
    }
    assert told == names
    assert found.labelled("kubeproxy_sync_failures_total", scope="full") == 3
    assert found.labelled("kubeproxy_sync_failures_total", scope="partial") == 2


def test_repairs_and_refused_services_are_told() -> None:
    rig = Rig()
    rig.stage.loop.watch()
    rig.stage.driver.disturbed("a rule was deleted")
    rig.stage.synced(plan(), plan("bad"), full=True, failures={("default", "bad"): "no"})
    found = rig.scrape()
    assert found["kubeproxy_drift_repairs_total"] == 1
    assert found["kubeproxy_quarantined_services"] == 1
    assert found["kubeproxy_services"] == 1


def test_what_a_backend_tells_of_itself_is_told() -> None:
    rig = Rig()
    figure = Figure("kubeproxy_x_total", "counter", "X.", 7, {"table": "nat", "ip_family": "IPv4"})
    rig.stage.driver.figures = lambda: [figure]  # type: ignore[attr-defined]
    assert rig.scrape().labelled("kubeproxy_x_total", table="nat") == 7


def test_stale_flows_are_told() -> None:
    cleaner = FlowCleaner(MACHINE, Stage().loop)
    exposition = Exposition(process=False)
    exposition.providers.append(FlowMetrics(cleaner).figures)
    cleaner.deleted = 3
    for listener in cleaner._listeners:
        listener(Cleaned(listed=10, deleted=3, seconds=0.25))
    found = Scrape(exposition)
    assert found["kubeproxy_conntrack_reconciler_deleted_entries_total"] == 3
    assert found["kubeproxy_conntrack_reconciler_sync_duration_seconds_sum"] == 0.25
    assert len(found.bounds("kubeproxy_conntrack_reconciler_sync_duration_seconds")) == 16


def test_changes_and_what_of_them_waits_are_told() -> None:
    hub = Hub("here")
    first, second = Stage().loop, Stage().loop
    exposition = Exposition(process=False)
    exposition.providers.append(lambda: metrics.of_changes(hub))
    name = "kubeproxy_sync_proxy_rules_{}_changes_{}"
    assert not any(Scrape(exposition).values.values())
    hub.loops = [first, second]
    spec = types.ServiceSpec(ports=(types.ServicePort(80),), cluster_ip="10.96.0.1")
    for each in ("a", "b"):
        hub.set(types.Service(types.ObjectMeta(name=each, namespace="default"), spec))
    found = Scrape(exposition)
    assert found.values[name.format("service", "total"), ()] == 4, "each family looks at each Service"
    labels = types.Labels(service="a")
    hub.set(types.EndpointSlice(types.ObjectMeta("a-1", "default", labels=labels), "IPv4"))
    found = Scrape(exposition)
    assert found.values[name.format("endpoint", "total"), ()] == 1, "a slice is of one family"
    assert found.values[name.format("service", "pending"), ()] == 2
    assert found.types[name.format("service", "total")] == "counter"
    assert found.types[name.format("service", "pending")] == "gauge"


def test_watches_are_told() -> None:
    exposition = Exposition(process=False)
    known = Status("Service", connected=True, received=90.0, lists=2, errors=3, objects=10)
    exposition.providers.append(lambda: metrics.of_sources([known, Status("Node")], 100.0))
    values = Scrape(exposition).values
    service, node = (("kind", "Service"),), (("kind", "Node"),)
    assert values["kubeproxy_watch_age_seconds", service] == 10
    assert ("kubeproxy_watch_age_seconds", node) not in values, "it was never heard of"
    assert [
        values[f"kubeproxy_watch_{n}", service] for n in ("connected", "lists_total", "errors_total")
    ] == [
        1,
        2,
        3,
    ]
    assert values["kubeproxy_watch_objects", service] == 10
    assert values["kubeproxy_watch_connected", node] == 0


def test_gates_and_version_are_told() -> None:
    exposition = Exposition(process=False)
    config = KubeProxyConfiguration(feature_gates={"NativeHistograms": True})
    exposition.providers.append(lambda: of_build(config))
    values = Scrape(exposition).values
    assert values["kubernetes_feature_enabled", (("name", "NativeHistograms"), ("stage", "ALPHA"))] == 1
    assert values["kubernetes_feature_enabled", (("name", "NFTablesProxyMode"), ("stage", ""))] == 1
    assert values["kubernetes_feature_enabled", (("name", "LoggingAlphaOptions"), ("stage", "ALPHA"))] == 0
    (build,) = (dict(labels) for name, labels in values if name == "kubernetes_build_info")
    assert (build["major"], build["minor"], build["git_version"]) == ("1", "36", "v1.36.0")


def test_the_process_is_told() -> None:
    found = Scrape(Exposition())
    assert {
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_open_fds",
        "python_info",
    } <= found.types.keys()


def test_a_histogram_is_told_in_prometheus_words() -> None:
    exposition = Exposition(process=False)
    histogram = Histogram((0.5, 1))
    for value in (0.1, 0.7, 9.0):
        histogram.observe(value)
    exposition.providers.append(lambda: [Figure("x", "histogram", "X.", histogram, {"a": 'q"\n'})])
    assert exposition.render().decode().splitlines()[1:] == [
        "# TYPE x histogram",
        'x_bucket{a="q\\"\\n",le="0.5"} 1.0',
        'x_bucket{a="q\\"\\n",le="1"} 2.0',
        'x_bucket{a="q\\"\\n",le="+Inf"} 3.0',
        'x_sum{a="q\\"\\n"} 9.8',
        'x_count{a="q\\"\\n"} 3.0',
    ]


async def test_a_scrape_is_answered_in_prometheus_text_format() -> None:
    answer = await ask(Exposition().handle, "/metrics")
    assert answer.status == 200
    assert answer.content_type == CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.body.startswith(b"# HELP ")


@pytest.mark.parametrize(
    ("header", "zipped"),
    [("gzip", True), ("gzip, deflate, br", True), ("GZIP;q=0.5", True), ("*", True), ("zstd, gzip;q=0.1", True),
     ("", False), ("identity", False), ("deflate", False), ("gzip;q=0", False), ("gzip;q=0.5, identity", False), ("*;q=0", False)],
)  # fmt: skip
async def test_who_takes_gzip_gets_gzip(header: str, zipped: bool) -> None:
    exposition = Exposition(process=False)
    exposition.providers.append(lambda: [Figure("x", "gauge", "X.", 1)])
    answer = await ask(exposition.handle, "/metrics", headers={"accept-encoding": header})
    assert (("Content-Encoding", "gzip") in answer.headers) is zipped
    assert (gzip.decompress(answer.body) if zipped else answer.body) == exposition.render()


def test_help_texts_of_the_references_metrics_begin_with_their_stability() -> None:
    exposition = Exposition(process=False)
    names = [
        "kubeproxy_proxy_healthz_total",
        "kubernetes_build_info",
        "kubernetes_healthcheck",
        "kubeproxy_ready",
    ]
    exposition.providers.append(lambda: [Figure(name, "gauge", "Text.", 1) for name in names])
    lines = exposition.render().decode().splitlines()
    assert [line for line in lines if line.startswith("# HELP")] == [
        "# HELP kubeproxy_proxy_healthz_total [ALPHA] Text.",
        "# HELP kubernetes_build_info [BETA] Text.",
        "# HELP kubernetes_healthcheck [STABLE] Text.",
        "# HELP kubeproxy_ready Text.",
    ]
