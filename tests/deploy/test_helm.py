"""The chart, rendered by a real Helm, makes the objects of the Kustomize overlays from a handful of values."""

import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeproxy import __version__
from tests.deploy import objects
from tests.deploy.cluster import with_kube_proxy
from tests.deploy.objects import DEPLOY, Object
from tests.deploy.test_kustomize import has_journal, options_of
from tests.tools import call

CHART = DEPLOY / "helm/kube-proxy"
REQUIRED = {
    "image": {"repository": "registry.invalid/kubeproxy", "tag": "set-the-image"},
    "apiServer": {"host": "api-server.invalid"},
}


def helm(folder: Path, values: Mapping[str, Any], *, namespace: str = "kube-system") -> dict[str, Object]:
    """The objects that the chart makes of values."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return objects.parse(call("helm", "template", "any", CHART, "-n", namespace, "-f", file))


def comparable(found: dict[str, Object]) -> dict[str, Object]:
    """Objects without the differences in form: hashes in names, where environment comes from, the text of YAML."""
    pod = objects.pod(found)
    (container,) = pod["containers"]
    environment = objects.environment(found)
    container.pop("envFrom", None)
    container["env"] = [each for each in container["env"] if "value" not in each]
    text = objects.config(found)
    plain = {
        name: each
        for name, each in found.items()
        if each["kind"] != "ConfigMap" or "config.conf" in each["data"]
    }
    (config_map,) = (each for each in plain.values() if each["kind"] == "ConfigMap")
    config_map["data"]["config.conf"] = yaml.safe_load(text)
    without_hashes = json.loads(re.sub(r"(kubeproxy-config)-\w{10}\b", r"\1", json.dumps(plain)))
    return {"environment": environment, **without_hashes}


@pytest.mark.parametrize(
    ("least", "overlay"), [(False, "overlays/fresh"), (True, "overlays/least-privilege")]
)
def test_it_makes_the_objects_of_the_overlay(tmp_path: Path, least: bool, overlay: str) -> None:
    made = helm(tmp_path, {**REQUIRED, "leastPrivilege": least})
    assert comparable(made) == comparable(objects.parse(objects.kustomize(overlay)))


def test_the_condition_of_the_node_needs_one_more_right(tmp_path: Path) -> None:
    without, with_it = (
        objects.only(helm(tmp_path, {**REQUIRED, "config": config}).values(), "ClusterRole")["rules"]
        for config in ({"nodeCondition": False}, {"nodeCondition": True})
    )
    added = {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}
    assert with_it == [*without, added]


@pytest.mark.parametrize("monitoring", [False, True])
@pytest.mark.parametrize("least", [False, True])
def test_an_api_server_takes_them(tmp_path: Path, least: bool, monitoring: bool) -> None:
    values = {
        **REQUIRED,
        "leastPrivilege": least,
        "monitoring": {"enabled": monitoring, "labels": {"release": "prometheus"}},
        "imagePullSecrets": [{"name": "registry"}],
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "256Mi"}},
    }
    found = helm(tmp_path, values, namespace="network")
    kinds = {each["kind"] for each in found.values()}
    assert (kinds & objects.CUSTOM == objects.CUSTOM) is monitoring
    for each in found.values():
        if each["kind"] not in objects.CUSTOM:
            assert list(objects.complaints(each)) == []
        if not each["kind"].startswith("Cluster"):
            assert each["metadata"]["namespace"] == "network"
    assert objects.pod(found)["imagePullSecrets"] == [{"name": "registry"}]
    (subject,) = objects.only(found.values(), "ClusterRoleBinding")["subjects"]
    assert subject["namespace"] == "network"


def test_monitoring_brings_the_objects_of_the_component(tmp_path: Path) -> None:
    found = helm(tmp_path, {**REQUIRED, "monitoring": {"enabled": True, "labels": {"release": "one"}}})
    assert options_of(objects.config(found)).metrics_bind_address == "0.0.0.0:10249"
    for file, kind in (("podmonitor.yaml", "PodMonitor"), ("prometheusrule.yaml", "PrometheusRule")):
        made, plain = (
            objects.only(found.values(), kind),
            yaml.safe_load((DEPLOY / "prometheus" / file).read_text()),
        )
        assert made["metadata"]["labels"].pop("release") == "one"
        assert made == plain


def test_the_configuration_is_passed_on(tmp_path: Path) -> None:
    config = {
        "mode": "nftables",
        "clusterCIDR": "10.244.0.0/16",
        "conntrack": {"maxPerCore": 3000000, "tcpEstablishedTimeout": "1h"},
        "healthzBindAddress": "0.0.0.0:20256",
        "metricsBindAddress": "192.0.2.1:20249",
    }
    found = helm(tmp_path, {**REQUIRED, "config": config, "monitoring": {"enabled": True}})
    text = objects.config(found)
    got = options_of(text)
    assert (got.mode, got.cluster_cidr, got.conntrack.max_per_core) == ("nftables", "10.244.0.0/16", 3000000)
    assert "1e+06" not in text
    assert got.metrics_bind_address == "192.0.2.1:20249"
    (container,) = objects.pod(found)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"healthz": 20256, "metrics": 20249}


@pytest.mark.parametrize("least", [False, True])
def test_a_journal_and_the_status_page(tmp_path: Path, least: bool) -> None:
    values = {**REQUIRED, "leastPrivilege": least, "statusPage": "always"}
    journal = {"enabled": True, "path": "/var/log/changes", "size": "128Mi"}
    found = helm(tmp_path, {**values, "journal": journal})
    assert [wrong for each in found.values() for wrong in objects.complaints(each)] == []
    pod = objects.pod(found)
    assert "--status-page=always" in pod["containers"][0]["command"]
    has_journal(pod, "/var/log/changes", "128Mi")
    assert "journal" not in str(objects.pod(helm(tmp_path, {**values, "journal": {"enabled": False}})))


def test_another_configuration_has_another_name(tmp_path: Path) -> None:
    """So it is rolled out node by node."""
    names = {
        next(name for name in helm(tmp_path, {**REQUIRED, "config": {"mode": mode}}) if "config" in name)
        for mode in ("iptables", "nftables")
    }
    assert len(names) == 2


def test_the_image_is_that_of_the_program_by_default(tmp_path: Path) -> None:
    found = helm(tmp_path, {**REQUIRED, "image": {"repository": "r.example:5000/a/kubeproxy"}})
    assert objects.pod(found)["containers"][0]["image"] == f"r.example:5000/a/kubeproxy:{__version__}"


def test_it_does_not_work_without_image_and_address() -> None:
    with pytest.raises(RuntimeError) as failure:
        call("helm", "template", "any", CHART)
    for place in ("/image/repository", "/apiServer/host"):
        assert f"at '{place}': minLength" in str(failure.value)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"apiServer": {"host": "https://api.example.com"}}, "/apiServer/host"),
        ({"apiServer": {"host": "api.example.com", "port": "6443"}}, "/apiServer/port"),
        ({"image": {"repository": "Registry.Example/X"}}, "/image/repository"),
        ({"config": {"mode": "ebpf"}}, "/config/mode"),
        ({"config": {"healthzBindAddress": "127.0.0.1:10256"}}, "/config/healthzBindAddress"),
        ({"config": {"healthzBindAddress": None}}, "/config"),
        ({"config": {"metricsBindAddress": ""}}, "/config/metricsBindAddress"),
        ({"leastPriviledge": True}, "leastPriviledge"),
        ({"leastPrivilege": "yes"}, "/leastPrivilege"),
        ({"monitoring": {"enable": True}}, "/monitoring"),
        ({"statusPage": "open"}, "/statusPage"),
        ({"journal": {"enabled": True, "size": "a lot"}}, "/journal/size"),
        ({"journal": {"enabled": True, "path": "journal"}}, "/journal/path"),
        ({"journal": {"enabled": True, "path": "/var/lib/kube-proxy/journal"}}, "/journal/path"),
    ],
)
def test_the_schema_refuses(tmp_path: Path, values: dict[str, Any], place: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(place)):
        helm(tmp_path, {**REQUIRED, **values})


@pytest.mark.parametrize("nodes", [None, 0, 3])
def test_it_is_refused_beside_a_kube_proxy_that_runs(tmp_path: Path, nodes: int | None) -> None:
    """One that is scheduled on no node is harmless: so it is switched off where it cannot be deleted."""
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(REQUIRED))
    command = ("template", "any", CHART, "-f", tmp_path / "values.yaml")
    with with_kube_proxy(nodes) as url:
        asking = ("--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", url)
        if nodes:
            with pytest.raises(RuntimeError, match="kube-system/kube-proxy runs on this cluster"):
                call("helm", *command, *asking)
        else:
            assert "kind: DaemonSet" in call("helm", *command, *asking)


def test_helm_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(REQUIRED))
    assert "0 chart(s) failed" in call("helm", "lint", "--strict", CHART, "-f", tmp_path / "values.yaml")


def test_the_packed_chart_has_the_alerts(tmp_path: Path) -> None:
    """In the repository they are a link."""
    call("helm", "package", CHART, "-d", tmp_path)
    (archive,) = tmp_path.glob("*.tgz")
    with tarfile.open(archive) as packed:
        alerts = packed.getmember("kube-proxy/alerts.yaml")
        assert alerts.isfile()
        assert alerts.size == (DEPLOY / "prometheus/alerts.yaml").stat().st_size


def test_the_chart_has_the_programs_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
