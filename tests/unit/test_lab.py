from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are scripts, not installed

from benchmarks.accuracy.questions import BENCHES, QUESTIONS, Bench
from benchmarks.accuracy.simulator import Mark, Recipe, Stage, Team
from benchmarks.accuracy.workload import Workload
from benchmarks.lab import Run, run, targets

from partsum.shared.messages import TaskSpec

DIGITS = Workload("digits", TaskSpec("partsum.shared.tasks:digits", {"widths": [64, 64, 64]}), 2.0)
BENCH = Bench(DIGITS, tuning=((32, 2e-3),), rate=2e-3, batch=32)


def curve(*accuracies: float) -> Run:
    marks = [Mark(0, (i + 1) / 4, 1 - a, a) for i, a in enumerate(accuracies)]
    return Run(Recipe((Stage(4, 0.5), Stage(1, 0.5)), 1e-3), tuple(marks))


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("task", BENCHES)
def test_every_recipe_spends_the_whole_budget_once(question: str, task: str) -> None:
    recipes = QUESTIONS[question](BENCHES[task])
    assert len({str(recipe) for recipe in recipes.values()}) == len(recipes) > 1
    for recipe in recipes.values():
        assert sum(stage.share for stage in recipe.stages) == pytest.approx(1.0)


def test_a_target_is_reached_on_the_line_between_two_marks() -> None:
    run = curve(0.5, 0.7, 0.6, 0.8)
    assert run.reaches("accuracy", 0.6) == pytest.approx(0.1875)
    assert run.reaches("loss", 0.4) == pytest.approx(0.1875)
    assert run.reaches("accuracy", 0.4) == 0.125
    assert run.reaches("accuracy", 0.9) == math.inf


def test_the_target_is_what_the_best_rival_has_at_half_of_the_budget() -> None:
    rivals = {"a": [curve(0.5, 0.6, 0.7, 0.9)], "b": [curve(0.2, 0.3, 0.4, 0.8)]}
    assert targets(rivals) == pytest.approx({"accuracy": 0.9, "loss": 0.1})


def test_a_run_that_is_kept_is_not_run_again(tmp_path: Path) -> None:
    recipe = BENCH.grown((4, 0.5), (1, 1.0))
    first = run(BENCH, recipe, 0, tmp_path)
    kept = next(tmp_path.iterdir())
    before = kept.stat().st_mtime_ns
    assert run(BENCH, recipe, 0, tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert kept.stat().st_mtime_ns == before
    assert first.merged is not None
    assert 0.3 < first.merged.accuracy < first.marks[-1].accuracy


def test_nodes_that_average_one_slice_go_on_from_the_same_weights() -> None:
    stage = Stage(4, 1.0, batch=16, rounds=2, cloned="averaged")
    team = Team(DIGITS, Recipe((stage,), 2e-3), stage, 0, 0.0, None)
    team.play(0)
    states = [learner.state for learner in team.learners]
    assert len(states) == DIGITS.nodes
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    team.play(1)
    clusters = torch.cat([learner.cluster for learner in team.learners])
    assert torch.equal(clusters.sort().values, torch.arange(DIGITS.samples))
