"""The objects in a manifest, in whatever form it is written; and files that are none."""

import json

import pytest
import yaml

from kubeproxy.api import types
from kubeproxy.api.limits import DEEPEST
from kubeproxy.sources.documents import documents

SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}}
SLICE = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-x"}}


def read(tmp_path, text, suffix=".yaml"):
    """The objects of a file, as (kind, name)."""
    file = tmp_path / f"manifest{suffix}"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(kind, decode().metadata.name) for kind, decode in documents(file)]


def one(tmp_path, text, suffix=".yaml"):
    """The only object of a file."""
    file = tmp_path / f"manifest{suffix}"
    file.write_text(text)
    (found,) = documents(file)
    return found[1]()


BOTH = [("Service", "web"), ("EndpointSlice", "web-x")]


class TestForms:
    @pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
    def test_one_json_object(self, tmp_path, suffix):
        assert read(tmp_path, json.dumps(SERVICE), suffix) == [("Service", "web")]
        assert read(tmp_path, "\n\t " + json.dumps(SERVICE, indent=2) + "\n", suffix) == [("Service", "web")]

    def test_yaml_documents(self, tmp_path):
        text = f"---\n# nothing\n---\n{yaml.dump(SERVICE)}---\n{yaml.dump(SLICE)}...\n---\n\n---\nnull\n"
        assert read(tmp_path, text) == BOTH

    def test_flow_style_that_is_no_json(self, tmp_path):
        assert read(tmp_path, "{kind: Service, metadata: {name: web}}") == [("Service", "web")]
        text = "\n---\n".join(json.dumps(obj) for obj in (SERVICE, SLICE))
        assert read(tmp_path, text) == BOTH

    @pytest.mark.parametrize("dump", [json.dumps, yaml.dump])
    @pytest.mark.parametrize(
        "tree",
        [
            {"apiVersion": "v1", "kind": "List", "items": [SERVICE, SLICE]},
            {"kind": "List", "items": [{"kind": "List", "items": [SERVICE]}, SLICE]},
            {"kind": "List", "items": [{"kind": "Pod", "apiVersion": "v1"}, SERVICE, {"kind": "X"}, SLICE]},
        ],
    )
    def test_lists(self, tmp_path, dump, tree):
        assert read(tmp_path, dump(tree)) == BOTH

    @pytest.mark.parametrize("dump", [json.dumps, yaml.dump])
    @pytest.mark.parametrize("kind", types.KINDS)
    def test_typed_lists_whose_items_say_no_kind(self, tmp_path, dump, kind):
        """As the API server sends them."""
        version = {"EndpointSlice": "discovery.k8s.io/v1", "ServiceCIDR": "networking.k8s.io/v1"}.get(
            kind, "v1"
        )
        tree = {
            "apiVersion": version,
            "kind": f"{kind}List",
            "metadata": {},
            "items": [{"metadata": {"name": "a"}}],
        }
        assert read(tmp_path, dump(tree)) == [(kind, "a")]

    @pytest.mark.parametrize("dump", [json.dumps, yaml.dump])
    def test_the_version_of_a_list_of_anything_is_its_own(self, tmp_path, dump):
        items = [{"kind": "EndpointSlice", "metadata": {"name": "a"}}]
        assert read(tmp_path, dump({"apiVersion": "v1", "kind": "List", "items": items})) == [
            ("EndpointSlice", "a")
        ]

    @pytest.mark.parametrize("dump", [json.dumps, yaml.dump])
    @pytest.mark.parametrize("items", [[], None])
    def test_empty_lists(self, tmp_path, dump, items):
        assert read(tmp_path, dump({"kind": "ServiceList", "items": items})) == []

    @pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n---\n", "null", "\ufeff"])
    def test_empty_files(self, tmp_path, text):
        assert read(tmp_path, text) == []


class TestKinds:
    @pytest.mark.parametrize("dump", [json.dumps, yaml.dump])
    @pytest.mark.parametrize(
        ("version", "kind", "ours"),
        [
            ("v1", "Service", True),
            ("", "Service", True),
            (None, "Service", True),
            ("v1", "Endpoints", True),
            ("v1", "Node", True),
            ("discovery.k8s.io/v1", "EndpointSlice", True),
            ("networking.k8s.io/v1", "ServiceCIDR", True),
            ("networking.k8s.io/v1beta1", "ServiceCIDR", True),
            ("serving.knative.dev/v1", "Service", False),
            ("v1beta1", "Service", False),
            ("discovery.k8s.io/v1beta1", "EndpointSlice", False),
            ("v1", "EndpointSlice", False),
            ("example.com/v1", "Node", False),
            ("v1", "Pod", False),
            ("apps/v1", "Deployment", False),
            ("v1", "service", False),
            ("v1", "List", False),
            ("v1", "Object", False),
        ],
    )
    def test_ours(self, tmp_path, dump, version, kind, ours):
        tree = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}}
        if version is None:
            del tree["apiVersion"]
        assert read(tmp_path, dump(tree)) == ([(kind, "a")] if ours else [])

    @pytest.mark.parametrize("dump", [json.dumps, yaml.dump])
    def test_typed_lists_of_other_groups(self, tmp_path, dump):
        tree = {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "ServiceList",
            "items": [{"metadata": {"name": "a"}}, SERVICE],
        }
        assert read(tmp_path, dump(tree)) == [("Service", "web")]


