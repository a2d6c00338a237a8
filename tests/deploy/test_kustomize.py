"""The overlays, rendered by a real kubectl, are what an API server takes, and fit the program."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeproxy.config.commandline import parse as parse_flags
from kubeproxy.config.decode import decode
from kubeproxy.config.defaults import with_defaults, with_platform_defaults
from kubeproxy.config.load import load
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.config.validate import validate
from kubeproxy.sources import apiserver
from kubeproxy.sources.kubeconfig import in_cluster
from kubeproxy.sources.watch import Resource
from tests.deploy import objects
from tests.deploy.objects import KUSTOMIZE, Object
from tests.kernel.test_rights import MODES
from tests.tools import call

OURS = ("overlays/fresh", "overlays/least-privilege", "example")
KUBEADM = Path(__file__).with_name("kubeadm")
IMAGE = "registry.invalid/kubeproxy:set-the-image"

rendered = pytest.mark.parametrize("folder", OURS)


def options_of(text: str) -> KubeProxyConfiguration:
    """The configuration in a file, which must be valid and fully understood."""
    config, doubts = decode(text.encode(), "config.conf")
    assert doubts == ()
    config = with_platform_defaults(with_defaults(config), "linux")
    assert validate(config, "linux") == []
    return config


@rendered
def test_an_api_server_takes_them(folder: str) -> None:
    found = objects.parse(objects.kustomize(folder))
    assert {each["kind"] for each in found.values()} == {
        *("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet")
    }
    assert [wrong for each in found.values() for wrong in objects.complaints(each)] == []
    for each in found.values():
        if not each["kind"].startswith("Cluster"):
            assert each["metadata"]["namespace"] == "kube-system"


@rendered
def test_no_object_of_kubeadm_is_touched(folder: str) -> None:
    for name, each in objects.parse(objects.kustomize(folder)).items():
        assert not re.search(r" kube-proxy|system:", name)
        if each["kind"] == "DaemonSet":
            assert "k8s-app" not in each["spec"]["template"]["metadata"]["labels"]


@rendered
def test_the_configuration_and_the_flags_are_understood(folder: str) -> None:
    found = objects.parse(objects.kustomize(folder))
    options_of(objects.config(found))
    (container,) = objects.pod(found)["containers"]
    values = parse_flags([arg.replace("$(NODE_NAME)", "node") for arg in container["command"][1:]], "linux")
    assert values == {"config": "/var/lib/kube-proxy/config.conf", "hostname-override": "node"}
    for init in objects.pod(found).get("initContainers", ()):
        words = shlex.split(init["command"][2])
        assert words[0] == container["command"][0]
        flags = parse_flags(words[1 : words.index("||")], "linux")
        assert flags == {"init-only": True, "config": values["config"]}
        assert "/var/lib/kube-proxy" in {mount["mountPath"] for mount in init["volumeMounts"]}


@rendered
def test_the_api_server_is_asked_at_the_address_that_was_given(folder: str, tmp_path: Path) -> None:
    """Not at that of its Service, which leads nowhere before the first rules are written."""
    (tmp_path / "token").write_text("secret")
    found = objects.parse(objects.kustomize(folder))
    cluster = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    server = in_cluster(cluster | objects.environment(found), tmp_path).cluster.server
    assert server == ("https://192.0.2.10:6443" if folder == "example" else "https://api-server.invalid:6443")


@rendered
def test_probes_fit_the_configured_addresses(folder: str) -> None:
    found = objects.parse(objects.kustomize(folder))
    config = options_of(objects.config(found))
    (container,) = objects.pod(found)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.healthz_bind_address == f"0.0.0.0:{ports['healthz']}"
    assert config.metrics_bind_address.endswith(f":{ports['metrics']}")
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "healthz"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "healthz"}


@rendered
def test_every_node_gets_one_at_any_time(folder: str) -> None:
    found = objects.parse(objects.kustomize(folder))
    pod = objects.pod(found)
    assert pod["hostNetwork"] is True
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    strategy = objects.only(found.values(), "DaemonSet")["spec"]["updateStrategy"]
    # Two instances on one node would wait for each other: the ports and the instance lock are the node's.
    assert strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": "10%"}


@rendered
def test_the_memory_that_is_requested_is_enough_for_10_000_services(folder: str) -> None:
    text = (objects.DEPLOY.parent / "docs/performance.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| resident memory, 10,000 Services"))
    figures = [int(figure) for figure in re.findall(r"\b(\d+)(?: MB| at its peak)", row)]
    assert len(figures) == 3
    (container,) = objects.pod(objects.parse(objects.kustomize(folder)))["containers"]
    request = container["resources"]["requests"]["memory"]
    assert int(request.removesuffix("Mi")) * 1.048576 > max(figures)
    assert "limits" not in container["resources"]


def test_the_right_to_write_the_condition_is_a_component(tmp_path: Path) -> None:
    def rules(text: str) -> list[Any]:
        found: list[Any] = objects.only(objects.parse(text).values(), "ClusterRole")["rules"]
        return found

    base = os.path.relpath(KUSTOMIZE, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{base}/overlays/fresh]\ncomponents: [{base}/components/node-condition]\n"
    )
    added = {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}
    text = call("kubectl", "kustomize", "--load-restrictor=LoadRestrictionsNone", tmp_path)
    assert rules(text) == [*rules(objects.kustomize("overlays/fresh")), added]


@rendered
def test_the_role_allows_what_is_asked(folder: str) -> None:
    role = objects.only(objects.parse(objects.kustomize(folder)).values(), "ClusterRole")
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    paths = [each.path for each in vars(apiserver).values() if isinstance(each, Resource)]
    assert len(paths) == 4
    for path in (*paths, "/api/v1/nodes"):
        if path == "/api/v1/endpoints":  # only of clusters before v1.21
            continue
        *_, group, _, resource = path.split("/")
        for verb in ("list", "watch"):
            assert ("" if group == "api" else group, resource, verb) in allowed
    assert ("", "nodes", "get") in allowed
    assert {("events.k8s.io", "events", verb) for verb in ("create", "patch")} <= allowed
    account = objects.only(objects.parse(objects.kustomize(folder)).values(), "ServiceAccount")["metadata"]
    binding = objects.only(objects.parse(objects.kustomize(folder)).values(), "ClusterRoleBinding")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_least_privilege_gives_the_rights_that_are_tested() -> None:
    """tests/kernel/test_rights.py runs the proxy with these, in every mode it names."""
    pod = objects.pod(objects.parse(objects.kustomize("overlays/least-privilege")))
    (container,) = pod["containers"]
    rights = {right.removeprefix("+").upper() for *_, given in MODES for right in given.split(",")}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": sorted(rights)},
    }
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (init,) = pod["initContainers"]
    assert init["securityContext"] == {"privileged": True}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
        "/run/xtables.lock",
        "/var/lib/kube-proxy",
    }


@pytest.mark.parametrize("folder", [*OURS, "overlays/kubeadm"])
def test_the_image_must_be_set(folder: str) -> None:
    """The name in its place can belong to nobody, so nothing is ever pulled by mistake."""
    found = objects.parse(objects.kustomize(folder))
    pod = objects.pod(found)
    containers = [*pod["containers"], *pod.get("initContainers", ())]
    wanted = "registry.example.com/kubeproxy:0.1.0" if folder == "example" else IMAGE
    assert {container["image"] for container in containers} == {wanted}
    assert {container.get("imagePullPolicy", "IfNotPresent") for container in containers} == {"IfNotPresent"}


def test_kustomize_sets_all_images(tmp_path: Path) -> None:
    base = os.path.relpath(KUSTOMIZE, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{base}/overlays/least-privilege]\n"
        "images: [{name: registry.invalid/kubeproxy, newName: other.example/proxy, newTag: '7'}]\n"
    )
    pod = objects.pod(objects.parse(call("kubectl", "kustomize", tmp_path)))
    assert [c["image"] for c in (*pod["containers"], *pod["initContainers"])] == ["other.example/proxy:7"] * 2


def test_the_example_changes_what_it_says_and_no_more() -> None:
    fresh, example = (
        re.sub(r"(kubeproxy-\w[\w-]*)-\w{10}\b", r"\1-HASH", objects.kustomize(folder))
        for folder in ("overlays/fresh", "example")
    )
    changed = {line.split(":")[0].strip(" -") for line in {*fresh.splitlines()} ^ {*example.splitlines()}}
    assert changed == {"image", "KUBERNETES_SERVICE_HOST", "clusterCIDR"}


def test_what_the_example_has_in_comments_brings_monitoring_a_journal_and_the_status_page(
    tmp_path: Path,
) -> None:
    base = os.path.relpath(KUSTOMIZE, tmp_path.resolve())
    text, changes = re.subn(
        "^# (- |components:)",
        r"\1",
        (KUSTOMIZE / "example/kustomization.yaml").read_text(),
        flags=re.MULTILINE,
    )
    assert changes == 4
    (tmp_path / "kustomization.yaml").write_text(text.replace("- ../", f"- {base}/"))
    settings = (KUSTOMIZE / "example/config.conf").read_text()
    (opened,) = re.findall(r"^# For Prometheus: (.*)\nmetricsBindAddress: .*$", settings, re.MULTILINE)
    settings = re.sub(
        "^metricsBindAddress: .*$", f"metricsBindAddress: {opened}", settings, flags=re.MULTILINE
    )
    (tmp_path / "config.conf").write_text(settings)
    found = objects.parse(call("kubectl", "kustomize", tmp_path))
    config = options_of(objects.config(found))
    assert (config.cluster_cidr, config.metrics_bind_address) == ("10.244.0.0/16", "0.0.0.0:10249")
    monitor = objects.only(found.values(), "PodMonitor")
    daemon_set = objects.only(found.values(), "DaemonSet")
    labels = daemon_set["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["spec"]["jobLabel"] in labels
    assert monitor["metadata"]["namespace"] == daemon_set["metadata"]["namespace"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (container,) = objects.pod(found)["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    assert objects.only(found.values(), "PrometheusRule")["metadata"]["namespace"] == "kube-system"
    assert list(objects.complaints(daemon_set)) == []
    assert "--status-page=always" in container["command"]
    has_journal(objects.pod(found), "/var/lib/kubeproxy-journal", "64Mi")


def has_journal(pod: Object, folder: str, size: str) -> None:
    """The proxy writes a journal in a folder of the node, and nothing of the configuration is hidden by it."""
    (container,) = pod["containers"]
    flags = [arg.replace("$(NODE_NAME)", "node") for arg in container["command"][1:]]
    values = parse_flags(flags, "linux")
    options = load({name: value for name, value in values.items() if name != "config"}, "linux")
    assert (options.journal, options.journal_bytes) == (folder, int(size.removesuffix("Mi")) << 20)
    (mount,) = (each for each in container["volumeMounts"] if each["mountPath"] == folder)
    (volume,) = (each for each in pod["volumes"] if each["name"] == mount["name"])
    assert volume["hostPath"] == {"path": folder, "type": "DirectoryOrCreate"}
    assert not mount.get("readOnly")
    assert not any(
        folder.startswith(f"{each['mountPath']}/") for each in container["volumeMounts"] if each is not mount
    )


@pytest.mark.parametrize("overlay", ["fresh", "least-privilege"])
def test_the_journal_fits_each_overlay(tmp_path: Path, overlay: str) -> None:
    base = os.path.relpath(KUSTOMIZE, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{base}/overlays/{overlay}]\ncomponents: [{base}/components/journal]\n"
    )
    found = objects.parse(call("kubectl", "kustomize", tmp_path))
    assert [wrong for each in found.values() for wrong in objects.complaints(each)] == []
    has_journal(objects.pod(found), "/var/lib/kubeproxy-journal", "64Mi")


# kubeadm


def merged(folder: str = "overlays/kubeadm") -> dict[str, Object]:
    """What kubectl makes of kubeadm's DaemonSet."""
    patch = objects.kustomize(folder)
    command = (
        "patch",
        "--local",
        "-f",
        KUBEADM / "daemonset.yaml",
        "--patch-file",
        "/dev/stdin",
        "-o",
        "yaml",
    )
    return objects.parse(call("kubectl", *command, stdin=patch))


