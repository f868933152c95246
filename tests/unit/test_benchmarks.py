from __future__ import annotations

import json
import math
import sys
import tomllib
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are scripts, not installed

from benchmarks.accuracy import methods, plot
from benchmarks.accuracy.clones import clones
from benchmarks.accuracy.methods import NODES, Choice, Config, Workload
from benchmarks.accuracy.outcomes import Mark, Outcome
from benchmarks.harness import Spread, to_toml, write_figures
from benchmarks.time_to_accuracy import EXPERIMENTS, Result, figures, quick

from partsum.shared.config import parse_config

LOAD = Workload(
    name="digits",
    task="partsum.shared.tasks:digits",
    options={"widths": [64, 64, 64]},
    part_options={"widths": [16, 16, 16]},
    budget=2.0,
)


def whole_passes(config: Config) -> float:
    """The FLOPs that a config spends, as passes of the whole model over all data."""
    parts = config["parts"]
    whole = parts.get("planner") == "full" and config["task"]["options"] == LOAD.options
    per_pass = 1.0 if whole else LOAD.part_speed
    epochs = parts["rounds"] * parts.get("local_epochs", 0.0) / per_pass
    handoff = config["handoff"]
    return float(epochs + (handoff["epochs"] if handoff.get("enabled", True) else 0.0))


@pytest.mark.parametrize(
    "method",
    [
        methods.parts_then_handoff,
        methods.data_parallel,
        methods.federated_averaging,
        methods.never_merged,
    ],
)
def test_every_method_spends_the_whole_budget_and_no_more(method: methods.Configure) -> None:
    for choice in (Choice(), Choice(rounds=3, share=0.2, batch=32)):
        assert whole_passes(method(LOAD, choice, 0)) == pytest.approx(LOAD.budget)


def test_one_slice_leaves_the_handoff_its_share_of_the_budget() -> None:
    choice = Choice(share=0.25)
    assert whole_passes(methods.one_slice(LOAD, choice, 0)) == pytest.approx(0.25 * LOAD.budget)


def test_every_config_of_the_benchmark_is_one_that_partsum_takes() -> None:
    for method in EXPERIMENTS["mlp"][1]:
        for choice in method.choices:
            config = parse_config(to_toml(method.configure(LOAD, choice, 3)))
            assert config.seed == 3
            assert config.parts.count == NODES


def test_choices_of_a_method_have_folders_of_their_own() -> None:
    for _, tried in EXPERIMENTS.values():
        for method in tried:
            assert len({choice.label() for choice in method.choices}) == len(method.choices)


def test_nested_values_come_back_from_toml_as_they_were() -> None:
    values = {
        "name": 'it\'s a "name"',
        "task": {"name": "m:f", "options": {"folder": "a b", "widths": [3, 4], "rate": 1e-05}},
        "handoff": {"enabled": False},
    }
    assert tomllib.loads(to_toml(values)) == values


def test_figures_are_written_as_a_flat_object_of_numbers(tmp_path: Path) -> None:
    result = Result(EXPERIMENTS["mlp"][1][0], Choice(), {}, (outcome(0, 0.86), outcome(1, 0.88)))
    path = tmp_path / "figures.json"
    write_figures(path, figures(LOAD, [result, result]))
    read = json.loads(path.read_text())
    assert read["digits/parts/accuracy"] == pytest.approx(0.87)
    assert all(type(value) in (int, float) for value in read.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None, {"nested": 1}])
def test_a_figure_that_is_no_finite_number_is_refused_by_name(
    tmp_path: Path, value: object
) -> None:
    with pytest.raises(ValueError, match="'a/b' is"):
        write_figures(tmp_path / "figures.json", {"a/b": value})  # type: ignore[dict-item]


def test_the_spread_of_one_seed_has_no_deviation() -> None:
    assert Spread.of([0.5]).text(2, 100) == "50.00"
    assert Spread.of([0.5, 0.52]).text(2, 100) == "51.00 +- 1.41"
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_clones_differ_in_their_matrices_only() -> None:
    tensors = {"w": torch.randn(4, 3), "b": torch.randn(4), "n": torch.tensor([[1, 2]])}
    first, second = clones(tensors, 2, seed=0)
    assert not torch.equal(first["w"], second["w"])
    assert torch.allclose(first["w"], tensors["w"], atol=tensors["w"].std().item())
    assert torch.equal(first["b"], second["b"])
    assert torch.equal(first["n"], tensors["n"])


def test_quick_tries_parts_and_data_parallel_once_on_less() -> None:
    for load, tried in EXPERIMENTS.values():
        small, few = quick(load, tried)
        assert small.budget < load.budget
        assert [method.name[:2] for method in few[:2]] == ["pa", "dp"]
        assert {len(method.choices) for method in few} == {1}


def test_the_picture_is_drawn_for_every_workload(tmp_path: Path) -> None:
    drawn = [(LOAD, [("parts", [outcome(0, 0.8), outcome(1, 0.82)])])] * 2
    plot.draw(drawn, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def outcome(seed: int, accuracy: float) -> Outcome:
    return Outcome(
        seed=seed,
        accuracy=accuracy,
        loss=0.4,
        start_accuracy=None,
        time=0.5,
        node_bytes=1e6,
        round_bytes=1e5,
        train_seconds=1.0,
        wall_seconds=2.0,
        peak_memory_bytes=1000,
        curve=(Mark(0.1, 0.0, 0.2), Mark(0.5, 1e6, accuracy)),
    )
