"""Texts that try to crash, fill or occupy whatever reads them: a configuration, a kubeconfig, a manifest, an answer.

Each is a name, the text, and a pattern of what must be said of it; "" if nothing need be wrong with it as a text.
"""

from collections.abc import Iterator, Sequence

Text = tuple[str, bytes, str]

_DEEP = 200_000
_NESTED = "nested more than|nested too deeply|maximum nesting depth|maximum recursion depth"
_REPEAT = "aliases repeat more than"


def _deep() -> Iterator[Text]:
    heads = (("", "bare"), ("kind: Config\nx: ", "in-field"), ("{kind: Config, x: ", "in-flow"))
    for head, name in heads:
        for opening in ("[", "{a: ", '{"a":', "- ", "? ", "[{a: "):
            yield f"deep-{opening.strip()}-{name}", (head + opening * _DEEP).encode(), "."
    yield "deep-json", ('{"kind":"Config","x":' + "[" * _DEEP + "]" * _DEEP + "}").encode(), _NESTED
    yield "deep-json-objects", ('{"a":' * _DEEP + "1" + "}" * _DEEP).encode(), _NESTED
    yield "deep-yaml", ("kind: Config\nx: " + "[" * 500 + "]" * 500).encode(), _NESTED
    yield "deep-indents", "\n".join(" " * i + "a:" for i in range(3000)).encode(), _NESTED


def _aliases() -> Iterator[Text]:
    for shape, form in (("lists", "[{}]"), ("mappings", "{{x: [{}]}}"), ("merges", "{{<<: [{}]}}")):
        laughs = [f"a{i}: &a{i} {form.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, 60)]
        yield f"laughs-{shape}", "\n".join(["kind: Config", "a0: &a0 {z: 1}", *laughs]).encode(), _REPEAT
    chain = "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 5000))
    yield "alias-chain", f"a0: &a0 [1]\n{chain}".encode(), f"{_NESTED}|{_REPEAT}"
    many = b"a: &a [" + b"b," * 50_000 + b"]\nc: [" + b"*a," * 50_000 + b"]"
    yield "alias-quadratic", many, _REPEAT
    yield "alias-to-itself", b"a: &a {b: *a, c: [*a]}", "contains itself"
    yield "alias-unknown", b"a: *b", "unknown anchor"
    yield "many-anchors", b"kind: Config\nx: [" + b",".join(b"&a%d 1" % i for i in range(50_000)) + b"]", ""


def _long() -> Iterator[Text]:
    yield "many-keys", b"kind: Config\n" + b"".join(b"a%d: 1\n" % i for i in range(20_000)), ""
    yield "many-same-keys", b"kind: Config\n" + b"a: 1\n" * 20_000, ""
    yield "many-documents", b"---\n" * 50_000, ""
    yield "many-colons", b"a: " * 50_000, "."
    yield "many-quotes", b'"' * 100_001, "."
    yield "many-tags", b"!" * 100_000, "."
    yield "many-directives", b"%YAML 1.1\n" * 1000, "."
    yield "long-key", b"kind: Config\n? " + b"k" * 1_000_000 + b"\n: 1", ""
    yield "long-number", b"kind: Config\nx: " + b"9" * 100_000, "digits is too large"
    yield "long-hexadecimal", b"kind: Config\nx: 0x" + b"f" * 100_000, "digits is too large"
    yield "long-json-number", b'{"kind": "Config", "x": ' + b"9" * 100_000 + b"}", ""
    yield "infinite", b"kind: Config\nx: .inf", "not a number that JSON can express"
    yield "infinite-json", b'{"kind": "Config", "x": Infinity}', ""


def _encodings() -> Iterator[Text]:
    for encoding in ("utf-8-sig", "utf-16"):
        yield f"text-{encoding}", "kind: Config\r\nx: é\r\n".encode(encoding), ""
        yield f"json-{encoding}", '{"kind": "Config", "x": "é"}'.encode(encoding), ""
    yield "utf-16-without-mark", "kind: Config".encode("utf-16-le"), "control characters are not allowed"
    yield "utf-16-broken", b"\xff\xfe\x00\xd8", "not UTF-16"
    yield "utf-32", "kind: Config".encode("utf-32"), "."
    yield "latin-1", "kind: Config\nx: é".encode("latin-1"), r"line \d, column 4: not UTF-8"
    yield "json-latin-1", '{"kind": "Config", "x": "é"}'.encode("latin-1"), ""
    yield "json-surrogate", b'{"kind": "Config", "\\ud800": "\\ud800"}', ""
    yield "surrogate", b"kind: Config\nx: \xed\xa0\x80", "not UTF-8"
    yield "nul", b"kind: Config\nx: \0", "control characters are not allowed"
    yield "json-nul", b'{"kind": "Config", "x": "\0"}', "."
    yield "escape", b"kind: Config\nx: \x1b[31m", "control characters are not allowed"
    yield "tab", b"kind: Config\n\tx: 1", r"line \d, column 1: .*tab character"
    yield "tab-within", b"kind: Config\nx:\t1\n", ""
    yield "template", b"kind: {{ .Kind }}", "was a template not rendered"
    yield "not-text", bytes(range(256)) * 100, "."


def as_object(text: bytes, version: str, kind: str) -> bytes:
    """One of these texts as an object of another kind."""
    for old, new in (
        ("kind: Config\n", f"apiVersion: {version}\nkind: {kind}\n"),
        ("{kind: Config,", f"{{apiVersion: {version}, kind: {kind},"),
        ('"kind":"Config"', f'"apiVersion":"{version}","kind":"{kind}"'),
        ('"kind": "Config"', f'"apiVersion":"{version}","kind":"{kind}"'),
    ):
        text = text.replace(old.encode(), new.encode(), 1)
    return text


TEXTS: Sequence[Text] = (*_deep(), *_aliases(), *_long(), *_encodings())