def test_of_kubeadms_daemon_set_only_the_image_changes() -> None:
    before = yaml.safe_load((KUBEADM / "daemonset.yaml").read_text())
    (after,) = merged().values()
    assert list(objects.complaints(after)) == []
    assert after["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    before["spec"]["template"]["spec"]["containers"][0]["image"] = IMAGE
    assert after == before


def test_the_patch_holds_nothing_but_the_daemon_set() -> None:
    (name,) = objects.parse(objects.kustomize("overlays/kubeadm"))
    assert name == "DaemonSet kube-proxy"


def test_kubeadms_arguments_and_configuration_are_taken() -> None:
    (container,) = objects.pod(merged())["containers"]
    flags = [argument.replace("$(NODE_NAME)", "node") for argument in container["command"][1:]]
    assert parse_flags(flags, "linux") == {
        "config": "/var/lib/kube-proxy/config.conf",
        "hostname-override": "node",
    }
    (config_map,) = objects.parse((KUBEADM / "configmap.yaml").read_text()).values()
    assert list(objects.complaints(config_map)) == []
    config = options_of(config_map["data"]["config.conf"])
    assert config.cluster_cidr == "10.20.0.0/16"
    assert config.client_connection.kubeconfig == "/var/lib/kube-proxy/kubeconfig.conf"


@pytest.mark.parametrize("component", ["journal", "status-page"])
def test_the_components_are_patches_of_kubeadms_daemon_set_too(component: str) -> None:
    (patch,) = (KUSTOMIZE / "components" / component).glob(f"{component}.yaml")
    command = ("patch", "--local", "-f", KUBEADM / "daemonset.yaml", "--type=json", "--patch-file", patch)
    found = objects.parse(call("kubectl", *command, "-o", "yaml"))
    assert [wrong for each in found.values() for wrong in objects.complaints(each)] == []
    if component == "journal":
        has_journal(objects.pod(found), "/var/lib/kubeproxy-journal", "64Mi")
    else:
        assert "--status-page=always" in objects.pod(found)["containers"][0]["command"]


# The checks themselves


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"privileged": True, "allowPrivilegeEscalation": False}, "cannot set `allowPrivilegeEscalation`"),
        ({"privilegd": True}, "privilegd"),
        ({"privileged": "yes"}, "privileged"),
    ],
)
def test_the_schema_finds_faults(change: dict[str, Any], words: str) -> None:
    each = yaml.safe_load((KUBEADM / "daemonset.yaml").read_text())
    each["spec"]["template"]["spec"]["containers"][0]["securityContext"] = change
    assert any(words in line for line in objects.complaints(each))


