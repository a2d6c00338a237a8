"""YAML as Kubernetes reads it: keys, numbers and the errors, for every file that is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import types
from kubeproxy.api.yamltext import YAMLTextError, documents, first
from kubeproxy.config import ConfigError
from kubeproxy.config.decode import decode
from kubeproxy.sources.documents import documents as manifests
from kubeproxy.sources.kubeconfig import KubeconfigError, load

KEYS = [
    "{{ .Values.x }}: 1",
    "? [a, b]\n: 1",
    "? {a: b}\n: 1",
    "null: 1",
    "~: 1",
    "? !!binary aGk=\n: 1",
    "{{a}: b}: c",
]


def of_config(text, tmp_path):
    decode(text.encode(), str(tmp_path / "file"))


def of_kubeconfig(text, tmp_path):
    (tmp_path / "file").write_text(text)
    load(str(tmp_path / "file"))


def of_manifest(text, tmp_path):
    (tmp_path / "file").write_text(text)
    list(manifests(tmp_path / "file"))


@pytest.mark.parametrize("text", KEYS)
@pytest.mark.parametrize(
    ("read", "error"), [(of_config, ConfigError), (of_kubeconfig, KubeconfigError), (of_manifest, ValueError)]
)
def test_a_key_that_is_no_text_is_one_line_with_its_place_in_every_file(text, read, error, tmp_path):
    with pytest.raises(error, match=r"line \d+, column \d+: a key must be text, not ") as caught:
        read(text, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: &x [*x]", "a: &x {b: *x}", "a: !!int x", "a: !!set {[b]}", "a: {<<: 1}"]
)
@pytest.mark.parametrize(("read", "error"), [(of_config, ConfigError), (of_kubeconfig, KubeconfigError)])
def test_what_else_cannot_be_used_is_one_line(text, read, error, tmp_path):
    with pytest.raises(error) as caught:
        read(f"kind: Config\n{text}", tmp_path)
    assert "\n" not in str(caught.value)


def test_keys_become_text_as_in_kubernetes():
    assert first("{1: a, 1.5: b, true: c, on: d, 2024-01-01: e, =: f, x: g}") == {
        "1": "a", "1.5": "b", "true": "d", "2024-01-01": "e", "=": "f", "x": "g",
    }  # fmt: skip
    assert first("a: &b {1: x}\nc: {<<: *b, 2: y}")["c"] == {"1": "x", "2": "y"}


def test_a_label_with_a_number_for_a_key_harms_no_object():
    text = "{apiVersion: v1, kind: Service, metadata: {name: a, labels: {1: x, true: y}}, spec: {ports: [{port: 8e1, nodePort: 30080.0}]}}"
    service = types.convert("Service", first(text))
    assert isinstance(service, types.Service)
    assert service.spec.ports
    assert (service.metadata.name, service.spec.ports[0].port, service.spec.ports[0].node_port) == (
        "a",
        80,
        30080,
    )
    json = b'{"kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":8e1}]}}'
    service = types.decode("Service", json)
    assert isinstance(service, types.Service)
    assert service.spec.ports
    assert service.spec.ports[0].port == 80


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e5", 100000.0), ("1.", 1.0), (".5", 0.5), ("-1.5e-3", -0.0015), ("123", 123), ("0x10", 16), ("017", 15), ("1_000", 1000),
     ("12:30", "12:30"), ("12:30.5", "12:30.5"), ("2024-01-01", "2024-01-01"), ("e5", "e5"), ("1e", "1e"), (".", "."), ("1.2.3", "1.2.3"),
     ("fd00::1", "fd00::1"), ("1:2", "1:2")],
)  # fmt: skip
def test_plain_text_is_taken_for_a_number_as_in_go(text, value):
    assert first(text) == value
    assert type(first(text)) is type(value)


def test_only_documents_may_follow_the_first():
    assert first("a: 1\n---\nb: [") == {"a": 1}
    assert first("") is None
    with pytest.raises(YAMLTextError, match="line 1, column 8"):
        first("{a: 1} x")


@given(st.text(st.sampled_from("{}[]:,-?&*!|>'\"% \nab1~<="), max_size=30))
def test_whatever_is_read_is_a_value_or_one_line(text):
    for read in (lambda: [first(text)], lambda: list(documents(text))):
        found, error = [], ""
        try:
            found = read()
        except YAMLTextError as e:
            error = str(e)
        assert "\n" not in error
        assert all(isinstance(key, str) for value in found if isinstance(value, dict) for key in value)
