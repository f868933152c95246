"""The benchmark of outer optimizers: its configs, its choice of the best, its table and picture."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.harness import to_toml
from benchmarks.outer import (
    METHODS,
    Row,
    Setting,
    chosen,
    config,
    draw,
    figures,
    measure,
    rounds_to,
    table,
)
from benchmarks.robust.cluster import Outcome
from rich.console import Console

from partsum.shared.config import parse_config


def outcome(*curve: float) -> Outcome:
    return Outcome(curve[-1], 0.5, Counter(), benched=False, curve=curve)


def test_every_setting_is_a_config_that_partsum_takes_and_another_one() -> None:
    seen = set()
    for method in METHODS:
        assert len(method.settings(quick=True)) == 1
        for setting in method.settings(quick=False):
            parsed = parse_config(to_toml(config(*setting, 3, 2, "somewhere")))
            assert parsed.seed == 3
            seen.add((parsed.outer, parsed.training))
    assert len(seen) == sum(len(method.settings(quick=False)) for method in METHODS)


def test_the_best_setting_of_the_first_seed_runs_on_the_others() -> None:
    played = []

    def run(setting: Setting, seed: int, rounds: int) -> Outcome:
        rate = setting[0].get("learning_rate", 0.01)
        played.append((rate, seed))
        return outcome(0.1, 0.9 if rate == 0.003 else 0.5)

    adam = next(method for method in METHODS if method.name == "adam")
    row = measure(adam, quick=False, run=run)
    assert played == [(r, 0) for r in (0.01, 0.03, 0.003, 0.001, 0.003)] + [(0.003, 1), (0.003, 2)]
    assert row.best == "learning_rate 0.003"
    assert row.tried["defaults"] == 0.5
    assert row.curve() == pytest.approx([0.1, 0.9])


def test_some_methods_can_be_chosen_and_the_average_is_always_there() -> None:
    assert [method.name for method in chosen(["LiNeS"])] == ["average", "LiNeS"]
    assert chosen(None) == list(METHODS)
    with pytest.raises(SystemExit, match="no method lines; there are average, task arithmetic"):
        chosen(["lines"])


def test_the_table_the_figures_and_the_picture_show_every_method(tmp_path: Path) -> None:
    rows = [
        Row(method, "defaults", (outcome(0.2, 0.8), outcome(0.4, 0.9)), {"defaults": 0.8})
        for method in METHODS
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(rows))
    text = console.export_text()
    assert text.count("85.0 +- 7.1") == len(METHODS)
    assert "rounds to 85.0" in text
    assert figures(rows)["FedProx/round 1"] == pytest.approx(0.3)
    assert rounds_to([0.1, 0.5, 0.9], 0.5) == "2"
    assert rounds_to([0.1], 0.5) == "-"
    draw(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
