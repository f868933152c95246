"""The search over structures: rungs, who is best, where each goes on from; resumed, the same."""

from __future__ import annotations

import itertools
import json
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.cutter import base_name, write_clusters
from partsum.coordinator.dry_run import show_plan
from partsum.coordinator.gate_certificate import certify_gates
from partsum.coordinator.leaderboard import Candidate, Leaderboard, Score, spearman
from partsum.coordinator.planner.structures import (
    bits_of,
    first_rung,
    gates_of,
    next_rung,
    rung_size,
)
from partsum.coordinator.records import RoundPlan, RoundResult
from partsum.coordinator.search import Search, rung_sizes, searched_gates
from partsum.coordinator.search_workshop import SearchWorkshop
from partsum.coordinator.store import Store
from partsum.coordinator.terms import assignment, needed_updates, needs_its_node
from partsum.coordinator.workplan import Workplan
from partsum.node.trainer import Job, train
from partsum.shared.config import (
    HandoffConfig,
    PartsConfig,
    RunConfig,
    StructuresConfig,
    TrainingConfig,
)
from partsum.shared.errors import WidthError
from partsum.shared.gates import Gate, branch_gate
from partsum.shared.messages import Progress
from partsum.shared.part import absent, cut_tensors
from partsum.shared.task import Task
from partsum.shared.tasks.residual import ResidualMlp
from partsum.shared.tensors import load_tensors

CPU = torch.device("cpu")
WORKPLAN = Workplan((0.5, 0.5), ("", ""), 1.0)


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(48, 4, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(-1) == targets).float().mean()


TASK = Task(
    lambda: ResidualMlp(4, 8, 12, 3, 2),
    samples,
    samples,
    nn.functional.cross_entropy,
    {"accuracy": accuracy},
)


def config_of(
    rounds: int = 3, moments: Literal["local", "travel"] = "travel", **structures: Any
) -> RunConfig:
    asked = {"candidates": 8, "keep": 2, **structures}
    return RunConfig(
        seed=3,
        parts=PartsConfig(planner="structures", count=2, rounds=rounds, moments=moments),
        structures=StructuresConfig(**asked),
        training=TrainingConfig(batch_size=8, learning_rate=1e-2),
        handoff=HandoffConfig(enabled=False),
    )


def test_a_first_rung_that_no_table_would_hold_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 4096"):
        config_of(candidates=4097)


# ---- decisions ----------------------------------------------------------------------------------


def test_few_gates_are_enumerated_and_the_dense_structure_comes_first() -> None:
    found = [one.bits for one in first_rung(6, 64, seed=0)]
    assert found[0] == "111111"
    assert sorted(found) == sorted("".join(bits) for bits in itertools.product("01", repeat=6))


@given(st.integers(7, 80), st.integers(1, 60), st.integers(0, 5))
def test_many_gates_are_sampled_without_repeats_and_by_seed(
    gates: int, limit: int, seed: int
) -> None:
    found = [one.bits for one in first_rung(gates, limit, seed)]
    assert len(set(found)) == len(found) == limit
    assert found[0] == "1" * gates
    assert found == [one.bits for one in first_rung(gates, limit, seed)]


@given(st.integers(1, 200), st.floats(1, 8), st.integers(1, 8))
def test_rungs_only_shrink_and_never_below_what_is_kept(first: int, eta: float, keep: int) -> None:
    sizes = [rung_size(first, rung, eta, keep) for rung in range(8)]
    assert all(a >= b for a, b in itertools.pairwise(sizes))
    assert sizes[-1] >= min(first, keep)


@given(st.integers(2, 6), st.integers(1, 20), st.integers(0, 10), st.integers(0, 3))
def test_a_rung_is_the_best_of_the_last_one_and_mutants_of_them(
    gates: int, size: int, fresh: int, seed: int
) -> None:
    ranked = [one.bits for one in first_rung(gates, 16, seed)]
    size = min(size, len(ranked))
    rung = next_rung(ranked, ranked, size, fresh, random.Random(seed))
    names = [one.bits for one in rung]
    assert len(set(names)) == len(names) == size
    stay = [one.bits for one in rung if not one.parent]
    assert stay == ranked[: len(stay)]
    for one in rung:
        if one.parent:
            assert one.bits not in ranked
            assert one.parent in stay
            assert sum(a != b for a, b in zip(one.bits, one.parent, strict=True)) == 1


