from __future__ import annotations

import json
import math
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are scripts, not installed

from benchmarks.accuracy import plot, shelf, tables
from benchmarks.accuracy.costs import Spent, Step, federation_costs, recipe_costs
from benchmarks.accuracy.curves import AXES, Comparison, Curve
from benchmarks.accuracy.federation import Federation, federate, nested
from benchmarks.accuracy.methods import METHODS, Contest, Sizes, parts_then_handoff
from benchmarks.accuracy.simulator import (
    Mark,
    Recipe,
    Stage,
    Team,
    clones,
    settings,
    simulate,
    turn_ends,
)
from benchmarks.accuracy.stopwatch import measure
from benchmarks.accuracy.workload import CPU, Workload
from benchmarks.harness import Spread, to_toml, wide_console, write_figures
from benchmarks.time_to_accuracy import RIVALS, compare

from partsum.coordinator.base import seeded_model
from partsum.coordinator.clusters import make_clusters
from partsum.coordinator.merge import BLOCK, Contribution, Tensors, merge_state
from partsum.coordinator.planner import equal_fractions
from partsum.node.trainer import Job, train
from partsum.shared.config import DataConfig
from partsum.shared.files import file_digest
from partsum.shared.messages import Assignment, Blob, TaskSpec
from partsum.shared.tensors import load_tensors

LOAD = Workload(
    "digits", TaskSpec("partsum.shared.tasks:digits", {"widths": [64, 64, 64]}), 2.0, glance=100
)
CONTEST = Contest(LOAD, Sizes(16, 64, (1e-3,), (2e-3,), 32, 1.0), "accuracy")


def product_base(rounds: int, samples: int, seed: int, folder: Path) -> dict[str, Tensor]:
    """The merged base after a parts phase by the node's trainer, through files as always."""
    found = make_clusters(DataConfig(), LOAD.task, LOAD.train, equal_fractions(4), seed)
    shares = []
    for k, part in enumerate(LOAD.parts(4)):
        start: Path | None = None
        moments: Path | None = None
        for turn in range(rounds):
            blob = Blob(file_digest(start), start.stat().st_size) if start else None
            assignment = Assignment(
                id=f"r{turn}-p{k}",
                round=turn,
                part_index=k,
                part=part,
                seed=seed * 1_000_003 + k,
                start=blob,
                cluster=Blob("", 0),
                samples=None,
                first_sample=turn * samples,
                num_samples=samples,
                progress=(turn / rounds, (turn + 1) / rounds),
                settings=settings(2e-3, 32, power=1.0),
            )
            cluster, out = torch.from_numpy(found[k]), folder / f"r{turn}-p{k}"
            job = Job(assignment, start, moments, cluster, LOAD.train, out, CPU)
            trained = train(LOAD.task, job, lambda progress: None, lambda: False)
            start, moments = trained.path, trained.optimizer
        assert start is not None
        shares.append(Contribution(part, Tensors(load_tensors(start)), float(samples)))
    return merge_state(seeded_model(LOAD.task, seed).state_dict(), shares, LOAD.base.widths, BLOCK)


def test_the_simulators_parts_phase_gives_the_products_base_bit_for_bit(tmp_path: Path) -> None:
    stage = Stage(4, 1.0, batch=32, rounds=2)
    marks, state = simulate(LOAD, Recipe((stage,), 2e-3), seed=3)
    samples = turn_ends(LOAD, stage)[1]
    base = product_base(2, samples, 3, tmp_path)
    assert state.keys() == base.keys()
    assert all(torch.equal(state[name], base[name]) for name in base)
    assert marks[-1].accuracy > 0.8


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_spends_the_whole_budget_and_no_more(method: object) -> None:
    load = replace(LOAD, budget=20.0)  # so that whole batches and samples round little
    plan = method.plan(CONTEST.sizes, 1e-3)  # type: ignore[attr-defined]
    if isinstance(plan, Federation):
        spent = federation_costs(load, plan, [Mark(0, 1.0, 0.0, 0.0)])[-1]
    else:
        spent = recipe_costs(load, plan, [Mark(len(plan.stages) - 1, 1.0, 0.0, 0.0)])[-1]
    assert spent.flops == pytest.approx(load.node_flops, rel=0.01)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_a_stage_spends_its_share_whatever_the_number_of_parts(parts: int) -> None:
    load = replace(LOAD, budget=20.0)
    recipe = Recipe((Stage(parts, 0.25),), 1e-3)
    spent = recipe_costs(load, recipe, [Mark(0, 1.0, 0.0, 0.0)])[-1]
    assert spent.flops == pytest.approx(load.node_flops / 4, rel=0.01)


