"""The dashboard is one that Grafana can import; tests/kernel/test_prometheus.py proves its queries."""

import itertools
import json
from typing import Any

from tests.deploy.objects import DEPLOY

DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
COLUMNS = 24


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    """The places of the grid that a panel takes."""
    at = panel["gridPos"]
    return set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))


def test_panels_have_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken = [cell for panel in PANELS for cell in cells(panel)]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < COLUMNS


def test_panels_say_what_they_show_and_ask_the_chosen_source() -> None:
    (source, *variables) = DASHBOARD["templating"]["list"]
    assert source["type"] == "datasource"
    assert [variable["name"] for variable in variables] == ["job", "instance"]
    wanted = {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    for panel in (panel for panel in PANELS if panel["type"] != "row"):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == wanted
        assert [target["refId"] for target in panel["targets"]] == ["A", "B", "C"][: len(panel["targets"])]
        for target in panel["targets"]:
            assert target["datasource"] == wanted
            assert 'instance=~"$instance"' in target["expr"]
