"""Every line of the log names its values, so that JSON lines have them as fields, under the same names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import kubeproxy

ROOT = Path(kubeproxy.__file__).parent
DOCS = ROOT.parents[1] / "docs/configuration.md"

METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
RESERVED = {"ts", "caller", "msg", "v", "stacktrace"}
OBJECTS = {"service", "node", "object"}

PLACEHOLDER = re.compile(r"%(?:\((\w+)\)|([^%]))")


class Line(NamedTuple):
    """A place that writes to the log."""

    where: str
    template: str
    values: list[ast.expr]


def lines() -> Iterator[Line]:
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        texts = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log" | "logger"), attr=method), args=arguments
                ) if method in METHODS:
                    template, *values = arguments[1:] if method == "log" else arguments
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    if isinstance(template, ast.Name):
                        yield Line(where, str(texts[template.id]), values)
                    else:
                        assert isinstance(template, ast.Constant), f"{where}: the message is not constant"
                        yield Line(where, str(template.value), values)


def keys(line: Line) -> list[str]:
    """The names of a line's values, or none if they are not a mapping with constant names."""
    match line.values:
        case [ast.Dict(keys=names)]:
            return [str(name.value) for name in names if isinstance(name, ast.Constant)]
        case [ast.Name()]:
            return list(dict.fromkeys(named(line)))
    return []


def named(line: Line) -> list[str]:
    return [name for name, _ in PLACEHOLDER.findall(line.template) if name]


def test_there_are_lines() -> None:
    assert len(list(lines())) > 150


def test_values_are_given_by_name() -> None:
    for line in lines():
        if line.template == "%s":  # a text that was composed elsewhere, and is all there is
            assert len(line.values) == 1, line
        else:
            assert not [other for _, other in PLACEHOLDER.findall(line.template) if other], line
            assert keys(line) == list(dict.fromkeys(named(line))), line


def test_names_are_like_those_of_kubernetes() -> None:
    for line in lines():
        assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", name) for name in keys(line)), line
        assert not RESERVED.intersection(keys(line)), line


def test_an_object_of_the_api_has_one_name() -> None:
    for line in lines():
        match line.values:
            case [ast.Dict(keys=names, values=values)]:
                for name, value in zip(names, values, strict=True):
                    text = ast.unparse(value)
                    assert isinstance(name, ast.Constant)
                    if not isinstance(value, ast.Name | ast.Call) or text.startswith("ObjectRef("):
                        assert text.startswith("ObjectRef(") == (name.value in OBJECTS), line
                    if name.value == "ipFamily":
                        assert "family" in text or text in {"primary", "missing"}, line
                    if text in {"e", "error"}:
                        assert name.value in {"err", "reason"}, line


def test_fields_in_the_documentation_exist() -> None:
    table = DOCS.read_text().partition("<!-- log fields -->")[2].partition("<!-- end of log fields -->")[0]
    documented = {
        name for row in table.splitlines()[3:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert documented >= OBJECTS | {"ipFamily", "err"}
    assert documented <= {name for line in lines() for name in keys(line)}
