"""What is shown of a study: means over seeds, a CSV, a table and a picture."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from partsum.coordinator.study.chart import series, study_svg
from partsum.coordinator.study.results import Row, csv_text, from_json, in_order, means, to_json
from partsum.coordinator.study.table import study_table

WHOLE = Row("scratch", "", 1.0, 1.0, 0, 1000, 6000, 10, None, 0.5, 0.9, "parts/a", 2.0)
HALF = replace(WHOLE, keep=0.5, parameters=300, flops=1800, accuracy=0.8, train_seconds=1.0)
STRONG = replace(HALF, start="tuned", selection="strong", cut_accuracy=0.4)
WEAK = replace(STRONG, selection="weak", accuracy=0.6)
TUNED = replace(WHOLE, start="tuned", accuracy=0.95)
ROWS = [WHOLE, HALF, TUNED, STRONG, WEAK]


def shown(rows: list[Row]) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(study_table(rows, Path("runs/mine-1")))
    return text.getvalue()


def test_rows_survive_the_journal() -> None:
    assert from_json(json.loads(json.dumps(to_json(ROWS)))) == ROWS


def test_the_csv_has_a_line_for_each_model_and_leaves_empty_what_was_not_measured() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text([STRONG, replace(WHOLE, accuracy=None)]))))
    assert [line["start"] for line in lines] == ["tuned", "scratch"]
    assert (lines[0]["cut_accuracy"], lines[0]["accuracy"]) == ("0.4", "0.8")
    assert (lines[1]["cut_accuracy"], lines[1]["accuracy"]) == ("", "")


def test_models_that_differ_in_their_seed_alone_are_one_line_with_a_spread() -> None:
    second = replace(HALF, seed=1, accuracy=0.84, train_seconds=3.0)
    failed = replace(HALF, seed=2, accuracy=None, loss=None, train_seconds=None)
    (mean,) = means([HALF, second, failed])
    assert mean.row.accuracy == pytest.approx(0.82)
    assert mean.row.train_seconds == pytest.approx(2.0)
    assert mean.spread == pytest.approx(0.04 / 2**0.5)
    assert (mean.count, mean.measured) == (3, 2)


def test_the_order_is_by_start_then_width_whatever_came_first() -> None:
    assert in_order(reversed(ROWS)) == ROWS


def test_the_table_fits_a_terminal_and_says_what_failed() -> None:
    text = shown([*ROWS, replace(STRONG, data=0.1, seed=1, accuracy=None, loss=None)])
    assert max(map(len, text.splitlines())) <= 80
    assert "mine-1: 6 models" in text
    assert "tuned   strong" in text
    assert "…" not in text
    assert "1 of 6 models have no figures" in text
    assert "no figures" not in shown(ROWS)


def test_the_picture_has_a_line_for_each_kind_that_ends_in_the_whole_model() -> None:
    lines = series(means(ROWS))
    assert [line.name for line in lines] == ["scratch", "tuned, strong", "tuned, weak"]
    assert [[m.row.keep for m in line.points] for line in lines] == [[0.5, 1.0]] * 3
    root = ElementTree.fromstring(study_svg(ROWS))
    assert len(root.findall(".//{*}polyline")) == 3 * 3
    assert any("tuned, weak, 50 % kept: 60.00 %" in (t.text or "") for t in root.iter())


def test_a_study_without_an_accuracy_is_drawn_as_a_sentence() -> None:
    root = ElementTree.fromstring(study_svg([replace(WHOLE, accuracy=None)]))
    assert "No model of this study has an accuracy." in "".join(root.itertext())


def test_a_model_whose_time_nobody_measured_is_left_out_of_that_panel_alone() -> None:
    root = ElementTree.fromstring(study_svg([WHOLE, replace(HALF, train_seconds=None)]))
    dots = root.findall(".//{*}circle")
    assert len(dots) == 2 + 2 + 1
