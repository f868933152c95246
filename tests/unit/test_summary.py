"""summary.json: written whole or not at all, strict JSON, every field documented."""

import json
import math
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from partsum.coordinator.ranges import part_picture, unit_ranges
from partsum.coordinator.summary import (
    HandoffPoint,
    Record,
    RoundSummary,
    Summary,
    config_digest,
    read_summary,
    write_summary,
)
from partsum.shared.config import RunConfig
from partsum.shared.errors import StateError
from partsum.shared.messages import Part

SUMMARY = Summary(
    run="digits",
    task="partsum.shared.tasks:digits",
    config_digest=config_digest(RunConfig()),
    config=RunConfig().model_dump(mode="json"),
    seed=0,
    started_at="2026-03-02T09:14:05+00:00",
    ended_at="2026-03-02T09:15:50+00:00",
    state="finished",
    wall_seconds=105.0,
    rounds=(
        RoundSummary(
            round=1, accuracy=0.5, loss=math.nan, part_losses=(0.5, math.nan), closed_seconds=3.0
        ),
    ),
    base_parameters=4810,
    group_units={"layers.0": 64},
    parts=({"layers.0": ((0, 32),)}, {"layers.0": ((32, 64),)}),
    peak_rss_bytes=412_000_000,
)


def test_a_summary_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", SUMMARY)
    assert read_summary(tmp_path / "summary.json") == SUMMARY
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_figures_that_are_not_numbers_are_null_in_the_file(tmp_path: Path) -> None:
    point = HandoffPoint(step=1, seconds=2.0, loss=math.inf, accuracy=math.nan)
    path = tmp_path / "summary.json"
    summary = SUMMARY.model_copy(update={"handoff": (point,)})
    write_summary(path, summary)
    written = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written["handoff"][0]["loss"] is None
    assert written["handoff"][0]["accuracy"] is None
    assert written["rounds"][0]["part_losses"] == [0.5, None]


@pytest.mark.parametrize("content", [None, "{", "{}", '{"version": 2}'])
def test_a_file_that_is_no_summary_is_refused_in_words(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StateError, match=re.escape(str(path))):
        read_summary(path)


def test_a_part_is_kept_as_ranges() -> None:
    assert unit_ranges(()) == ()
    assert part_picture(Part({"a": (0, 1, 2, 7)})) == {"a": ((0, 3), (7, 8))}


def records() -> list[type[BaseModel]]:
    """Those of summary.json; the live page's have a page of their own."""
    found = Record.__subclasses__()
    return [model for model in found if ".summary" in model.__module__]


@pytest.mark.parametrize("model", records(), ids=lambda model: model.__name__)
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "summary.md").read_text()
    sections = [re.findall(r"^\| `(\w+)` \|", part, re.M) for part in page.split("\n## ")]
    assert list(model.model_fields) in sections, f"docs/summary.md has no table of {model.__name__}"
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no line that says what it is"


def test_the_same_config_has_the_same_digest() -> None:
    assert config_digest(RunConfig()) == config_digest(RunConfig(name="run"))
    assert config_digest(RunConfig()) != config_digest(RunConfig(seed=1))
