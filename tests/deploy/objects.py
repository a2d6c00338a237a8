"""Objects of deploy/ as the tools make them, and what Kubernetes' own schemas say of them."""

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fastjsonschema
import yaml

from tests.tools import SCHEMAS, call, path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
CUSTOM = {"PodMonitor", "PrometheusRule"}
"""Kinds of the Prometheus Operator, of which Kubernetes has no schema."""

_PACKAGES = {
    "v1": "io.k8s.api.core.v1",
    "apps/v1": "io.k8s.api.apps.v1",
    "rbac.authorization.k8s.io/v1": "io.k8s.api.rbac.v1",
}

Object = dict[str, Any]


@functools.cache
def kustomize(folder: str) -> str:
    """What `kubectl kustomize` makes of a folder of deploy/kustomize, as text."""
    return call("kubectl", "kustomize", KUSTOMIZE / folder)


def parse(text: str) -> dict[str, Object]:
    """Rendered objects by kind and name: {"DaemonSet kubeproxy": ...}."""
    objects = [document for document in yaml.safe_load_all(text) if document]
    found = {f"{each['kind']} {each['metadata']['name']}": each for each in objects}
    assert len(found) == len(objects)
    return found


def only(objects: Iterable[Object], kind: str) -> Object:
    """The one object of a kind."""
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def pod(objects: dict[str, Object]) -> Object:
    """The specification of the DaemonSet's Pods."""
    spec: Object = only(objects.values(), "DaemonSet")["spec"]["template"]["spec"]
    return spec


def config(objects: dict[str, Object]) -> str:
    """The configuration file that the Pods get."""
    (volume,) = (each for each in pod(objects)["volumes"] if each["name"] == "config")
    text: str = objects[f"ConfigMap {volume['configMap']['name']}"]["data"]["config.conf"]
    return text


def environment(objects: dict[str, Object]) -> dict[str, str]:
    """What the proxy's container gets as environment, but for what comes from the Pod itself."""
    (container,) = pod(objects)["containers"]
    maps = [each["configMapRef"]["name"] for each in container.get("envFrom", ())]
    found = {name: value for each in maps for name, value in objects[f"ConfigMap {each}"]["data"].items()}
    return found | {each["name"]: each["value"] for each in container["env"] if "value" in each}


def complaints(each: Object) -> Iterator[str]:
    """What is wrong with an object by the schema of each release; unknown fields are wrong, too."""
    for release in SCHEMAS:
        try:
            _validator(release, f"{_PACKAGES[each['apiVersion']]}.{each['kind']}")(each)
        except fastjsonschema.JsonSchemaException as e:
            yield f"{release}: {each['kind']} {each['metadata']['name']}: {e}"
    for pod_spec in _pod_specs(each):
        for kind in ("initContainers", "containers"):
            for container in pod_spec.get(kind, ()):
                yield from _contradictions(container)


def _contradictions(container: Object) -> Iterator[str]:
    """What a schema cannot say, but an API server refuses."""
    context = container.get("securityContext", {})
    if context.get("privileged") and context.get("allowPrivilegeEscalation") is False:
        yield f"{container['name']}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
    ports = {port["name"] for port in container.get("ports", ())}
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port")
        if isinstance(port, str) and port not in ports:
            yield f"{container['name']}: {probe}: no port is named {port}"


def _pod_specs(each: Object) -> Iterator[Object]:
    if each["kind"] == "DaemonSet":
        spec = each["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
        yield spec


@functools.cache
def _validator(release: str, name: str) -> Any:
    definitions = json.loads(path("schemas", release, "definitions.json").read_text())["$defs"]
    return fastjsonschema.compile({"$ref": f"#/$defs/{name}", "$defs": definitions})
