"""A real Prometheus scrapes the daemon in the lab: every query of the alerts and of the dashboard answers, and alerts are raised."""

import asyncio
import contextlib
import json
import re
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kubeproxy.api import types
from tests.deploy.objects import DEPLOY
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, until
from tests.kernel.test_serve import NODE, NODE6, fetch
from tests.lab import netns
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, NODE_NAME, Lab
from tests.tools import path

RULES = DEPLOY / "prometheus/alerts.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
PORT = 9090
ANYWHERE = "0.0.0.0:10249"
FUNCTIONS = {
    *("absent", "and", "by", "changes", "count", "histogram_quantile", "increase", "max", "on", "or", "rate"),
    *("sum", "time", "vector"),
}


class Prometheus:
    """A server on the lab's node."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def get(self, page: str, **parameters: str) -> Any:
        """The data of a page of the API."""
        where = f"/api/v1/{page}?{urllib.parse.urlencode(parameters)}"
        _, _, body = fetch(self._lab, "node", "127.0.0.1", PORT, where)
        answer = json.loads(body)
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, query: str) -> list[dict[str, Any]]:
        """The series of a query, now."""
        data = self.get("query", query=query)
        assert data["resultType"] == "vector"
        found: list[dict[str, Any]] = data["result"]
        return found

    def names(self) -> set[str]:
        """The metrics it has seen."""
        return set(self.get("label/__name__/values"))

    def rules(self) -> dict[str, dict[str, Any]]:
        """The alerts by name."""
        return {rule["name"]: rule for group in self.get("rules")["groups"] for rule in group["rules"]}


def configuration(folder: Path, address: str) -> Path:
    """Its configuration file: the job of deploy/, with one node that a file names in place of Kubernetes."""
    job = yaml.safe_load((DEPLOY / "prometheus/scrape.yaml").read_text())["scrape_configs"][0]
    assert job.pop("kubernetes_sd_configs") == [{"role": "node"}]
    labels = {
        "__meta_kubernetes_node_name": NODE_NAME,
        "__meta_kubernetes_node_address_InternalIP": address,
    }
    (folder / "nodes.yaml").write_text(yaml.safe_dump([{"targets": ["192.0.2.99:10250"], "labels": labels}]))
    config = {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{**job, "file_sd_configs": [{"files": [str(folder / "nodes.yaml")]}]}],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


@contextlib.contextmanager
def prometheus(lab: Lab, folder: Path, address: str = NODE) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the node's daemon, until the block ends."""
    command = [
        str(path("bin", "prometheus")),
        f"--config.file={configuration(folder, address)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{PORT}",
    ]
    with (folder / "log").open("w") as log, lab.inside("node"):
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)
    server = Prometheus(lab)

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(OSError):
            return fetch(lab, "node", "127.0.0.1", PORT, "/-/ready")[0] == 200
        return False

    try:
        until(ready)
        yield server
    finally:
        process.kill()
        process.wait()