def test_data_parallel_training_moves_a_ring_of_the_model_at_every_step() -> None:
    recipe = Recipe((Stage(1, 1.0, batch=16),), 1e-3)
    steps = turn_ends(LOAD, recipe.stages[0])[-1] / 16
    half, whole = recipe_costs(LOAD, recipe, [Mark(0, 0.5, 0, 0), Mark(0, 1.0, 0, 0)])
    assert whole.node_bytes == whole.link_bytes == 1.5 * LOAD.whole.state_bytes * steps
    assert half.node_bytes == whole.node_bytes / 2
    assert whole.steps == {Step(1.0, 1, 4): steps}


def test_parts_upload_each_round_and_nodes_fetch_the_base_for_the_handoff() -> None:
    recipe = parts_then_handoff(CONTEST.sizes, 1e-3)
    assert isinstance(recipe, Recipe)
    size, whole = LOAD.cost(LOAD.parts(4)[0]).state_bytes, LOAD.whole.state_bytes
    before, after = recipe_costs(LOAD, recipe, [Mark(0, 1.0, 0, 0), Mark(1, 1e-12, 0, 0)])
    assert (before.node_bytes, before.link_bytes) == (4 * size, 16 * size)
    assert after.node_bytes - before.node_bytes == pytest.approx(whole)
    assert after.link_bytes - before.link_bytes == pytest.approx(4 * whole)


def test_a_slice_that_is_averaged_moves_a_ring_of_itself_each_round() -> None:
    stage = Stage(8, 1.0, batch=32, rounds=32, cloned="averaged")
    spent = recipe_costs(LOAD, Recipe((stage,), 1e-3), [Mark(0, 1.0, 0, 0)])[-1]
    size = LOAD.cost(LOAD.parts(8)[0]).state_bytes
    assert spent.node_bytes == spent.link_bytes == 1.5 * size * 32
    assert spent.steps == {Step(1 / 8, 1, 32): turn_ends(LOAD, stage)[-1] / 32}


def test_a_handoff_on_one_host_takes_the_nodes_time_together_and_no_bytes() -> None:
    recipe = parts_then_handoff(CONTEST.sizes, 1e-3)
    assert isinstance(recipe, Recipe)
    marks = [Mark(0, 1.0, 0, 0), Mark(1, 1.0, 0, 0)]
    start, spread = recipe_costs(LOAD, recipe, marks)
    same, alone = recipe_costs(LOAD, recipe, marks, single_host=True)
    assert same == start
    assert alone.flops - start.flops == pytest.approx(4 * (spread.flops - start.flops))
    assert alone.link_bytes == start.link_bytes


def test_seconds_are_steps_and_then_bytes_on_the_link() -> None:
    spent = Spent(1.0, {Step(1.0, 1, 4): 10.0}, node_bytes=5.0, link_bytes=1e9)
    stopwatch = {Step(1.0, 1, 4): 0.5}
    assert spent.seconds(stopwatch, None) == 5.0
    assert spent.seconds(stopwatch, 1e9) == 13.0


def test_a_step_of_a_part_is_timed_beside_one_of_the_whole(tmp_path: Path) -> None:
    steps = [Step(1.0, 1, 64), Step(0.25, 1, 64)]
    found = measure(LOAD, steps, 2, tmp_path / "steps.json")
    assert all(seconds > 0 for seconds in found.values())
    assert measure(LOAD, steps[:1], 2, tmp_path / "steps.json") == found


def test_stages_open_the_gates_without_changing_what_the_base_computes() -> None:
    recipe = Recipe((Stage(4, 0.3, 32, 1), Stage(2, 0.3, 32, 1), Stage(1, 0.4, 32, 1)), 2e-3)
    first = Team(LOAD, recipe, recipe.stages[0], 0, 0.0, None)
    state = first.play(0)
    second = Team(LOAD, recipe, recipe.stages[1], 0, 0.3, first)
    assert all(torch.allclose(second._merge()[name], state[name]) for name in state)


