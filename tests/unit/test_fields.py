"""Fields that nobody knows, and those that were probably meant."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.fields import Schema, Unknown, unknown

SCHEMA: Schema = {"spec": {"ports": {"port": None, "targetPort": None}, "selector": None}, "kind": None}


def found(tree: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(field.path, field.meant) for field in unknown(tree, SCHEMA)]


def test_what_is_known_is_not_named() -> None:
    assert (
        found({"kind": 1, "spec": {"ports": [{"port": 1, "targetPort": {"any": 1}}], "selector": {"a": 1}}})
        == []
    )


def test_a_misspelt_name_means_the_nearest_of_its_object() -> None:
    tree = {"Kind": 1, "spec": {"ports": [{"port": 1}, {"targetport": 1, "prt": 2}]}}
    assert found(tree) == [
        ("Kind", ("kind",)),
        ("spec.ports[1].targetport", ("spec.ports[1].targetPort",)),
        ("spec.ports[1].prt", ("spec.ports[1].port",)),
    ]


def test_a_field_in_the_wrong_place_means_where_it_is_known() -> None:
    assert found({"targetPort": 1, "spec": {"kind": 1, "xyz": 1}}) == [
        ("targetPort", ("spec.ports.targetPort",)),
        ("spec.kind", ("kind",)),
        ("spec.xyz", ()),
    ]


def test_the_hint_ends_a_message() -> None:
    assert Unknown("a").hint == ""
    assert Unknown("a", ("b.c", "d")).hint == '; did you mean "b.c" or "d"?'


def test_names_of_any_kind_and_length() -> None:
    assert found({5: 1, None: 1, "x" * 10_000: 1}) == [("5", ()), ("None", ()), ("x" * 80, ())]


def test_aliases_are_not_unfolded() -> None:
    tree: dict[str, Any] = {}
    tree["spec"] = tree
    assert [path for path, _ in found(tree)] == ["spec.spec"]
    one = {"bad": 1}
    assert [path for path, _ in found({"spec": {"ports": [one] * 1000}})] == ["spec.ports[0].bad"]


def test_no_depth_is_too_deep() -> None:
    deep: Any = {"bad": 1}
    for _ in range(100_000):
        deep = [deep]
    assert found({"spec": {"ports": deep}, "kind": deep}) == []


trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "spec", "ports", "port", "Port", "x"]), inner, max_size=3)
    ),
)


@given(trees)
def test_nothing_else_is_named(tree: Any) -> None:
    def count(value: Any, schema: Schema | None) -> int:
        if schema is None:
            return 0
        if isinstance(value, list):
            return sum(count(item, schema) for item in value if isinstance(item, dict))
        if not isinstance(value, dict):
            return 0
        return sum(count(inner, schema[key]) if key in schema else 1 for key, inner in value.items())

    assert len(found(tree)) == count(tree, SCHEMA)
