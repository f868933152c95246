"""Rounds without a network: what comes of updates is fixed by the seed, restarts or not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.cutter import base_name, blob_of, write_clusters
from partsum.coordinator.merge import are_disjoint
from partsum.coordinator.records import RoundPlan, RoundResult
from partsum.coordinator.store import Store
from partsum.coordinator.terms import assignment
from partsum.coordinator.workplan import Workplan
from partsum.coordinator.workshop import Workshop
from partsum.node.ahead import following
from partsum.shared.config import PartsConfig, RunConfig, TrainingConfig
from partsum.shared.errors import UpdateRefusedError, WidthError
from partsum.shared.files import file_digest
from partsum.shared.messages import Update
from partsum.shared.part import cut_module, cut_tensors, fresh_module
from partsum.shared.task import Task
from partsum.shared.tensors import load_tensors, save_tensors
from partsum.shared.width import ScaledLinear

CPU = torch.device("cpu")
EQUAL = Workplan((0.5, 0.5), ("", ""), 0.25)
UNEVEN = Workplan((0.7, 0.3), ("fast", "slow"), 0.25)


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 4, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        ScaledLinear(6, 7),
        nn.LayerNorm(7),
        nn.ReLU(),
        nn.Linear(7, 2),
    )


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).float().mean()


TASK = Task(model, samples, samples, nn.functional.cross_entropy, {"accuracy": accuracy})


def config_of(**parts: Any) -> RunConfig:
    return RunConfig(seed=3, parts=PartsConfig(count=2, rounds=2, **parts))


BLOCK = config_of()
RESIDUAL = config_of(mode="residual")
FULL = config_of(planner="full")
GRADIENTS = config_of(planner="full", aggregate="gradients")
KINDS = pytest.mark.parametrize(
    "config",
    [BLOCK, RESIDUAL, FULL, GRADIENTS, config_of(mode="residual", aggregate="gradients")],
    ids=["block", "residual", "full", "gradients", "residual gradients"],
)


def workshop_of(config: RunConfig, store: Store) -> Workshop:
    shop = Workshop(config, store, Base(TASK, CPU), samples(), samples())
    shop.first_base.write()
    write_clusters(store.folder / "clusters", [np.arange(0, 40, 2), np.arange(1, 40, 2)])
    return shop


def opened(shop: Workshop, workplan: Workplan, round: int) -> RoundPlan:
    plan = shop.store.plan(round)
    if plan is None:
        plan = shop.cutter.plan_round(workplan, round)
        shop.store.open_round(plan, at=0.0)
    else:
        shop.cutter.restore_starts(plan)
    return plan


def train(shop: Workshop, plan: RoundPlan, k: int) -> dict[str, Tensor]:
    """What a node might send: its start, or the seed's weights, with noise of (round, part)."""
    planned = plan.parts[k]
    if planned.start is None:
        narrow = cut_module(model(), shop.base.widths, planned.part)
        state = dict(fresh_module(narrow, planned.seed).state_dict())
    else:
        path = shop.cutter.blob_paths(plan)[planned.start.digest]
        assert blob_of(path) == planned.start
        state = load_tensors(path)
    generator = torch.Generator().manual_seed(1000 * plan.round + k)
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.dim():
            noise = torch.rand(tensor.shape, generator=generator)
            state[name] = tensor + 0.1 * noise
    return state


def deliver(shop: Workshop, plan: RoundPlan, k: int) -> dict[str, Tensor]:
    state = train(shop, plan, k)
    path = shop.update_path(plan.round, k)
    digest = save_tensors(path, state, durable=False)
    change = shop.inspector.check(path, plan, k)
    planned = plan.parts[k]
    update = Update(
        assignment_id=f"r{plan.round}-p{k}",
        round=plan.round,
        part_index=k,
        start_digest=planned.start.digest if planned.start else "",
        num_samples=planned.num_samples,
        loss=0.5,
        train_seconds=1.0,
        samples_per_second=1.0,
        peak_memory_bytes=1,
        blob=blob_of(path, digest),
    )
    shop.store.take_update(f"node-{k}", update, 0.0, change)
    return state


def close_round(shop: Workshop, plan: RoundPlan, missing: tuple[int, ...] = ()) -> RoundResult:
    result, facts = shop.merge_round(plan, missing, Stages())
    shop.store.commit_round(plan.round, result, 1.0, facts)
    shop.store.tidy(0, shop.kept_paths(1))
    return result


