"""Dashboards and alerts without a Prometheus: what is asked of every panel and rule."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.dashboards.__main__ import dashboards, main
from tests.dashboards import GRAFANA, Panel, boards, panels

from partsum.coordinator.metrics import Metrics
from partsum.node.metrics import NodeMetrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "docker" / "prometheus"
METRIC = re.compile(r"\bpartsum_\w+")
LABELS = {"partsum_node_state"}  # an Enum's label has the name of its metric


def exported() -> set[str]:
    """The names of all samples that the daemons' pages can hold."""
    names: set[str] = set()
    for registry in (Metrics().registry, NodeMetrics().registry):
        names |= set(registry._names_to_collectors)
    return names


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_dashboards_that_are_checked_in_are_what_their_code_makes() -> None:
    there = {path.name: path.read_text() for path in (GRAFANA / "dashboards").glob("*.json")}
    assert there == dashboards(), "run python -m deploy.dashboards"


def test_the_command_tells_of_what_is_stale_and_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deploy.dashboards.__main__.FOLDER", tmp_path)
    for name, text in dashboards().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "another.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["dashboards", "--check"])
    assert main() == 1
    told = capsys.readouterr().err
    assert [line.split()[0] for line in told.splitlines()] == ["another.json", "run.json"]
    monkeypatch.setattr("sys.argv", ["dashboards"])
    assert main() == 0
    monkeypatch.setattr("sys.argv", ["dashboards", "--check"])
    assert main() == 0


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel.name)
def test_every_panel_has_a_title_a_unit_a_description_and_queries_with_names(panel: Panel) -> None:
    body = panel.body
    assert body["title"]
    assert body["description"].endswith(".")
    assert body["fieldConfig"]["defaults"]["unit"]
    assert body["datasource"]["uid"] == "${datasource}"
    assert body["targets"]
    refs = [target["refId"] for target in body["targets"]]
    assert all(refs)
    assert len(set(refs)) == len(refs)
    for target in body["targets"]:
        assert target["datasource"] == body["datasource"]


def test_no_panel_lies_on_another_and_all_have_numbers() -> None:
    for name, board in boards().items():
        numbers = [body["id"] for body in board["panels"]]
        assert len(set(numbers)) == len(numbers), name
        for one, other in combinations(board["panels"], 2):
            a, b = one["gridPos"], other["gridPos"]
            beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
            assert beside or above, f"{name}: {one['title']} lies on {other['title']}"
            assert a["x"] + a["w"] <= 24, one["title"]


def test_dashboards_have_names_of_their_own_and_lead_to_each_other() -> None:
    found = boards()
    assert len(found) == 5
    assert len({board["uid"] for board in found.values()}) == len(found)
    for name, board in found.items():
        variables = [variable["name"] for variable in board["templating"]["list"]]
        assert variables == ["datasource", "run", "instance", "node"], name
        assert board["links"][0]["tags"] == board["tags"] == ["partsum"]


def test_panels_and_alerts_ask_only_for_metrics_that_are_exported() -> None:
    known = exported() | LABELS
    asked = {panel.name: " ".join(panel.queries()) for panel in panels()}
    asked |= {rule["alert"]: rule["expr"] for rule in alerts()}
    for name, query in asked.items():
        assert set(METRIC.findall(query)) <= known, name


def test_only_variables_that_exist_are_asked_for() -> None:
    for panel in panels():
        for query in panel.queries():
            assert "$" not in query, panel.name
            assert "@" not in query, panel.name


def test_the_data_source_is_scraped_as_often_as_it_says() -> None:
    folder = GRAFANA / "provisioning" / "datasources"
    (source,) = yaml.safe_load((folder / "prometheus.yaml").read_text())["datasources"]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_every_alert_says_how_bad_it_is_and_has_a_paragraph_that_says_what_to_do() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in alerts())
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