def test_moments_are_kept_where_a_stage_says_so() -> None:
    recipe = Recipe((Stage(4, 0.5, 32, 1), Stage(1, 0.5, 32, 1, keep_moments=True)), 2e-3)
    first = Team(LOAD, recipe, recipe.stages[0], 0, 0.0, None)
    first.play(0)
    second = Team(LOAD, recipe, recipe.stages[1], 0, 0.5, first)
    kept = second.learners[0].moments("exp_avg")["linear2.weight"]
    assert torch.equal(kept[:16, :16], first.learners[0].moments("exp_avg")["linear2.weight"])
    assert not kept[:16, 16:].any()


def test_the_outer_step_of_no_momentum_and_rate_one_is_the_mean() -> None:
    plain = Federation(1e-3, 2, 16)
    _, mean = federate(LOAD, plain, 0)
    _, stepped = federate(LOAD, replace(plain, outer=(1.0, 1e-12)), 0)
    assert all(torch.allclose(mean[name], stepped[name], atol=1e-5) for name in mean)


def test_windows_go_around_the_end_of_the_width() -> None:
    units = nested(LOAD, 0.5, first=0.75).units
    assert all(kept == (*range(16), *range(48, 64)) for kept in units.values())


def test_a_run_is_kept_until_its_plan_changes(tmp_path: Path) -> None:
    recipe = Recipe((Stage(4, 1.0, 32, 1),), 2e-3)
    path = tmp_path / "run.json"
    marks, is_new = shelf.run(LOAD, recipe, 0, path)
    assert is_new
    assert shelf.run(LOAD, recipe, 0, path) == (marks, False)
    assert shelf.run(LOAD, replace(recipe, learning_rate=1e-3), 0, path)[1]


def curve(name: str, scores: list[float], spent: list[float]) -> Curve:
    marks = [Mark(0, (k + 1) / len(scores), 1.0, score) for k, score in enumerate(scores)]
    costs = [Spent(flops=flops, node_bytes=flops) for flops in spent]
    return Curve(name, name, 1e-3, costs, [marks], lambda mark: mark.accuracy, {1e-3: scores[-1]})


def test_the_target_is_reached_between_two_marks_on_a_straight_line() -> None:
    rising = curve("x", [0.5, 0.7, 0.9], [1, 2, 3])
    assert rising.reaches(0.8, [1, 2, 3]) == pytest.approx(2.5)
    assert rising.reaches(0.4, [1, 2, 3]) == 1
    assert math.isinf(rising.reaches(0.95, [1, 2, 3]))


def test_the_target_is_the_better_data_parallels_at_half_of_its_budget() -> None:
    rivals = [curve("dp_small", [0.5, 0.6], [10, 20]), curve("dp_large", [0.4, 0.7], [10, 12])]
    compared = Comparison(LOAD, {}, [curve("parts", [0.5, 0.8], [1, 6])], rivals)
    assert compared.target() == 0.5
    assert compared.cost(compared.curves[0], AXES[-1]) == 1
    assert compared.ratio(compared.curves[0], AXES[-1]) == pytest.approx(1 / 10)


def test_the_benchmark_compares_draws_and_writes_figures(tmp_path: Path) -> None:
    methods = [method for method in METHODS if method.name in {"parts", *RIVALS}]
    compared = compare(CONTEST, methods, 1, tmp_path, wide_console())
    assert tables.outcomes(CONTEST, compared).row_count == 5  # one more: on one host
    assert tables.targets(CONTEST, compared).row_count == 5
    write_figures(tmp_path / "figures.json", tables.figures(CONTEST, compared))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["digits/parts/accuracy"] > 0.6
    assert figures["digits/dp_small/whole/simulated"] == pytest.approx(LOAD.budget, rel=0.02)
    plot.draw([(compared, "accuracy")] * 2, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_nested_values_come_back_from_toml_as_they_were() -> None:
    values = {
        "name": 'it\'s a "name"',
        "task": {"name": "m:f", "options": {"folder": "a b", "widths": [3, 4], "rate": 1e-05}},
        "handoff": {"enabled": False},
    }
    assert tomllib.loads(to_toml(values)) == values


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
