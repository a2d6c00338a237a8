"""What nobody understands in manifests is said once, with the file, the object, the field and the one that was meant."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeproxy.sources import doubts
from tests.unit.sources.manifest_files import follow, replace

dumps = pytest.mark.parametrize("dump", [json.dumps, yaml.dump])


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    """A Service; what is not known is of its spec."""
    ports = [{"port": 80, "targetport": 8080}]
    metadata = {"name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports, **spec}}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """The warnings since it was last called."""
    caplog.set_level(logging.WARNING)

    def take() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    return take


def objects(source: Any) -> float:
    """The metric."""
    (value,) = (
        f.value for f in source.figures() if f.name == "kubeproxy_manifest_objects_with_unknown_fields"
    )
    return float(value)


@dumps
async def test_an_unknown_field_is_said_once_and_counted(tmp_path: Path, said: Any, dump: Any) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(dump(service()))
    line = (
        f'{file}: Service shop/web: unknown field "spec.ports[0].targetport" is ignored;'
        ' did you mean "spec.ports[0].targetPort"?'
    )
    async with follow(tmp_path) as ear:
        assert said() == [line]
        assert ear.port("web") == 80, "the rest counts"
        assert objects(ear.source) == 1
        replace(file, dump(service(clusterIP="10.96.0.1")))
        await ear.has_seen_all(tmp_path)
        assert said() == []
        replace(file, dump(service(clusterIp="10.96.0.1")))
        await ear.has_seen_all(tmp_path)
        (other,) = said()
        assert 'unknown field "spec.clusterIp" is ignored; did you mean "spec.clusterIP"?' in other
        replace(file, dump(service(ports=[{"port": 81}])))
        await ear.has_seen_all(tmp_path)
        assert (said(), objects(ear.source)) == ([], 0)
        replace(file, dump(service()))
        await ear.has_seen_all(tmp_path)
        assert said() == [line], "it was well meanwhile"
        file.unlink()
        await ear.has_seen_all(tmp_path)
        assert objects(ear.source) == 0


@dumps
async def test_the_objects_of_a_list_are_named_each(tmp_path: Path, said: Any, dump: Any) -> None:
    items = [service("a"), service("b", ports=[]), {"kind": "Pod", "speck": 1}, service("c")]
    (tmp_path / "a.yaml").write_text(dump({"kind": "List", "items": items}))
    async with follow(tmp_path):
        assert [line.split(": ")[1] for line in said()] == ["Service shop/a", "Service shop/c"]


async def test_a_file_and_an_object_are_not_said_without_end(tmp_path: Path, said: Any) -> None:
    many = {f"x{i}": 1 for i in range(100)}
    items = [service("wide", **many), *(service(f"s{i}") for i in range(100))]
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"kind": "List", "items": items}))
    async with follow(tmp_path) as ear:
        lines = said()
        assert len([line for line in lines if "shop/wide" in line]) == doubts.MOST_FIELDS + 1
        assert len(lines) == doubts.MOST_FIELDS + 1 + doubts.MOST_OBJECTS - 1 + 1
        assert lines[-1] == f"{file}: 81 more objects have fields that are ignored"
        assert objects(ear.source) == 101


@dumps
async def test_a_slice_without_its_label(tmp_path: Path, said: Any, dump: Any) -> None:
    tree = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"}}
    file = tmp_path / "a.yaml"
    file.write_text(dump(tree))
    words = "it has no label kubernetes.io/service-name, so it belongs to no Service and is ignored"
    async with follow(tmp_path):
        assert said() == [f"{file}: EndpointSlice default/web-1: {words}"]


async def test_keys_given_twice(tmp_path: Path, said: Any) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "kind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  ports: [{port: 80}]\n  ports: [{port: 81}]\n"
    )
    async with follow(tmp_path) as ear:
        assert said() == [f"{file}: the last counts of keys that are given twice: spec.ports in line 5"]
        assert ear.port("web") == 81


async def test_merged_keys_are_not_given_twice(tmp_path: Path, said: Any) -> None:
    text = (
        "kind: Service\nmetadata: {name: web}\nspec:\n  ports: [&p {port: 80}, {<<: *p, port: 81, name: b}]\n"
    )
    (tmp_path / "a.yaml").write_text(text)
    async with follow(tmp_path):
        assert said() == []


async def test_what_is_nested_without_end_harms_nobody(tmp_path: Path, said: Any) -> None:
    deep = "[" * 900 + "]" * 900
    status = f'{{"conditions": {deep}, "x": 1}}'
    text = f'{{"kind": "Service", "metadata": {{"name": "a", "namespace": "shop"}}, "status": {status}}}'
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.yaml").write_text(yaml.dump(service("b")))
    async with follow(tmp_path) as ear:
        await ear.names_are("a", "b")
        assert [line.split(": ")[1] for line in said()] == ["Service shop/a", "Service shop/b"]


@dumps
@pytest.mark.parametrize(
    ("kind", "version", "words"),
    [
        ("EndpointSlice", "v1", "EndpointSlice of apiVersion v1, which must be discovery.k8s.io/v1"),
        (
            "EndpointSlice",
            "discovery.k8s.io/v1beta1",
            "EndpointSlice of apiVersion discovery.k8s.io/v1beta1, which must be discovery.k8s.io/v1",
        ),
        ("service", "v1", "kind service, did you mean Service?"),
        ("EndpointSlices", "discovery.k8s.io/v1", "kind EndpointSlices, did you mean EndpointSlice?"),
        ("Servcie", "", "kind Servcie, did you mean Service?"),
    ],
)
async def test_a_kind_that_is_nearly_one_of_ours(
    tmp_path: Path, said: Any, dump: Any, kind: str, version: str, words: str
) -> None:
    file = tmp_path / "a.yaml"
    tree = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}}
    file.write_text(dump({"kind": "List", "items": [tree, tree]}))
    async with follow(tmp_path):
        assert said() == [f"{file}: ignored: {words}"]


@dumps
@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("Service", "serving.knative.dev/v1"),
        ("Node", "example.com/v1"),
        ("Pod", "v1"),
        ("ServiceAccount", "v1"),
        ("ConfigMap", "v1"),
        ("Namespace", "v1"),
        ("Secret", "v1"),
        ("Event", "v1"),
        ("Ingress", "networking.k8s.io/v1"),
        ("IngressClass", "networking.k8s.io/v1"),
        ("NetworkPolicy", "networking.k8s.io/v1"),
        ("IPAddress", "networking.k8s.io/v1"),
        ("ServiceMonitor", "monitoring.coreos.com/v1"),
        ("Services", "example.com/v1"),
        ("x" * 10_000, "v1"),
    ],
)
async def test_other_kinds_are_passed_over_silently(
    tmp_path: Path, said: Any, dump: Any, kind: str, version: str
) -> None:
    (tmp_path / "a.yaml").write_text(dump({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}}))
    async with follow(tmp_path):
        assert said() == []