def run(folder: Path, config: RunConfig, workplan: Workplan = EQUAL) -> list[str]:
    """Two rounds in one go; the bases' digests."""
    digests = []
    with closing(Store(folder)) as store:
        shop = workshop_of(config, store)
        for round in range(2):
            plan = opened(shop, workplan, round)
            for k in range(2):
                deliver(shop, plan, k)
            digests.append(close_round(shop, plan).digest)
    return digests


@KINDS
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, config: RunConfig) -> None:
    once, again = run(tmp_path / "a", config), run(tmp_path / "b", config)
    assert once == again
    assert once[0] != once[1]
    bases = sorted((tmp_path / "a" / "bases").glob("base-*"))
    assert [path.name for path in bases] == [base_name(version) for version in range(3)]
    assert [file_digest(path) for path in bases[1:]] == once


@KINDS
@pytest.mark.parametrize("spool", ["kept", "lost"])
def test_a_restart_at_any_point_gives_the_same_bytes(
    tmp_path: Path, config: RunConfig, spool: str
) -> None:
    """A new store and workshop before each step; planned starts may be lost from the spool."""
    expected = run(tmp_path / "undisturbed", config, UNEVEN)
    folder = tmp_path / "restarted"
    digests = []
    for round in range(2):
        for k in range(2):
            with closing(Store(folder)) as store:
                shop = workshop_of(config, store)
                plan = opened(shop, UNEVEN, round)
                if spool == "lost":
                    for path in (folder / "spool").glob("start-*"):
                        path.unlink()
                    shop.cutter.restore_starts(plan)
                deliver(shop, plan, k)
        with closing(Store(folder)) as store:  # merged, and dead before the commit
            shop = workshop_of(config, store)
            shop.merge_round(opened(shop, UNEVEN, round), (), Stages())
        with closing(Store(folder)) as store:
            shop = workshop_of(config, store)
            digests.append(close_round(shop, opened(shop, UNEVEN, round)).digest)
    assert digests == expected


