"""docs/doctor.md has each check, under the anchor that the output names, with its title and severity."""

import re
from pathlib import Path

from kubeproxy.insight.doctor.examine import CHECKS, PAGE

ROOT = Path(__file__).resolve().parents[4]


def test_the_page_and_the_checks_are_equal() -> None:
    text = (ROOT / PAGE).read_text()
    sections = dict(re.findall(r"^### (KP\d{3})\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(sections) == [each.id for each in CHECKS]
    for each in CHECKS:
        head = f"**{each.title}** ({each.severity}). Looks at: {each.looks_at}."
        assert head in sections[each.id], each.id
        assert len(sections[each.id].split(head)[1].split()) > 8, f"{each.id} has no text"