def test_a_structures_name_says_which_gates_are_off() -> None:
    names = ("a", "b", "c")
    assert gates_of("101", names) == {"b": False}
    assert bits_of(gates_of("010", names), names) == "010"


def board_of(*scores: tuple[str, int, float, float, int]) -> Leaderboard:
    """(bits, round, accuracy, loss, flops) of each candidate."""
    candidates = [
        Candidate(bits, flops, flops, "", (Score(round, loss, accuracy, 0.1),))
        for bits, round, accuracy, loss, flops in scores
    ]
    return Leaderboard(("a", "b"), tuple(candidates), tuple(one.bits for one in candidates))


def test_structures_rank_by_round_then_metric_then_loss_then_size() -> None:
    board = board_of(
        ("00", 1, 0.9, 0.5, 1),
        ("01", 2, 0.8, 0.5, 2),
        ("10", 2, 0.8, 0.4, 3),
        ("11", 2, 0.7, 0.1, 4),
    )
    assert [one.bits for one in board.ranked()] == ["10", "01", "11", "00"]


def test_a_diverged_structure_ranks_last_and_an_unscored_one_behind_it() -> None:
    board = board_of(("01", 2, 0.1, 9.0, 2))
    diverged = Candidate("10", 1, 1, "", (Score(2, None, None, 0.1),))
    board = board.joined([Candidate("00", 1, 1), diverged], ["01", "10", "00"])
    assert [one.bits for one in board.ranked()] == ["01", "10", "00"]


def test_without_a_metric_the_loss_decides() -> None:
    found = [
        Candidate(bits, 1, 1, "", (Score(0, loss, None, 0.1),))
        for bits, loss in (("0", 2.0), ("1", 1.0))
    ]
    assert [one.bits for one in Leaderboard(("a",), tuple(found)).ranked()] == ["1", "0"]


def test_structures_may_rank_by_loss_alone() -> None:
    board = replace(board_of(("00", 1, 0.9, 0.5, 1), ("01", 1, 0.8, 0.3, 2)), by="loss")
    assert [one.bits for one in board.ranked()] == ["01", "00"]


def test_the_front_holds_who_is_best_for_what_it_costs() -> None:
    board = board_of(
        ("00", 1, 0.5, 1, 1), ("01", 1, 0.6, 1, 3), ("10", 1, 0.7, 1, 2), ("11", 1, 0.8, 1, 4)
    )
    assert [one.bits for one in board.front()] == ["00", "10", "11"]


def test_rank_correlation_is_one_for_the_same_order_and_minus_one_for_the_opposite() -> None:
    up = [(1.0,), (2.0,), (3.0,), (4.0,)]
    assert spearman(up, [(x * x,) for (x,) in up]) == pytest.approx(1.0)
    assert spearman(up, up[::-1]) == pytest.approx(-1.0)
    assert spearman(up, [(0.0,)] * 4) == 0.0
    assert spearman([(1.0,), (2.0,), (2.0,)], [(1.0,), (2.0,), (3.0,)]) == pytest.approx(0.8660254)


def test_correlations_compare_each_round_with_the_last() -> None:
    found = tuple(
        Candidate(
            f"{k:02b}", 1, 1, "", (Score(0, 1.0, 0.1 * early, 0.1), Score(1, 1.0, 0.1 * k, 0.1))
        )
        for k, early in enumerate((3, 2, 1, 0))
    )
    assert Leaderboard(("a", "b"), found).correlations() == {0: pytest.approx(-1.0)}


# ---- rounds -------------------------------------------------------------------------------------


def workshop_of(config: RunConfig, store: Store, task: Task = TASK) -> SearchWorkshop:
    shop = SearchWorkshop(config, store, Base(task, CPU), samples(), samples())
    shop.first_base.write()
    write_clusters(store.folder / "clusters", [np.arange(48)])
    return shop


def opened(shop: SearchWorkshop, round: int) -> RoundPlan:
    plan = shop.store.plan(round)
    if plan is None:
        plan = shop.cutter.plan_round(WORKPLAN, round)
        shop.store.open_round(plan, at=0.0)
    else:
        shop.cutter.restore_starts(plan)
    return plan


def deliver(shop: SearchWorkshop, plan: RoundPlan, k: int) -> None:
    """Really train the structure, as a node that has never seen it would."""
    given = assignment(shop.config, plan, k)
    paths = shop.cutter.blob_paths(plan)
    assert given.start is not None
    job = Job(
        given,
        paths[given.start.digest],
        None,
        torch.arange(48),
        samples(),
        shop.update_path(plan.round, k),
        CPU,
    )
    ticks = itertools.count()
    trained = train(TASK, job, _ignore, lambda: False, lambda: float(next(ticks)))
    change = shop.inspector.check(job.output, plan, k)
    shop.store.take_update(f"node-{k % 2}", trained.update, 0.0, change)


