"""The pictures exist for light and dark pages, differ in colours only, and fetch nothing."""

import re
from xml.etree import ElementTree as ET

import pytest

from tools.links import ROOT

IMAGES = ROOT / "docs" / "images"


@pytest.mark.parametrize("name", ["dataflow", "packet"])
def test_light_and_dark(name):
    light, dark = ((IMAGES / f"{name}-{kind}.svg").read_text() for kind in ("light", "dark"))
    assert light != dark
    assert re.sub(r"#[0-9a-f]{6}", "", light) == re.sub(r"#[0-9a-f]{6}", "", dark)
    picture = ET.fromstring(light)
    assert {child.tag.rpartition("}")[2] for child in picture} >= {"title", "desc"}, (
        "what a screen reader says"
    )
    assert re.findall(r"https?://[^\"]+", light) == ["http://www.w3.org/2000/svg"]
