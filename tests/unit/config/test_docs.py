"""docs/configuration.md says what the tables of flags, fields and gates say.

When a table changes, put what the failing test prints between the table's markers.
"""

from pathlib import Path

import pytest
from msgspec import Struct

from kubeproxy.config.defaults import DEFAULTS
from kubeproxy.config.flags import FLAGS
from kubeproxy.config.gates import GATES
from kubeproxy.config.write import plain

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


def encoded(path):
    """Turns a path of attributes to one of the file's field names."""
    names, value = [], DEFAULTS
    for attribute in path.split("."):
        names.append(value.__struct_encode_fields__[value.__struct_fields__.index(attribute)])
        value = getattr(value, attribute)
    return ".".join(names)


def fields(value=DEFAULTS, path=""):
    for attribute in value.__struct_fields__:
        here = f"{path}.{attribute}" if path else attribute
        inner = getattr(value, attribute)
        yield from fields(inner, here) if isinstance(inner, Struct) else [encoded(here)]


def table(*rows):
    head, *body = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def code(text):
    return f"`{text}`" if text else ""


def flags_table():
    rows, group = [("Flag", "Default", "Field", "What it does")], ""
    for flag in FLAGS:
        if flag.group != group:
            group = flag.group
            rows.append((f"**{group}**", "", "", ""))
        note = f" Deprecated: {flag.deprecated}." if flag.deprecated else ""
        rows.append(
            (
                code(flag.usage),
                code(flag.default_text),
                ", ".join(code(encoded(p)) for p in flag.paths),
                flag.help + note,
            )
        )
    return table(*rows)


def fields_table():
    by_field = {encoded(path): flag for flag in FLAGS for path in flag.paths}
    defaults = plain(DEFAULTS)
    rows = [("Field", "Default", "Flag")]
    for field in fields():
        value: object = defaults
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        text = (
            ""
            if value in (None, "", {})
            else {True: "true", False: "false"}[value]
            if isinstance(value, bool)
            else str(value)
        )
        if field.endswith("yncPeriod") and field != "configSyncPeriod":
            text = "adapts" if "minSync" in field else "30s"
        rows.append(
            (
                code(field),
                code(text) if text != "adapts" else text,
                code(f"--{by_field[field].name}") if field in by_field else "",
            )
        )
    return table(*rows)


def gates_table():
    rows = [("Gate", "Stage", "Default")]
    for name, gate in sorted(GATES.items()):
        rows.append(
            (
                code(name),
                gate.stage,
                ("true" if gate.default else "false") + (", locked" if gate.locked else ""),
            )
        )
    return table(*rows)


@pytest.mark.parametrize("name", ["flags", "fields", "gates"])
def test_the_docs_have_the_table(name):
    expected = {"flags": flags_table, "fields": fields_table, "gates": gates_table}[name]()
    text = DOCS.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    assert text[text.index(begin) + len(begin) : text.index(end)].strip() == expected
