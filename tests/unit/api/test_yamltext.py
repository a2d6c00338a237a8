"""YAML as Kubernetes reads it: keys, numbers, what is given twice, aliases and the errors."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import limits, types
from kubeproxy.api.limits import DEEPEST, TextError
from kubeproxy.api.yamltext import documents, first


def read(text):
    return first(text.encode())


def test_keys_become_text_as_in_kubernetes():
    assert read("{1: a, 1.50: b, true: c, on: d, 2024-01-01: e, =: f, x: g, 0x10: h, 1_000: i}") == {
        "1": "a", "1.5": "b", "true": "d", "2024-01-01": "e", "=": "f", "x": "g", "16": "h", "1000": "i",
    }  # fmt: skip
    assert read("a: &b {1: x}\nc: {<<: *b, 2: z}")["c"] == {"1": "x", "2": "z"}


@pytest.mark.parametrize(
    ("number", "key"),
    [("1e5", "100000"), ("1e6", "1e+06"), ("123456789.0", "1.2345679e+08"), ("0.0001", "0.0001"), ("0.00001", "1e-05"), ("-0.0", "-0"),
     ("16777217.0", "1.6777216e+07"), ("0.1", "0.1"), ("3.14159274", "3.1415927"), ("1e300", ".inf"), ("-1e300", "-.inf"), ("-2.50", "-2.5")],
)  # fmt: skip
def test_numbers_as_keys_have_single_precision(number, key):
    assert read(f"{number}: x") == {key: "x"}


def test_a_label_with_a_number_for_a_key_harms_no_object():
    text = "{apiVersion: v1, kind: Service, metadata: {name: a, labels: {1: x, true: z}}, spec: {ports: [{port: 8e1, nodePort: 30080.0}]}}"
    service = types.convert("Service", read(text))
    assert isinstance(service, types.Service)
    assert service.spec.ports
    found = service.metadata.name, service.spec.ports[0].port, service.spec.ports[0].node_port
    assert found == ("a", 80, 30080)
    service = types.decode(
        "Service", b'{"kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":8e1}]}}'
    )
    assert isinstance(service, types.Service)
    assert service.spec.ports
    assert service.spec.ports[0].port == 80


TEXT = [
    "12:30",
    "12:30.5",
    "2024-01-01",
    "2024-01-01T00:00:00Z",
    "1:20",
    "e5",
    "1e",
    ".",
    "..",
    "1.2.3",
    "fd00::1",
    "10.0.0.1",
    "0x_",
    "09a",
    "0b2",
    "0o8",
    "+",
    "--",
    "_1",
    "1e999",
    ".5e999",
    ".5_0",
    "tRue",
    "oN",
    "yEs",
    "nil",
    "none",
    "NONE",
    "<<x",
    "=",
]
VALUES = [
    ("1e5", 100000.0), ("1.", 1.0), (".5", 0.5), ("-.5", -0.5), ("-1.5e-3", -0.0015), ("123", 123), ("+5", 5), ("0x10", 16),
    ("-0X1f", -31), ("017", 15), ("0o17", 15), ("0O17", 15), ("0b101", 5), ("08", 8.0), ("0", 0), ("-0", 0), ("1_000", 1000), ("1__0_", 10),
    ("9223372036854775808", 2**63), ("18446744073709551616", 2.0**64), ("0x10000000000000000", 2**64), ("1_0.5", 10.5),
    ("y", True), ("Y", True), ("yes", True), ("ON", True), ("n", False), ("No", False), ("off", False), ("~", None), ("", None), ("Null", None),
    ("!!str 1", "1"), ("!!str", ""), ("!!int '7'", 7), ("!!float 7", 7.0), ("!!bool on", True), ("!!null ~", None), ("!mine 7", "7"),
    ("!!binary aGk=", "hi"), ("!!binary /w==", "\ufffd"), ("!!timestamp 2024-01-01", "2024-01-01"), ("'1'", "1"), ('"on"', "on"), ("|\n  1", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [*VALUES, *((text, text) for text in TEXT)])
def test_scalars_mean_what_they_mean_to_go(text, value):
    (found,) = read(f"- {text}")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!int x", "line 1, column 4: a: 'x' is not a !!int"),
        ("a: !!int 1.5", "line 1, column 4: a: '1.5' is not a !!int"),
        ("a: !!timestamp x", "line 1, column 4: a: 'x' is not a !!timestamp"),
        ("a: !!binary '*'", "line 1, column 4: a: !!binary value is not base64"),
        ("a: [1, {b: .nan}]", "line 1, column 12: a[1].b: .nan is not a number that JSON can express"),
        ("a: -.INF", "line 1, column 4: a: -.INF is not a number that JSON can express"),
        ("a: " + "9" * 5000, "line 1, column 4: a: a number of 5000 digits is too large"),
        ("a:\n  18446744073709551615: x", "line 2, column 3: a: a key must be text, not so large a number"),
        ("a:\n- b: *c", "line 2, column 6: a[0].b: unknown anchor 'c'"),
        ("a: &a [*a]", "line 1, column 8: a[0]: anchor 'a' contains itself"),
        ("&a {b: [{<<: *a}]}", "line 1, column 14: b[0]: anchor 'a' contains itself"),
        ("a: {<<: 1}", "line 1, column 9: a: << must have a mapping or a list of mappings"),
        ("a: {<<: [{b: 1}, 2]}", "line 1, column 19: a: << must have a mapping or a list of mappings"),
        ("a:\n\tb: 1", "line 2, column 1: a: while scanning for the next token: found character that cannot start any token"),
    ],
)  # fmt: skip
def test_an_error_has_line_column_and_field(text, words):
    with pytest.raises(TextError) as caught:
        read(text)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{b: &b {x: 1}, a: {<<: *b, x: 2}}", {"x": 2}),
        ("{b: &b {x: 1}, a: {x: 2, <<: *b}}", {"x": 1}),
        ("{b: &b {x: 1, z: 3}, a: {<<: [{x: 5}, *b], w: 2}}", {"x": 5, "z": 3, "w": 2}),
        ('{a: {"<<": 1}}', {"<<": 1}),
        ("{a: {w: <<}}", {"w": "<<"}),
    ],
)
def test_merged_mappings_count_where_they_stand(text, value):
    """As to Go's library; by YAML's own rule the keys of the mapping itself would always win."""
    assert read(text)["a"] == value


def test_keys_given_twice_are_reported_with_path_and_line():
    found = []
    text = "a: 1\nb:\n- {c: 1}\n- c: 1\n  'c': 2\n  <<: {c: 3, d: 4}\n  d: 5\n  d: 6\na: 2\n"
    assert first(text.encode(), lambda *key: found.append(key)) == {
        "a": 2,
        "b": [{"c": 1}, {"c": 3, "d": 6}],
    }
    assert found == [("b[1].c", 5), ("b[1].d", 8), ("a", 9)]


def test_an_anchor_may_be_given_again():
    assert read("[&a 1, *a, &a 2, *a]") == [1, 1, 2, 2]


def test_only_documents_may_follow_the_first():
    assert read("a: 1\n---\nb: [") == {"a": 1}
    assert read("") is None
    with pytest.raises(TextError, match="line 1, column 8"):
        read("{a: 1} x")
    found = documents(b"a: 1\n---\nb: [")
    assert next(found) == {"a": 1}
    with pytest.raises(TextError, match=r"line \d, column 1: b\[0\]: "):
        next(found)


@pytest.mark.parametrize("text", ["a: é", "a: é\r\nb: '\U0001f600'\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_may_be_utf_8_or_utf_16(text, encoding):
    assert first(text.encode(encoding))["a"] == "é"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a: b\nc: \xff", "line 2, column 4: not UTF-8: invalid start byte"),
        (b"\xff\xfea", "not UTF-16: truncated data at byte 2"),
        (b"a: b\n\0", "line 2, column 1: control characters are not allowed"),
        ("a: b".encode("utf-16-le"), "line 1, column 2: control characters are not allowed"),
    ],
)
def test_what_is_no_text(data, words):
    with pytest.raises(TextError) as caught:
        first(data)
    assert str(caught.value) == words


class TestAliases:
    def test_they_may_repeat_some(self):
        text = f"x: &x [{','.join('a' * 99)}]\ny: [{','.join(['*x'] * 1000)}]"
        assert len(read(text)["true"]) == 1000
        with pytest.raises(TextError, match=f"aliases repeat more than {limits.MOST_REPEATED} values"):
            read(f"x: &x [{','.join('a' * 99)}]\ny: [{','.join(['*x'] * 1001)}]")

    def test_a_large_file_may_repeat_more(self):
        own = ",".join("a" * (limits.MOST_REPEATED // 5))
        repeated = ",".join(["*x"] * 9)
        assert len(read(f"x: &x [{own}]\nw: [{repeated}]")["w"]) == 9
        with pytest.raises(TextError, match="aliases repeat"):
            read(f"x: &x [{own}]\nw: [{repeated},*x,*x]")

    def test_they_count_for_the_whole_file(self):
        document = f"---\nx: &x [{','.join('a' * 99)}]\nw: [{','.join(['*x'] * 500)}]\n"
        assert len(list(documents((document * 2).encode()))) == 2
        with pytest.raises(TextError, match="line 9, column "):
            list(documents((document * 3).encode()))

    @pytest.mark.parametrize("what", ["[*a{0}]", "{{b: *a{0}}}", "{{<<: *a{0}, b{0}: [*a{0}]}}"])
    def test_they_do_not_make_it_deeper(self, what):
        chain = "\n".join(f"- &a{i + 1} {what.format(i)}" for i in range(DEEPEST))
        with pytest.raises(TextError, match=r"line \d+, column \d+: (nested more|.*aliases repeat more)"):
            read(f"- &a0 {{c: d}}\n{chain}")


def outcome(read):
    """What is read, and the error."""
    try:
        return read(), ""
    except TextError as e:
        return [], str(e)


def depth(value):
    if isinstance(value, dict | list):
        return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


yamlish = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", ": ", ", ", "\n", "\n  ", "- ", "? ", "&a ", "&b ", "*a", "*b", "<<", "!!int ", "!x ", "|", ">", "'", '"', "%",
         "---\n", "...\n", "a", "b", "1", "on", "~", "0x1", ".", "e", "#", "\t", "\\", "é", "\0", "\ufeff"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@given(yamlish | st.text(max_size=40))
def test_whatever_is_read_is_a_value_of_json_or_one_line(text):
    data = text.encode(errors="replace")
    for read in (lambda: [first(data)], lambda: list(documents(data))):
        found, error = outcome(read)
        assert "\n" not in error
        assert depth(found) <= DEEPEST + 1
        assert json.loads(json.dumps(found, allow_nan=False)) == found, (
            "all keys are text, all numbers finite"
        )


@given(st.binary(max_size=60))
def test_bytes_are_a_value_or_one_line(data):
    assert "\n" not in outcome(lambda: [first(data)])[1]


text = st.text(
    st.characters(codec="utf-8", max_codepoint=0xFFFF), max_size=8
)  # beyond, YAML has no surrogates
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(plain_values)
def test_json_is_read_as_itself(value):
    assert first(json.dumps(value).encode()) == value


@given(plain_values)
def test_what_is_written_with_quotes_is_read_as_it_was(value):
    found = first(yaml.safe_dump(value, default_style='"').encode())
    assert found == value
