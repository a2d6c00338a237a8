"""Each alert fires when it should and does not when it should not, by promtool; its page says what to do."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.objects import DEPLOY
from tests.tools import call

PROMETHEUS = DEPLOY / "prometheus"
RULES = PROMETHEUS / "alerts.yaml"
PAGE = DEPLOY.parent / "docs/alerts.md"
ALERTS: dict[str, Any] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
SECONDS = {"m": 60, "h": 3600}


@dataclass(frozen=True)
class Case:
    """One alert, and series by their names in promtool's notation: a value a minute.

    Attributes:
        fires: with these it fires.
        quiet: with these it does not.
        labels: that the alert has, beside its name and its severity.
    """

    alert: str
    fires: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str]


NODE = {"instance": "node-1"}
FAMILY = {"instance": "node-1", "ip_family": "IPv4"}
ON_NODE = 'instance="node-1"'
IN_FAMILY = 'instance="node-1",ip_family="IPv4"'
SCRAPED = 'instance="node-1",job="kubeproxy"'
JOB = {**NODE, "job": "kubeproxy"}
LATENCY = "kubeproxy_network_programming_duration_seconds_bucket"
QUEUED = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"
SYNCED = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"


def gauge(alert: str, series: str, bad: int, good: int, labels: dict[str, str]) -> Case:
    """An alert on one gauge; a value that lasts for a moment only is no reason either."""
    return Case(alert, {series: f"{bad}x60"}, {series: f"{good}x20 {bad} {good}x39"}, labels)


CASES = [
    gauge("KubeProxyDown", f"up{{{SCRAPED}}}", 0, 1, JOB),
    Case("KubeProxyAbsent", {"up": "1x60"}, {f"kubeproxy_ready{{{ON_NODE}}}": "0x60"}, {}),
    gauge("KubeProxyNotReady", f"kubeproxy_ready{{{ON_NODE}}}", 0, 1, NODE),
    Case(
        "KubeProxyRestarting",
        {f"process_start_time_seconds{{{SCRAPED}}}": "1x40 100x5 500x5 900x5 1300x5"},
        {
            f"process_start_time_seconds{{{SCRAPED}}}": "1x20 100x10 500x10 900x20",
            'process_start_time_seconds{instance="node-1",job="other"}': "1x40 100x5 500x5 900x5 1300x5",
        },
        JOB,
    ),
    Case(
        "KubeProxySyncFailing",
        {
            f'kubeproxy_sync_failures_total{{{IN_FAMILY},scope="full"}}': "0+1x60",
            f'kubeproxy_sync_failures_total{{{IN_FAMILY},scope="partial"}}': "1x60",
        },
        {
            f'kubeproxy_sync_failures_total{{{IN_FAMILY},scope="full"}}': "9x50 10x10",
            f'kubeproxy_sync_failures_total{{{IN_FAMILY},scope="partial"}}': "1x55 2x5",
        },
        FAMILY,
    ),
    # promtool's clock begins at 0 and ends at 3600.
    Case(
        "KubeProxyChangesWaiting",
        {f"{QUEUED}{{{IN_FAMILY}}}": "0x50 3000x10", f"{SYNCED}{{{IN_FAMILY}}}": "600x60"},
        {
            f"{QUEUED}{{{IN_FAMILY}}}": "500x60",
            f"{SYNCED}{{{IN_FAMILY}}}": "600x60",
            # A node where something always waits, and always succeeds.
            f'{QUEUED}{{instance="node-2",ip_family="IPv4"}}': "5+60x60",
            f'{SYNCED}{{instance="node-2",ip_family="IPv4"}}': "0+60x60",
        },
        FAMILY,
    ),
    Case(
        "KubeProxyProgrammingSlow",
        {
            f'{LATENCY}{{{IN_FAMILY},le="30"}}': "0+9x60",
            f'{LATENCY}{{{IN_FAMILY},le="60"}}': "0+10x60",
            f'{LATENCY}{{{IN_FAMILY},le="+Inf"}}': "0+10x60",
        },
        {
            f'{LATENCY}{{{IN_FAMILY},le="30"}}': "5+1000x60",
            f'{LATENCY}{{{IN_FAMILY},le="60"}}': "10+1001x60",
            f'{LATENCY}{{{IN_FAMILY},le="+Inf"}}': "10+1001x60",
        },
        FAMILY,
    ),
    gauge("KubeProxyServicesRefused", f"kubeproxy_quarantined_services{{{IN_FAMILY}}}", 2, 0, FAMILY),
    Case(
        "KubeProxyRulesChangedByOthers",
        {f"kubeproxy_drift_repairs_total{{{IN_FAMILY}}}": "0x20 1x10 2x10 3x10 5x10"},
        {f"kubeproxy_drift_repairs_total{{{IN_FAMILY}}}": "7x30 8x10 9x20"},
        FAMILY,
    ),
    gauge(
        "KubeProxyWatchStale",
        f'kubeproxy_watch_age_seconds{{{ON_NODE},kind="Service"}}',
        301,
        150,
        {**NODE, "kind": "Service"},
    ),
    Case(
        "KubeProxyWatchDisconnected",
        {f'kubeproxy_watch_connected{{{ON_NODE},kind="EndpointSlice"}}': "0x60"},
        {  # an older API server has no ServiceCIDRs
            f'kubeproxy_watch_connected{{{ON_NODE},kind="EndpointSlice"}}': "1x40 0x3 1x17",
            f'kubeproxy_watch_connected{{{ON_NODE},kind="ServiceCIDR"}}': "0x60",
        },
        {**NODE, "kind": "EndpointSlice"},
    ),
    Case(
        "KubeProxyConntrackNearlyFull",
        {
            f"kubeproxy_conntrack_entries{{{ON_NODE}}}": "91x60",
            f"kubeproxy_conntrack_entries_limit{{{ON_NODE}}}": "100x60",
        },
        {
            f"kubeproxy_conntrack_entries{{{ON_NODE}}}": "89x60",
            f"kubeproxy_conntrack_entries_limit{{{ON_NODE}}}": "100x60",
        },
        NODE,
    ),
    Case(
        "KubeProxyForwardingDisabled",
        {
            f"kubeproxy_forwarding_enabled{{{IN_FAMILY}}}": "0x60",
            f"kubeproxy_services{{{IN_FAMILY}}}": "3x60",
        },
        {
            f"kubeproxy_forwarding_enabled{{{IN_FAMILY}}}": "1x60",
            f"kubeproxy_services{{{IN_FAMILY}}}": "3x60",
            # A family without Services needs no forwarding.
            'kubeproxy_forwarding_enabled{instance="node-1",ip_family="IPv6"}': "0x60",
            'kubeproxy_services{instance="node-1",ip_family="IPv6"}': "0x60",
        },
        FAMILY,
    ),
    Case(
        "KubeProxyManifestsUnreadable",
        {
            f"kubeproxy_manifest_files_unreadable{{{ON_NODE}}}": "0x60",
            f"kubeproxy_manifest_objects_undecodable{{{ON_NODE}}}": "1x60",
        },
        {
            f"kubeproxy_manifest_files_unreadable{{{ON_NODE}}}": "0x20 1 0x39",
            f"kubeproxy_manifest_objects_undecodable{{{ON_NODE}}}": "0x60",
        },
        NODE,
    ),
    gauge(
        "KubeProxyManifestsDoubtful",
        f"kubeproxy_manifest_objects_with_unknown_fields{{{ON_NODE}}}",
        1,
        0,
        NODE,
    ),
    gauge("KubeProxyConfigUnknownFields", f"kubeproxy_config_unknown_fields{{{ON_NODE}}}", 1, 0, NODE),
    Case(
        "KubeProxyServicePortMismatch",
        {f'kubeproxy_service_findings{{{ON_NODE},reason="PortWithoutEndpoints"}}': "1x60"},
        {
            f'kubeproxy_service_findings{{{ON_NODE},reason="PortWithoutEndpoints"}}': "0x20 1x5 0x35",
            f'kubeproxy_service_findings{{{ON_NODE},reason="NoEndpoints"}}': "7x60",
        },
        {"reason": "PortWithoutEndpoints"},
    ),
    Case(
        "KubeProxyServiceWithoutReadyEndpoints",
        {f'kubeproxy_service_findings{{{ON_NODE},reason="NoReadyEndpoints"}}': "1x60"},
        {
            f'kubeproxy_service_findings{{{ON_NODE},reason="NoReadyEndpoints"}}': "0x20 1x5 0x35",
            f'kubeproxy_service_findings{{{ON_NODE},reason="NoLocalEndpointsExternal"}}': "7x60",
        },
        {"reason": "NoReadyEndpoints"},
    ),
    gauge(
        "KubeProxyFrontsContested", f"kubeproxy_contested_fronts{{{IN_FAMILY}}}", 1, 0, {"ip_family": "IPv4"}
    ),
    Case(
        "KubeProxyHealthCheckPortsClosed",
        {f'kubeproxy_health_check_node_ports{{{IN_FAMILY},state="failed"}}': "1x60"},
        {
            f'kubeproxy_health_check_node_ports{{{IN_FAMILY},state="failed"}}': "0x60",
            f'kubeproxy_health_check_node_ports{{{IN_FAMILY},state="open"}}': "3x60",
        },
        {**FAMILY, "state": "failed"},
    ),
    Case(
        "KubeProxyRelayEnded",
        {f"kubeproxy_relay_lost_processes_total{{{IN_FAMILY}}}": "0x50 1x10"},
        {f"kubeproxy_relay_lost_processes_total{{{IN_FAMILY}}}": "1x60"},
        FAMILY,
    ),
]


def unit_test(case: Case, series: dict[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
    """A test in promtool's format: which alerts of this name fire after an hour."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}',
                "eval_time": "1h",
                "exp_samples": expected,
            }
        ],
    }