class TestYAML:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("10.96.0.10", "10.96.0.10"),
            ("fd00::10", "fd00::10"),
            ("2001:0:0:0:0:0:0:1", "2001:0:0:0:0:0:0:1"),
            ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
            ("12:30", "12:30"),
            ("2026-01-02", "2026-01-02"),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("''", ""),
            ("", ""),
            ("null", ""),
        ],
    )
    def test_text(self, tmp_path, text, value):
        obj = one(tmp_path, f"kind: Service\nmetadata: {{name: web}}\nspec:\n  clusterIP: {text}\n")
        assert obj.spec.cluster_ip == value

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("80", 80),
            ("0", 0),
            ("+80", 80),
            ("-1", -1),
            ("0x50", 80),
            ("0120", 80),
            ("8_080", 8080),
            ("080", 80),
        ],
    )
    def test_numbers(self, tmp_path, text, value):
        obj = one(tmp_path, f"kind: Service\nmetadata: {{name: web}}\nspec:\n  ports: [{{port: {text}}}]\n")
        assert obj.spec.ports[0].port == value

    @pytest.mark.parametrize("text", ["http", "80.5", "yes", "'80'", "1:20", "2026-01-02"])
    def test_what_is_no_number(self, tmp_path, text):
        with pytest.raises(
            types.UndecodableError, match=r"^Service web: spec\.ports\[0\]\.port: Expected `int`"
        ):
            one(tmp_path, f"kind: Service\nmetadata: {{name: web}}\nspec:\n  ports: [{{port: {text}}}]\n")

    def test_anchors(self, tmp_path):
        text = "kind: Service\nmetadata: &m {name: web}\nspec:\n  ports: [&p {port: 80}, {<<: *p, name: b}]\nx: *m\n"
        assert [port.name for port in one(tmp_path, text).spec.ports] == ["", "b"]


class TestUndecodable:
    @pytest.mark.parametrize("dump", [json.dumps, yaml.dump])
    def test_one_harms_no_other(self, tmp_path, dump):
        bad, worse = {**SERVICE, "spec": {"ports": "all"}}, {**SERVICE, "spec": []}
        file = tmp_path / "manifest.yaml"
        file.write_text(dump({"kind": "List", "items": [bad, SERVICE, worse, SLICE]}))
        told: list[object] = []
        for kind, decode in documents(file):
            try:
                told.append(decode().metadata.name)
            except types.UndecodableError as e:
                told.append((kind, str(e).split(":")[0]))
        assert told == [("Service", "Service shop/web"), "web", ("Service", "Service shop/web"), "web-x"]


BROKEN = [
    "{", "}", "a: b: c", "a: [", "\t", "- a", "just words", "5", "{}", "a: 1", "kind:", "kind: 5", "kind: [Service]",
    "kind: Service\napiVersion: 1", "kind: List\nitems: [{}]", "kind: List\nitems: [5]", "kind: ServiceList\nitems: [null]",
    "a: *b", "!!python/object:os.system x", "a: !!int x", "a: !!int ''", "a: !!float x", "a: !!bool x", "a: !!timestamp x",
    "{[a]: b}", "a: \0", b"\xff\xfe\xfd", b"kind: \xff", "a: " + "9" * 5000, "a: 0x_", "a: 0b_",
    "[" * (DEEPEST + 1), "[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000,
]  # fmt: skip
BROKEN_JSON = [
    "{", "{}", '{"kind": 5}', '{"kind": null}', '{"kind": "Service"', '{"kind": "Service"} {"kind": "Service"}',
    '{"kind": "List", "items": [{}]}', '{"kind": "List", "items": [5]}', '{"kind": "List", "items": 5}', b'{"kind": "\xff"}',
    '{"kind": "Service", "a": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"kind": "\\ud800"}',
]  # fmt: skip


class TestBroken:
    @pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
    def test_yaml(self, tmp_path, text):
        with pytest.raises(ValueError, match=r".") as caught:
            read(tmp_path, text)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", BROKEN_JSON, ids=range(len(BROKEN_JSON)))
    def test_json(self, tmp_path, text):
        with pytest.raises(ValueError, match=r"."):
            read(tmp_path, text, ".json")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            list(documents(tmp_path / "none.yaml"))

    def test_what_is_no_file(self, tmp_path):
        with pytest.raises(IsADirectoryError):
            list(documents(tmp_path))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("kind: Service\nmetadata: {name: a}\n---\n- x", "document 2 is no Kubernetes object but list"),
            ("kind: List\nitems: [{kind: List, items: [{}]}]", "document 1: items[0]: items[0] has no kind"),
            ("[" * 1000, f"line 1, column {DEEPEST + 1}: nested more than {DEEPEST} levels deep"),
        ],
    )
    def test_the_message_names_the_place(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=r".") as caught:
            read(tmp_path, text)
        assert str(caught.value) == message

    def test_the_deepest_that_may_be(self, tmp_path):
        depth = DEEPEST - 1  # the object is a level, too
        text = f"kind: Service\nmetadata: {{name: web}}\nx: {'[' * depth}{']' * depth}"
        assert read(tmp_path, text) == [("Service", "web")]
