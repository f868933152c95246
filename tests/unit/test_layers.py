"""How far each layer goes: depths of the models that people build, and steps worked out by hand."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_workshop import (
    EQUAL,
    FULL,
    UNEVEN,
    close_round,
    config_of,
    deliver,
    opened,
    run,
    workshop_of,
)
from torch import Tensor, nn

from partsum.coordinator.clock import Stages
from partsum.coordinator.cutter import base_name
from partsum.coordinator.outer import Scaled, scaled
from partsum.coordinator.store import Store
from partsum.coordinator.strategies.layers import layer_depths, step_factors
from partsum.shared.config import OuterConfig, RunConfig
from partsum.shared.errors import WidthError
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tasks.transformer import CharGpt
from partsum.shared.tensors import load_tensors


def outer(**values: Any) -> OuterConfig:
    return OuterConfig.model_validate(values)


class To:
    """A merge that puts one value everywhere."""

    def __init__(self, value: float) -> None:
        self.value = value

    def merge(self, name: str, old: Tensor) -> Tensor:
        return torch.full_like(old, self.value)


# -- depths ----------------------------------------------------------------------------------------


def test_in_a_chain_every_layer_with_weights_is_one_deeper() -> None:
    depths = layer_depths(Mlp(4, [5, 6, 7], 2))
    assert depths["linear1.weight"] == depths["linear1.bias"] == 1
    assert depths["linear2.weight"] == 2
    assert depths["linear3.bias"] == 3
    assert depths["head.weight"] == 4


def test_in_a_transformer_a_block_is_a_layer_and_the_ends_go_with_their_neighbours() -> None:
    depths = layer_depths(CharGpt(9, 8, 8, 2, 3))
    assert {depths[name] for name in ("embed.weight", "positions.weight")} == {1}
    for index in range(3):
        inside = {d for name, d in depths.items() if name.startswith(f"blocks.{index}.")}
        assert inside == {index + 1}
    assert {depths[name] for name in ("norm.weight", "norm.bias", "head.weight")} == {3}


def test_blocks_in_stages_are_counted_through_and_not_looked_into() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))

    class Staged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 3, 1)
            self.stage1 = nn.Sequential(block(), block())
            self.stage2 = nn.Sequential(block(), nn.ReLU())
            self.fc = nn.Linear(3, 2)

    depths = layer_depths(Staged())
    assert depths["stem.weight"] == 1
    assert depths["stage1.0.0.weight"] == depths["stage1.0.2.bias"] == 1
    assert depths["stage1.1.2.weight"] == 2
    assert depths["stage2.0.0.weight"] == depths["fc.weight"] == 3


def test_a_tied_head_has_its_embeddings_depth_and_frozen_layers_do_not_count() -> None:
    model = CharGpt(9, 8, 8, 2, 3)
    model.head.weight = model.embed.weight
    model.blocks[0].requires_grad_(False)
    depths = layer_depths(model)
    assert depths["head.weight"] == depths["embed.weight"] == 1
    assert depths["blocks.1.up.weight"] == 1
    assert depths["blocks.2.up.weight"] == depths["head.bias"] == 2
    assert "blocks.0.up.weight" not in step_factors(outer(layer_scaling=[1, 2]), model)


def test_a_model_of_one_layer_cannot_be_scaled_by_depth() -> None:
    with pytest.raises(WidthError, match="Linear has one layer only"):
        step_factors(outer(layer_scaling=[0.5, 1]), nn.Linear(2, 2))
    assert step_factors(outer(learning_rate=2.0), nn.Linear(2, 2)) == {"weight": 2.0, "bias": 2.0}


# -- steps -----------------------------------------------------------------------------------------


def test_task_arithmetic_adds_lambda_times_the_sum_of_all_changes(tmp_path: Path) -> None:
    """With K updates that count alike the rate is lambda K."""
    coefficient, k = 0.3, 2
    config = FULL.model_copy(update={"outer": outer(learning_rate=coefficient * k)})
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        plan = opened(shop, EQUAL, 0)
        sent = [deliver(shop, plan, part) for part in range(k)]
        close_round(shop, plan)
        before, after = (load_tensors(store.base_path(base_name(v))) for v in (0, 1))
    for name in ("0.weight", "3.bias", "4.weight", "6.weight"):
        total = sum((state[name] - before[name] for state in sent), torch.zeros(()))
        torch.testing.assert_close(after[name], before[name] + coefficient * total)
    # What is not trained is the mean, and batch norm's statistics are those of the new base.
    torch.testing.assert_close(after["3.scale"], (sent[0]["3.scale"] + sent[1]["3.scale"]) / 2)
    assert after["1.num_batches_tracked"] > 0


def test_layers_go_linearly_further_with_depth(tmp_path: Path) -> None:
    """Five layers with weights, factors 0.5 to 1.5 times a rate of 2: 1, 1.5, 2, 2.5, 3."""
    config = FULL.model_copy(update={"outer": outer(learning_rate=2.0, layer_scaling=[0.5, 1.5])})
    plain = tmp_path / "plain"
    run(plain, FULL)
    run(tmp_path / "scaled", config)
    start, mean = (load_tensors(plain / "bases" / base_name(v)) for v in (0, 1))
    found = load_tensors(tmp_path / "scaled" / "bases" / base_name(1))
    factors = {"0": 1.0, "1": 1.5, "3": 2.0, "4": 2.5, "6": 3.0}
    for module, factor in factors.items():
        for leaf in ("weight", "bias"):
            name = f"{module}.{leaf}"
            expected = start[name] + factor * (mean[name] - start[name])
            torch.testing.assert_close(found[name], expected)
    assert found["3.scale"] == mean["3.scale"]


def test_an_optimizers_step_is_scaled_and_its_moments_are_not(tmp_path: Path) -> None:
    given = {"optimizer": "nesterov", "learning_rate": 0.5, "momentum": 0.5}
    plain = FULL.model_copy(update={"outer": outer(**given)})
    scaled = FULL.model_copy(update={"outer": outer(**given, layer_scaling=[1, 2])})
    run(tmp_path / "plain", plain)
    run(tmp_path / "scaled", scaled)
    start, once, twice = (
        load_tensors(tmp_path / folder / "bases" / base_name(version))
        for folder, version in (("plain", 0), ("plain", 1), ("scaled", 1))
    )
    assert torch.equal(once["0.weight"], twice["0.weight"])
    change = once["6.weight"] - start["6.weight"]
    torch.testing.assert_close(twice["6.weight"] - start["6.weight"], 2 * change)
    moments = "bases/moments-00001.safetensors"
    kept = [(tmp_path / folder / moments).read_bytes() for folder in ("plain", "scaled")]
    assert kept[0] == kept[1]


def test_a_merger_that_nothing_scales_stays_itself_and_may_go_by_rows() -> None:
    merger = To(1.0)
    assert scaled(merger, {}) is merger
    assert scaled(merger, step_factors(outer(), nn.Linear(2, 2))) is merger
    assert isinstance(scaled(merger, {"w": 0.5}), Scaled)


numbers = st.floats(-1e6, 1e6, width=32)


@given(numbers, numbers)
def test_a_factor_of_one_changes_no_bit_and_what_did_not_move_stays(old: float, to: float) -> None:
    start = torch.tensor([old])
    assert torch.equal(Scaled(To(to), {"w": 1.0}).merge("w", start), torch.tensor([to]))
    for factor in (0.0, 0.3, 2.5):
        assert torch.equal(Scaled(To(old), {"w": factor}).merge("w", start), start)
    assert torch.equal(Scaled(To(to), {"w": 0.0}).merge("w", start), start)
    assert torch.equal(Scaled(To(to), {}).merge("w", start), torch.tensor([to]))


def test_factors_of_one_give_the_averages_bytes(tmp_path: Path) -> None:
    same = FULL.model_copy(update={"outer": outer(learning_rate=1.0, layer_scaling=[1, 1])})
    assert run(tmp_path / "a", same) == run(tmp_path / "b", FULL)


@pytest.mark.parametrize("parts", [{"planner": "full"}, {"mode": "residual"}])
def test_a_scaled_merge_that_died_before_its_commit_is_done_again_to_the_byte(
    tmp_path: Path, parts: dict[str, str]
) -> None:
    config: RunConfig = config_of(**parts).model_copy(
        update={"outer": outer(learning_rate=1.5, layer_scaling=[0.5, 1.5])}
    )
    expected = run(tmp_path / "undisturbed", config, UNEVEN)
    digests = []
    for round in range(2):
        with closing(Store(tmp_path / "killed")) as store:  # merged, and dead before the commit
            shop = workshop_of(config, store)
            plan = opened(shop, UNEVEN, round)
            for k in range(2):
                deliver(shop, plan, k)
            shop.merge_round(plan, (), Stages())
        with closing(Store(tmp_path / "killed")) as store:
            shop = workshop_of(config, store)
            digests.append(close_round(shop, opened(shop, UNEVEN, round)).digest)
    assert digests == expected


def test_in_mode_residual_what_a_lost_part_held_stays_as_it_was(tmp_path: Path) -> None:
    config = config_of(mode="residual").model_copy(update={"outer": outer(learning_rate=3.0)})
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        plan = opened(shop, EQUAL, 0)
        deliver(shop, plan, 1)
        close_round(shop, plan, missing=(0,))
        before, after = (load_tensors(store.base_path(base_name(v))) for v in (0, 1))
    lost = list(plan.parts[0].part.units["0"])
    assert torch.equal(before["0.weight"][lost], after["0.weight"][lost])
    assert before["3.scale"] == after["3.scale"] == 0.5