def run(folder: Path, *tests: dict[str, Any]) -> None:
    """Runs tests by promtool."""
    file = folder / "tests.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": list(tests)})
    )
    call("promtool", "test", "rules", file)


def firing(case: Case) -> list[dict[str, Any]]:
    """What is expected of an alert that fires."""
    severity = ALERTS[case.alert]["labels"]["severity"]
    labels = {"alertname": case.alert, "alertstate": "firing", "severity": severity, **case.labels}
    text = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return [{"labels": f"ALERTS{{{text}}}", "value": 1}]


def test_every_alert_has_a_case() -> None:
    assert [case.alert for case in CASES] == list(ALERTS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_it_fires(case: Case, tmp_path: Path) -> None:
    run(tmp_path, unit_test(case, case.fires, firing(case)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_it_is_quiet(case: Case, tmp_path: Path) -> None:
    run(tmp_path, unit_test(case, case.quiet, []))


def test_promtool_takes_the_rules_and_the_scrape_job(tmp_path: Path) -> None:
    assert f"{len(ALERTS)} rules found" in call("promtool", "check", "rules", RULES)
    jobs = yaml.safe_load((PROMETHEUS / "scrape.yaml").read_text())["scrape_configs"]
    for job in jobs:  # Debian's Prometheus is built without Kubernetes
        assert job.pop("kubernetes_sd_configs") == [{"role": "node"}]
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump({"scrape_configs": jobs, "rule_files": [str(RULES)]})
    )
    call("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_the_operators_object_has_the_same_rules() -> None:
    found = yaml.safe_load((PROMETHEUS / "prometheusrule.yaml").read_text())
    assert found["spec"] == yaml.safe_load(RULES.read_text())


def test_every_alert_has_its_section_of_the_page_and_nothing_else_has_one() -> None:
    headings = re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)
    assert headings == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"


def test_every_section_says_what_it_means_and_what_to_do() -> None:
    for section in PAGE.read_text().split("\n## ")[1:]:
        assert re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE) == ["Meaning.", "Look at.", "Do."], (
            section
        )


def test_every_metric_of_the_alerts_is_documented() -> None:
    page = (DEPLOY.parent / "docs/metrics.md").read_text()
    for rule in ALERTS.values():
        for name in re.findall(r"kubeproxy_(\w+?)(?:_bucket)?\b", rule["expr"]):
            assert f"`{name}`" in page, name
