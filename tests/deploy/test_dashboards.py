import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from deploy.names import ALERTS, known_names
from grafana_dashboards.__main__ import BOARDS, DIRECTORY

Json = dict[str, Any]
UNITS = {"ops", "percentunit", "s", "short", "bytes"}

FILES = sorted(DIRECTORY.glob("*.json"))


def board(path: Path) -> Json:
    loaded: Json = json.loads(path.read_text("utf-8"))
    return loaded


def panels(path: Path) -> list[Json]:
    """Return the panels that show something."""
    return [panel for panel in board(path)["panels"] if panel["type"] != "row"]


def expressions(path: Path) -> list[str]:
    return [target["expr"] for panel in panels(path) for target in panel["targets"]]


@pytest.mark.parametrize("name", BOARDS)
def test_the_file_is_what_the_code_makes(name: str) -> None:
    assert (DIRECTORY / name).read_text("utf-8") == BOARDS[name].json(), "run scripts/dashboards"


def test_every_dashboard_has_a_file_and_an_identity() -> None:
    assert {path.name for path in FILES} == set(BOARDS)
    assert len({board(path)["uid"] for path in FILES}) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ids_of_panels_are_unique(path: Path) -> None:
    ids = [panel["id"] for panel in board(path)["panels"]]

    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_panels_lie_beside_each_other_on_the_grid(path: Path) -> None:
    places = [panel["gridPos"] for panel in board(path)["panels"]]

    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_panel_says_what_it_shows_in_a_unit(path: Path) -> None:
    for panel in panels(path):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_quantiles_and_means_of_seconds_are_shown_in_seconds(path: Path) -> None:
    """The rate of a sum alone is seconds in a second: a part of the time."""
    shown = {
        (kind, panel["fieldConfig"]["defaults"]["unit"])
        for panel in panels(path)
        for target in panel["targets"]
        for kind in ("_seconds_bucket", "_seconds_count", "_seconds:quantile5m")
        if kind in target["expr"]
    }

    assert shown
    assert {unit for _, unit in shown} == {"s"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_data_source_is_a_variable_everywhere(path: Path) -> None:
    loaded = board(path)
    references = re.findall(r'"uid": "([^"]*)"', json.dumps([loaded["panels"], loaded["templating"]]))

    assert set(references) == {"$datasource"}
    assert [each["type"] for each in loaded["templating"]["list"] if each["name"] == "datasource"] == [
        "datasource"
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_queries_use_variables_that_exist_and_all_of_them(path: Path) -> None:
    declared = {each["name"] for each in board(path)["templating"]["list"]} - {"datasource"}
    used = set(re.findall(r"\$(\w+)", " ".join(expressions(path)))) - {"__rate_interval"}

    assert used == declared


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_queries_name_series_that_exist(path: Path) -> None:
    named = set(
        re.findall(r"((?:vitrail|grpc|process|job|instance|model\w*):?[\w:]*)\{", " ".join(expressions(path)))
    )

    assert named
    assert named <= known_names()


def test_the_objectives_are_those_of_the_alerts() -> None:
    """The lines in the dashboards are where the alerts fire."""
    overview = {panel["title"]: panel for panel in panels(DIRECTORY / "overview.json")}

    for title, budget in (("Failures, 1 h", 0.005), ("Slow first tiles, 1 h", 0.05)):
        steps = [step["value"] for step in overview[title]["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert steps == [None, budget, 14.4 * budget]
        assert f"> 14.4 * {budget}" in ALERTS