def queries() -> dict[str, str]:
    """The dashboard's queries by panel, as Grafana sends them."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }
    for name, value in (("$__rate_interval", "1m"), ("$instance", ".*"), ("$job", "kubeproxy")):
        found = {panel: query.replace(name, value) for panel, query in found.items()}
    assert not any("$" in query for query in found.values())
    return found


def metrics_of(query: str) -> set[str]:
    """The names of metrics in a query."""
    plain = re.sub(r'"[^"]*"|\b(?:by|on) ?\([^)]*\)|\[[^]]*\]|\{[^}]*\}', "", query)
    return set(re.findall(r"\b[a-z]\w+\b", plain)) - FUNCTIONS


def everything(station: Station) -> None:
    """Services of all kinds."""
    station.folder.put(
        service("web", "10.96.0.10", type="NodePort", ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", EP11, local=(EP11,), node=NODE_NAME),
    )


@pytest.fixture
def scraped(lab: Lab, tmp_path: Path) -> Iterator[Prometheus]:
    with prometheus(lab, tmp_path) as server:
        yield server


async def test_every_query_answers_and_every_metric_is_there(
    lab: Lab, tmp_path: Path, scraped: Prometheus
) -> None:
    """The daemon runs on manifests, then on an API server: no single one has all metrics."""
    station = Station(
        lab, tmp_path, mode="nftables", metricsBindAddress=ANYWHERE, nodePortAddresses=["127.0.0.0/8"]
    )
    everything(station)
    with station.running():
        for name in ("kubeproxy_manifest_files_unreadable", "kubeproxy_relay_connections"):
            until(lambda: scraped.query(name), name)  # noqa: B023 called at once
    server = FakeApiServer()
    node = {
        "kind": "Node",
        "metadata": {"name": NODE_NAME},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
    }
    server.store.put(node)
    server.store.put({"kind": "Service", **msgspec.to_builtins(service("web", "10.96.0.10"))})
    with netns.inside(lab.name("node")):
        await server.start()
    command = [part for part in station.command() if part not in {"--manifests", str(station.folder.path)}]
    daemon = Daemon(lab, [*command, "--master", server.url], timeout=PATIENCE)
    try:
        await asyncio.to_thread(daemon.__enter__)
        await asyncio.to_thread(until, lambda: scraped.query("rest_client_requests_total"))
        await asyncio.to_thread(
            until, lambda: scraped.query('kubeproxy_watch_connected{kind="Service"} == 1')
        )
        server.store.put({"kind": "Service", **msgspec.to_builtins(service("more", "10.96.0.11"))})
        await asyncio.to_thread(until, lambda: scraped.query("kubeproxy_services == 2"))
        await asyncio.to_thread(answer_all, scraped)
    finally:
        await asyncio.to_thread(daemon.__exit__, None, None, None)
        await server.stop()


def answer_all(scraped: Prometheus) -> None:
    rules = scraped.rules()
    assert len(rules) == RULES.read_text().count("- alert: ")
    asked = {**queries(), **{name: rule["query"] for name, rule in rules.items()}}
    names = scraped.names()
    for panel, query in asked.items():
        scraped.query(query)
        used = metrics_of(query)
        assert used, query
        assert used <= names, (panel, used - names)
    until(lambda: {rule["health"] for rule in scraped.rules().values()} == {"ok"})
    # A healthy node raises none.
    until(lambda: {rule["state"] for rule in scraped.rules().values()} == {"inactive"})
    # What a panel shows of a healthy node: most have something to show.
    (ready,) = scraped.query(queries()["Ready A"])
    assert ready["value"][1] == "1"
    for panel in ("Services A", "Versions A", "Memory A", "Connection tracking A", "Silence on watches A"):
        assert scraped.query(queries()[panel]), panel
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((\w+)[^,]*, (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        assert {each["metric"][label] for each in scraped.query(metric)} == {
            {"job": "kubeproxy", "instance": NODE_NAME}[label]
        }


def test_an_alert_is_raised_and_ends(lab: Lab, tmp_path: Path, scraped: Prometheus) -> None:
    """It is pending, since it fires after five minutes; promtool's tests prove the rest."""
    station = Station(lab, tmp_path, mode="nftables", metricsBindAddress=ANYWHERE)
    everything(station)
    broken = station.folder.path / "broken.yaml"
    name = "KubeProxyManifestsUnreadable"
    with station.running():
        until(lambda: scraped.query("kubeproxy_ready == 1"))
        until(lambda: scraped.rules()[name]["state"] == "inactive")
        broken.write_text("kind: [")
        until(lambda: scraped.rules()[name]["state"] == "pending")
        (alert,) = scraped.rules()[name]["alerts"]
        assert alert["labels"]["instance"] == NODE_NAME
        assert alert["annotations"]["summary"] == (
            f"kube-proxy on {NODE_NAME} cannot use 1 manifests or objects in them."
        )
        until(lambda: scraped.rules()["KubeProxyNotReady"]["state"] == "pending")
        broken.unlink()
        until(lambda: scraped.rules()[name]["state"] == "inactive")
        until(lambda: scraped.rules()["KubeProxyNotReady"]["state"] == "inactive")
    until(lambda: scraped.rules()["KubeProxyDown"]["state"] == "pending")


def test_the_job_finds_a_node_that_has_only_ipv6(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables", metricsBindAddress=ANYWHERE)
    everything(station)
    with prometheus(lab, tmp_path, NODE6) as server, station.running():
        until(lambda: server.query("kubeproxy_ready == 1"))
        (target,) = server.get("targets")["activeTargets"]
        assert target["scrapeUrl"] == f"http://[{NODE6}]:10249/metrics"
        assert target["labels"] == {"instance": NODE_NAME, "job": "kubeproxy"}