def _ignore(_progress: Progress) -> None:
    pass


def close_round(
    shop: SearchWorkshop, plan: RoundPlan, missing: tuple[int, ...] = ()
) -> RoundResult:
    result, facts = shop.merge_round(plan, missing, Stages())
    shop.store.commit_round(plan.round, result, 1.0, facts)
    shop.store.tidy(2, shop.kept_paths(2))
    return result


def play(folder: Path, config: RunConfig, restart_after: int = -1) -> tuple[list[str], Leaderboard]:
    """All rounds; the bases' digests and the final leaderboard."""
    digests = []
    store = Store(folder)
    shop = workshop_of(config, store)
    for round in range(config.parts.rounds):
        plan = opened(shop, round)
        for k in range(len(plan.parts)):
            if round == restart_after and k == 1:  # as a coordinator that is killed here
                for path in (folder / "spool").glob("start-*"):
                    path.unlink()
                store.close()
                store = Store(folder)
                shop = workshop_of(config, store)
                plan = opened(shop, round)
            deliver(shop, plan, k)
        digests.append(close_round(shop, plan).digest)
    board = Search(config, store, shop.base).board()
    store.close()
    return digests, board


def test_a_search_halves_to_the_best_and_puts_it_into_the_base(tmp_path: Path) -> None:
    config = config_of()
    digests, board = play(tmp_path, config)
    assert [len({s.round for s in one.scores}) for one in board.ranked()] == [
        3,
        3,
        2,
        2,
        1,
        1,
        1,
        1,
    ]
    assert len(board.candidates) == 8
    assert set(board.alive) == {one.bits for one in board.ranked()[:2]}
    best = board.ranked()[0]
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        search = shop.cutter.search
        part = search.part(best.bits)
        assert store.fact("structure") == list(part.off)
        base = load_tensors(store.base_path(base_name(3)))
        own = load_tensors(store.folder / "parts" / store.fact("parts")[best.bits]["file"])
        for name, tensor in cut_tensors(base, shop.base.widths, part).items():
            assert torch.equal(tensor, own[name])
        result = store.results()[2][0]
        assert best.last is not None
        assert result.accuracy == best.last.accuracy
        assert result.loss == pytest.approx(best.last.loss, abs=1e-6)
    assert len(set(digests)) == 3


def test_structures_start_from_the_same_weights_and_go_on_from_their_own(tmp_path: Path) -> None:
    config = config_of()
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        plan = opened(shop, 0)
        base = load_tensors(store.base_path(base_name(0)))
        for k, planned in enumerate(plan.parts):
            start = load_tensors(shop.cutter.origin_paths(plan)[k])
            gone = absent(shop.base.widths, planned.part)
            assert start.keys() == base.keys() - gone
            assert all(torch.equal(tensor, base[name]) for name, tensor in start.items())
            deliver(shop, plan, k)
        sent = {planned.part: store.updates(0)[k] for k, planned in enumerate(plan.parts)}
        close_round(shop, plan)
        for planned in opened(shop, 1).parts:
            assert planned.start == sent[planned.part].update.blob
            assert planned.holder == sent[planned.part].node
        assert len({planned.seed for planned in plan.parts}) == 1


def test_a_search_that_is_killed_and_resumed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    config = config_of(candidates=4, keep=2, evolve=0.5)
    calm = play(tmp_path / "calm", config)
    assert play(tmp_path / "killed", config, restart_after=1) == calm


def test_where_not_all_are_tried_mutants_start_from_their_parents(tmp_path: Path) -> None:
    config = config_of(rounds=2, candidates=4, eta=1.0, evolve=0.5)
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        plan = opened(shop, 0)
        for k in range(len(plan.parts)):
            deliver(shop, plan, k)
        close_round(shop, plan)
        search = shop.cutter.search
        rung = search.rung(search.board(), 1)
        children = [one for one in rung if one.parent]
        assert len(children) == 2
        plan = opened(shop, 1)
        starts = shop.cutter.origin_paths(plan)
        for k, one in enumerate(rung):
            if not one.parent:
                continue
            parent = load_tensors(store.folder / "parts" / search.kept()[one.parent]["file"])
            start = load_tensors(starts[k])
            for name in start.keys() & parent.keys():
                assert torch.equal(start[name], parent[name])
        for k in range(len(plan.parts)):
            deliver(shop, plan, k)
        close_round(shop, plan)
        assert {one.bits: one.parent for one in search.board().candidates if one.parent} == {
            one.bits: one.parent for one in children
        }


