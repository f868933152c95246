"""The benchmark of grown bases: its configs, its prices, its table."""

from __future__ import annotations

import io

import pytest
from benchmarks.growing import PRICE, SMALL, WIDTH, Outcome, config, figures, table, ways
from benchmarks.harness import to_toml
from rich.console import Console

from partsum.coordinator.base import meta_model
from partsum.shared.config import parse_config
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_task


def test_every_way_is_a_config_that_partsum_takes() -> None:
    seen = set()
    for way in ways(["a", "b", "c", "d"], "long"):
        parsed = parse_config(to_toml(config(WIDTH, way.start, 3, 1.0, "somewhere")))
        assert parsed.start.models == list(way.start.get("models", []))
        seen.add((str(parsed.start), way.extra_epochs))
    assert len(seen) == 6


def test_the_small_models_price_is_their_share_of_the_bases_multiplications() -> None:
    def weights(width: int) -> int:
        parsed = parse_config(to_toml(config(width, {}, 0, 1.0, "somewhere")))
        model = meta_model(load_task(TaskSpec(parsed.task.name, parsed.task.options)))
        return sum(p.numel() for p in model.parameters() if p.dim() == 2)

    assert pytest.approx(4 * weights(SMALL) / weights(WIDTH)) == PRICE


def test_the_table_and_the_figures_are_means_over_seeds() -> None:
    found = [
        {"fresh": Outcome((0.2, 0.4, 0.5, end), loss, "base")} for end, loss in ((0.6, 1), (0.8, 2))
    ]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(found))
    assert "70.00 +- 14.14" in console.export_text()
    assert figures(found) == pytest.approx({"fresh/accuracy": 0.7, "fresh/loss": 1.5})