def test_in_mode_block_parts_begin_fresh_and_go_on_from_their_own_updates(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(BLOCK, store)
        first = opened(shop, UNEVEN, 0)
        assert [part.start for part in first.parts] == [None, None]
        assert [part.holder for part in first.parts] == ["fast", "slow"]
        sent = [deliver(shop, first, k) for k in range(2)]
        close_round(shop, first)
        second = opened(shop, UNEVEN, 1)
        assert [part.part for part in second.parts] == [part.part for part in first.parts]
        assert [part.holder for part in second.parts] == ["node-0", "node-1"]
        for planned, state in zip(second.parts, sent, strict=True):
            assert planned.start is not None
            start = load_tensors(shop.cutter.blob_paths(second)[planned.start.digest])
            assert all(torch.equal(start[name], state[name]) for name in state)


def test_rounds_continue_each_others_epochs_and_the_schedule(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config_of(local_epochs=0.5), store)
        plans = [shop.cutter.plan_round(EQUAL, round) for round in range(2)]
        assert [[part.first_sample for part in plan.parts] for plan in plans] == [[0, 0], [10, 10]]
        assert [plan.progress for plan in plans] == [(0.0, 0.125), (0.125, 0.25)]
        assert plans[0].parts[0].seed == plans[1].parts[0].seed != plans[0].parts[1].seed


@pytest.mark.parametrize("planner", ["complement", "full"])
def test_a_node_that_goes_ahead_knows_its_next_assignment_to_the_last_bit(
    tmp_path: Path, planner: Literal["complement", "full"]
) -> None:
    config = RunConfig(
        deterministic=False,
        parts=PartsConfig(count=2, rounds=3, planner=planner),
        training=TrainingConfig(ahead=True),
    )
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        for round in (1, 2):  # as if there had been no update
            shutil.copy(store.base_path(base_name(0)), store.base_path(base_name(round)))
        plans = [shop.cutter.plan_round(EQUAL, round) for round in range(3)]
        first, second, last = (assignment(config, plan, 1) for plan in plans)
        assert replace(second, id="", start=None, ahead_to=0.0) == following(first)
        assert last.progress[1] == second.ahead_to
        assert last.ahead_to == 0.0


@pytest.mark.parametrize(("epochs", "samples"), [(1.0, 20), (0.001, 1), (0.0, 0), (2.5, 50)])
def test_a_part_sees_its_epochs_of_samples_and_at_least_one_if_any(
    tmp_path: Path, epochs: float, samples: int
) -> None:
    with closing(Store(tmp_path)) as store:
        plan = workshop_of(config_of(local_epochs=epochs), store).cutter.plan_round(EQUAL, 0)
        assert [part.num_samples for part in plan.parts] == [samples, samples]


def test_in_mode_residual_units_are_drawn_anew_and_starts_are_cut_from_the_base(
    tmp_path: Path,
) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(RESIDUAL, store)
        base = load_tensors(store.base_path(base_name(0)))
        assert base["3.scale"] == 0.5
        plan = opened(shop, EQUAL, 0)
        for planned in plan.parts:
            assert planned.start is not None
            start = load_tensors(shop.cutter.blob_paths(plan)[planned.start.digest])
            expected = cut_tensors(base, shop.base.widths, planned.part)
            assert start["3.scale"] == 1.0
            assert all(torch.equal(start[name], expected[name]) for name in expected)
        for k in range(2):
            deliver(shop, plan, k)
        close_round(shop, plan)
        assert load_tensors(store.base_path(base_name(1)))["3.scale"] == 0.5
        again = opened(shop, EQUAL, 1)
        assert [p.part for p in again.parts] != [p.part for p in plan.parts]
        assert are_disjoint([p.part for p in again.parts])


def test_federated_averaging_is_the_mean_of_the_models(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(FULL, store)
        plan = opened(shop, EQUAL, 0)
        sent = [deliver(shop, plan, k) for k in range(2)]
        close_round(shop, plan)
        merged = load_tensors(store.base_path(base_name(1)))
        for name in ("0.weight", "3.bias", "4.weight", "6.weight"):
            torch.testing.assert_close(merged[name], (sent[0][name] + sent[1][name]) / 2)


@pytest.mark.parametrize("aggregate", ["planner", "mode"])
def test_gradients_move_every_weight_of_the_base(tmp_path: Path, aggregate: str) -> None:
    config = (
        GRADIENTS if aggregate == "planner" else config_of(mode="residual", aggregate="gradients")
    )
    run(tmp_path, config)
    before, after = (load_tensors(tmp_path / "bases" / base_name(v)) for v in (0, 2))
    for name, parameter in model().named_parameters():
        assert (before[name] != after[name]).all(), name
        assert parameter.shape == after[name].shape
    assert before["3.scale"] == after["3.scale"]


def mean_outputs(shop: Workshop, plan: RoundPlan, states: dict[int, dict[str, Tensor]]) -> Tensor:
    inputs, _ = samples().tensors
    outputs = []
    for k, state in states.items():
        part = cut_module(model(), shop.base.widths, plan.parts[k].part)
        part.load_state_dict(state)
        with torch.no_grad():
            outputs.append(part.eval()(inputs))
    return torch.stack(outputs).mean(0)


def base_outputs(shop: Workshop, plan: RoundPlan, version: int) -> Tensor:
    merged = shop.base.model(shop.store.base_path(base_name(version)), shop.norm_parts(plan))
    with torch.no_grad():
        outputs: Tensor = merged(samples().tensors[0])
    return outputs


@pytest.mark.parametrize("workplan", [EQUAL, UNEVEN], ids=["a clone", "fresh weights"])
def test_a_part_that_never_came_is_filled_in_and_does_not_count(
    tmp_path: Path, workplan: Workplan
) -> None:
    """Failure mode 10, round 0: the base's output is that of the live part."""
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(BLOCK, store)
        plan = opened(shop, workplan, 0)
        live = deliver(shop, plan, 0)
        result = close_round(shop, plan, missing=(1,))
        assert result.missing == (1,)
        merged = load_tensors(store.base_path(base_name(1)))
        filled = cut_tensors(merged, shop.base.widths, plan.parts[1].part)
        assert filled["0.weight"].any()
        assert not filled["6.weight"].any()
        torch.testing.assert_close(
            base_outputs(shop, plan, 1), mean_outputs(shop, plan, {0: live}), rtol=0, atol=1e-5
        )
        again = opened(shop, workplan, 1)
        assert again.parts[0].start is not None
        assert again.parts[1].start is None  # it still has to begin


def test_a_lost_slice_is_filled_with_its_last_update(tmp_path: Path) -> None:
    """Failure mode 10, later: what it knew still counts."""
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(BLOCK, store)
        plan = opened(shop, EQUAL, 0)
        old = [deliver(shop, plan, k) for k in range(2)]
        close_round(shop, plan)
        plan = opened(shop, EQUAL, 1)
        new = deliver(shop, plan, 0)
        close_round(shop, plan, missing=(1,))
        torch.testing.assert_close(
            base_outputs(shop, plan, 2),
            mean_outputs(shop, plan, {0: new, 1: old[1]}),
            rtol=0,
            atol=1e-5,
        )
        names = sorted(path.name for path in (tmp_path / "parts").iterdir())
        assert names == ["r00000-p1.safetensors", "r00001-p0.safetensors"]


def test_in_mode_residual_what_a_lost_part_held_stays_as_it_was(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(RESIDUAL, store)
        plan = opened(shop, EQUAL, 0)
        deliver(shop, plan, 1)
        close_round(shop, plan, missing=(0,))
        before, after = (load_tensors(store.base_path(base_name(v))) for v in (0, 1))
        lost, live = (plan.parts[k].part.units["0"] for k in (0, 1))
        assert torch.equal(before["0.weight"][list(lost)], after["0.weight"][list(lost)])
        assert (before["0.weight"][list(live)] != after["0.weight"][list(live)]).all()


def test_an_update_of_another_part_is_refused(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(BLOCK, store)
        plan = opened(shop, UNEVEN, 0)
        save_tensors(shop.update_path(0, 1), train(shop, plan, 0), durable=False)
        with pytest.raises(UpdateRefusedError, match="has shape"):
            shop.inspector.check(shop.update_path(0, 1), plan, 1)


def test_the_base_is_evaluated_as_often_as_asked_and_always_at_the_end(tmp_path: Path) -> None:
    def evaluated(folder: Path, config: RunConfig) -> list[bool]:
        run(folder, config)
        with closing(Store(folder)) as store:
            results: Sequence[RoundResult] = [found[0] for found in store.results().values()]
        return [result.accuracy is not None for result in results]

    assert evaluated(tmp_path / "always", BLOCK) == [True, True]
    assert evaluated(tmp_path / "last", config_of(evaluate_every=0)) == [False, True]


def test_a_merge_that_is_not_the_mean_of_its_parts_stops_the_round(tmp_path: Path) -> None:
    """A model whose output depends on its width: no slot and no count can tell."""

    class Biased(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            for layer in self:
                inputs = layer(inputs)
            return inputs * len(self.get_parameter("0.bias"))

    def biased() -> nn.Module:
        return Biased(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    task = Task(biased, samples, samples, nn.functional.cross_entropy)
    with closing(Store(tmp_path)) as store:
        workshop_of(BLOCK, store)  # writes clusters
        shop = Workshop(BLOCK, store, Base(task, CPU), samples(), samples())
        store.base_path(base_name(0)).unlink()
        shop.first_base.write()
        plan = shop.cutter.plan_round(EQUAL, 0)
        store.open_round(plan, at=0.0)
        for k, planned in enumerate(plan.parts):
            narrow = fresh_module(cut_module(biased(), shop.base.widths, planned.part), k)
            save_tensors(shop.update_path(0, k), narrow.state_dict(), durable=False)
            blob = blob_of(shop.update_path(0, k))
            update = Update(f"r0-p{k}", 0, k, "", planned.num_samples, 0.5, 1.0, 1.0, 1, blob)
            store.take_update(f"node-{k}", update, at=0.0)
        with pytest.raises(WidthError, match="does not compute the mean of its parts"):
            shop.merge_round(plan, (), Stages())
        assert store.results() == {}


def test_weights_too_large_to_be_added_up_do_not_stop_the_round(tmp_path: Path) -> None:
    """They are finite, and so are the part's outputs: one node must not end the run by them.

    What overflows within the part meets the zeros between parts, and is nan.
    """

    def plain() -> nn.Module:
        layers = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
        return nn.Sequential(*layers)

    task = Task(plain, samples, samples, nn.functional.cross_entropy)
    with closing(Store(tmp_path)) as store:
        workshop_of(BLOCK, store)  # writes clusters
        shop = Workshop(BLOCK, store, Base(task, CPU), samples(), samples())
        store.base_path(base_name(0)).unlink()
        shop.first_base.write()
        plan = shop.cutter.plan_round(EQUAL, 0)
        store.open_round(plan, at=0.0)
        for k, planned in enumerate(plan.parts):
            narrow = fresh_module(cut_module(plain(), shop.base.widths, planned.part), k)
            state = narrow.state_dict()
            if k == 0:
                state["0.weight"].fill_(1.6e38)
                state["2.weight"].fill_(-1.6e38)
            path = shop.update_path(0, k)
            save_tensors(path, state, durable=False)
            blob = blob_of(path)
            update = Update(f"r0-p{k}", 0, k, "", planned.num_samples, 0.5, 1.0, 1.0, 1, blob)
            store.take_update(f"node-{k}", update, 0.0, shop.inspector.check(path, plan, k))
        result, _ = shop.merge_round(plan, (), Stages())
        assert file_digest(store.base_path(result.base)) == result.digest