def windows(tmp_path: Path) -> dict[str, Object]:
    """The overlay for nodes of both systems."""
    up = os.path.relpath(KUSTOMIZE.parent, tmp_path)
    Path(tmp_path, "kustomization.yaml").write_text(
        f"resources: [{up}/kustomize/overlays/fresh]\ncomponents: [{up}/windows]\n"
    )
    return objects.parse(call("kubectl", "kustomize", tmp_path))


def test_windows_nodes_are_a_component(tmp_path: Path) -> None:
    found = windows(tmp_path)
    assert {name for name in found if name.startswith("DaemonSet")} == {
        "DaemonSet kubeproxy",
        "DaemonSet kubeproxy-windows",
    }
    assert [wrong for each in found.values() for wrong in objects.complaints(each)] == []
    pod = found["DaemonSet kubeproxy-windows"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "windows"}
    assert pod["securityContext"]["windowsOptions"]["hostProcess"] is True
    assert f"ServiceAccount {pod['serviceAccountName']}" in found
    (volume,) = pod["volumes"]
    files = found[f"ConfigMap {volume['configMap']['name']}"]["data"]
    assert set(files) == {"config.conf", "start.ps1"}
    (container,) = pod["containers"]
    assert "/etc/kube-proxy/start.ps1" in container["command"][-1]
    assert [each["mountPath"] for each in container["volumeMounts"]] == ["/etc/kube-proxy"]
    for each in container["envFrom"]:
        assert f"ConfigMap {each['configMapRef']['name']}" in found


def test_the_configuration_of_windows_nodes_is_understood() -> None:
    config, doubts = decode((KUSTOMIZE.parent / "windows/config.conf").read_bytes(), "config.conf")
    assert doubts == ()
    config = with_platform_defaults(with_defaults(config), "win32", {"KUBE_NETWORK": "cbr0"})
    assert validate(config, "win32") == []
    assert (config.mode, config.winkernel.network_name, config.winkernel.enable_dsr) == (
        "kernelspace",
        "cbr0",
        True,
    )