def test_a_structure_that_misses_a_round_keeps_its_weights_and_ranks_behind(tmp_path: Path) -> None:
    config = config_of(rounds=2, candidates=8, eta=1.0)
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        for round in range(2):
            plan = opened(shop, round)
            for k in range(len(plan.parts) - round):
                deliver(shop, plan, k)
            result = close_round(shop, plan, (7,) if round else ())
        assert result.missing == (7,)
        search = shop.cutter.search
        late = search.bits(plan.parts[7].part)
        assert search.board().ranked()[-1].bits == late
        assert late in search.kept()


def test_at_the_end_the_best_may_be_averaged(tmp_path: Path) -> None:
    config = config_of(rounds=1, candidates=8, keep=3, merge="average")
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        plan = opened(shop, 0)
        for k in range(len(plan.parts)):
            deliver(shop, plan, k)
        close_round(shop, plan)
        search = shop.cutter.search
        best = [one.bits for one in search.board().ranked()[:3]]
        own = [load_tensors(store.folder / "parts" / search.kept()[bits]["file"]) for bits in best]
        base = load_tensors(store.base_path(base_name(1)))
        expected = torch.stack([tensors["head.weight"] for tensors in own]).mean(0)
        torch.testing.assert_close(base["head.weight"], expected)


def test_only_what_a_search_needs_its_nodes_for_waits_for_them() -> None:
    assert not needs_its_node(config_of())
    assert needs_its_node(config_of(moments="local"))
    assert needed_updates(config_of(), 8) == 4
    assert needed_updates(RunConfig(), 8) == 0


def test_the_rungs_are_known_beforehand() -> None:
    assert rung_sizes(config_of(rounds=5, rung_rounds=2), Base(TASK, CPU)) == [8, 8, 4, 4, 2]


def test_the_dry_run_shows_rungs_and_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[task]\nname = "partsum.shared.tasks:digits_vit"\noptions = { width = 16 }\n'
        '[parts]\nplanner = "structures"\nrounds = 3\n'
        "[structures]\ncandidates = 16\nkeep = 2\n[handoff]\nenabled = false\n"
    )
    assert show_plan(path, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rounds"] == [16, 8, 4]
    assert len(said["structures"]) == 16
    dense, least = (said["structures"][bits]["flops_per_round"] for bits in ("1111", "0000"))
    assert dense > 5 * least
    assert show_plan(path, as_json=False) == 0
    assert "16 structures (all 16); in each round: 16, 8, 4" in capsys.readouterr().out


def test_a_model_without_gates_cannot_be_searched() -> None:
    task = replace(TASK, model=lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    with pytest.raises(WidthError, match="no rule finds such gates"):
        searched_gates(config_of(), Base(task, CPU))
    partial = config_of(gates="partial", splits=3)
    assert searched_gates(partial, Base(task, CPU)) == ("0+1/3", "0+2/3")


class Lying(ResidualMlp):
    """It says that its embedding is a branch; nothing is left of the model without it."""

    def structure_gates(self) -> list[Gate]:
        return [branch_gate(self, "block", ["blocks.0.norm", "blocks.0.up"])]


def test_the_certificate_refuses_gates_that_are_not_as_they_are_said_to_be() -> None:
    base = Base(TASK, CPU)
    certify_gates(base, searched_gates(config_of(), base), samples())
    lying = Base(replace(TASK, model=lambda: Lying(4, 8, 12, 3, 2)), CPU)
    with pytest.raises(WidthError, match="gate 'block'"):
        certify_gates(lying, ["block"], samples())


def test_a_search_without_training_has_no_moments_that_could_travel() -> None:
    with pytest.raises(ValueError, match="needs local_epochs above 0"):
        PartsConfig(planner="structures", moments="travel", local_epochs=0)


def test_more_gates_than_a_part_may_name_are_refused_before_a_node_is_told_of_them() -> None:
    wide = replace(TASK, model=lambda: ResidualMlp(4, 2400, 8, 2, 2))
    with pytest.raises(WidthError, match=r"4598 gates, .* at most 4096"):
        searched_gates(config_of(gates="partial", splits=2300), Base(wide, CPU))
