from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from tests.unit.test_structural import SETTINGS
from tests.width_models import MODELS
from torch import Tensor, nn

from partsum.coordinator.base import Base
from partsum.coordinator.gate_certificate import check_regularisation
from partsum.coordinator.handoff import HandoffJob
from partsum.coordinator.handoff_model import build_model
from partsum.coordinator.planner.complement import block_parts
from partsum.node.model import build_part
from partsum.node.trainer import Job, train
from partsum.shared import wire
from partsum.shared.config import (
    HandoffConfig,
    RegularisationConfig,
    TaskConfig,
    TrainingConfig,
    parse_config,
)
from partsum.shared.errors import ConfigError, PartsumError
from partsum.shared.messages import Assignment, Blob, Part, Regularisation
from partsum.shared.regularisation import (
    regularise,
    survivals,
    with_random_grouping,
    with_stochastic_depth,
)
from partsum.shared.regularisation.grouping import RandomSplit
from partsum.shared.tasks import digits_vit
from partsum.shared.tasks.residual import ResidualBlock, ResidualMlp
from partsum.shared.tasks.transformer import Vit
from partsum.shared.tensors import load_tensors, save_tensors

CPU = torch.device("cpu")


def vit() -> Vit:
    torch.manual_seed(0)
    return Vit(8, 4, 24, 6, 2, 36, 5)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_survival_falls_linearly_with_depth_as_the_paper_has_it() -> None:
    assert survivals(4, 0.6, "linear") == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert survivals(3, 0.6, "constant") == [0.6, 0.6, 0.6]


@pytest.mark.parametrize("kind", ["vit", "gpt2, tied", "llama"])
def test_evaluation_is_the_model_as_it_was_to_the_bit(kind: str) -> None:
    model = MODELS[kind].make().eval()
    inputs = MODELS[kind].inputs()
    expected = model(inputs)
    names = list(model.state_dict())
    regularise(model, Regularisation(survival=0.5, gates_on=0.5, splits=3))
    assert torch.equal(model(inputs), expected)
    assert list(model.state_dict()) == names
    model.train()
    torch.manual_seed(0)
    one, two = model(inputs), model(inputs)
    assert not torch.equal(one, two)


def test_a_branchs_expectation_is_the_branch() -> None:
    torch.manual_seed(0)
    model = ResidualMlp(6, 8, 16, 1, 3).train()
    samples = torch.randn(1, 6).repeat(20_000, 1)
    stream = model.embed(samples)
    block = model.get_submodule("blocks.0")
    expected = block(stream)[0]
    with_stochastic_depth(model, 0.7)
    found = block(stream).mean(dim=0)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def test_each_branch_drops_out_as_often_as_it_should() -> None:
    torch.manual_seed(0)
    model = ResidualMlp(6, 8, 16, 2, 3).train()
    with_stochastic_depth(model, [0.25, 1.0])
    stream = torch.randn(4000, 8)
    stayed = (model.blocks[0](stream) != stream).any(dim=1).float().mean()
    assert stayed == pytest.approx(0.25, abs=0.03)
    assert bool((model.blocks[1](stream) != stream).any(dim=1).all())


def test_branches_can_be_given_by_name_and_survival_one_by_one() -> None:
    model = with_stochastic_depth(vit(), [0.5], branches=["blocks.0.down"])
    hooked = [name for name, module in model.named_modules() if module._forward_hooks]
    assert hooked == ["blocks.0.down"]
    with pytest.raises(ValueError, match="2 survival probabilities, but 4 branches"):
        with_stochastic_depth(vit(), [0.5, 0.5])
    with pytest.raises(ValueError, match=r"survival = 0 of .* is not in"):
        with_stochastic_depth(vit(), 0.0, "constant")


def test_a_model_without_branches_or_groups_is_refused_in_words() -> None:
    with pytest.raises(PartsumError, match="no residual branches were found in Sequential"):
        with_stochastic_depth(nn.Sequential(nn.Linear(3, 3)), 0.5)
    with pytest.raises(PartsumError, match=r"regularisation\.gates_on"):
        with_random_grouping(nn.Sequential(nn.Linear(3, 3)), 0.5, 2)


def test_groups_that_are_all_off_are_the_block_diagonal_layer() -> None:
    torch.manual_seed(0)
    model = ResidualMlp(8, 8, 16, 1, 3).train()
    block = model.blocks[0]
    assert isinstance(block, ResidualBlock)
    stream = torch.randn(5, 8)
    normed = block.norm(stream)
    inner = [
        torch.relu(normed[:, i : i + 4] @ block.up.weight[:, i : i + 4].T + block.up.bias / 2)
        for i in (0, 4)
    ]
    expected = model.head(model.norm(stream + block.down(inner[0] + inner[1])))
    model.embed.weight.data, model.embed.bias.data = torch.eye(8), torch.zeros(8)
    with_random_grouping(model, on=0.0, splits=2)
    torch.testing.assert_close(model(stream), expected)


def test_the_rows_of_a_gate_are_grouped_as_the_rows_that_it_gates() -> None:
    model = MODELS["llama"].make().train()
    with_random_grouping(model, on=0.5, splits=5)
    mlp = "inner.model.layers.0.mlp"
    for seed in range(4):
        torch.manual_seed(seed)
        model(MODELS["llama"].inputs())
        gate = model.get_submodule(f"{mlp}.gate_proj")
        gated = model.get_submodule(f"{mlp}.up_proj")
        assert isinstance(gate, RandomSplit)
        assert isinstance(gated, RandomSplit)
        assert gate.groups == gated.groups


def train_once(folder: Path, name: str, regularisation: Regularisation) -> dict[str, Tensor]:
    task = digits_vit(width=16, layers=2)
    job = Job(
        assignment=Assignment(
            id=name,
            round=0,
            part_index=0,
            part=Part({}),
            seed=3,
            start=None,
            cluster=Blob("0" * 32, 8 * 640),
            samples=None,
            first_sample=0,
            num_samples=640,
            progress=(0.0, 0.8),
            settings=dataclasses.replace(SETTINGS, regularisation=regularisation),
        ),
        start=None,
        optimizer=None,
        cluster=torch.arange(640),
        samples=task.train(),
        output=folder / name,
        device=CPU,
    )
    train(task, job, lambda progress: None, lambda: False)
    return dict(load_tensors(folder / name))


def test_a_node_draws_the_same_gates_from_the_same_seed_and_its_update_is_any_parts(
    tmp_path: Path,
) -> None:
    wanted = Regularisation(survival=0.6, gates_on=0.5, splits=2)
    plain = train_once(tmp_path, "plain", Regularisation())
    torch.manual_seed(11)  # whatever the process did before
    one = train_once(tmp_path, "one", wanted)
    torch.manual_seed(12)
    two = train_once(tmp_path, "two", wanted)
    assert plain.keys() == one.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], plain[name]) for name in one)


def test_settings_travel_and_an_older_side_means_none() -> None:
    wanted = Regularisation(survival=0.6, schedule="constant", gates_on=0.25, splits=7)
    sent = wire.settings_to_wire(dataclasses.replace(SETTINGS, regularisation=wanted))
    assert wire.settings_from_wire(sent).regularisation == wanted
    sent.ClearField("regularisation")
    assert wire.settings_from_wire(sent).regularisation == Regularisation()


def test_the_hand_offs_model_is_regularised_and_saves_as_before(tmp_path: Path) -> None:
    task = digits_vit(width=16, layers=2)
    save_tensors(tmp_path / "base", task.model().state_dict())
    job = HandoffJob(
        task=TaskConfig(),
        base=tmp_path / "base",
        folder=tmp_path,
        seed=0,
        deterministic=True,
        handoff=HandoffConfig(),
        training=TrainingConfig(),
        regularisation=RegularisationConfig(survival=0.5, gates_on=0.5),
        share=0.2,
        norm_parts=[],
    )
    model = build_model(HandoffJob.model_validate_json(job.model_dump_json()), task).train()
    assert model.state_dict().keys() == load_tensors(tmp_path / "base").keys()
    torch.manual_seed(0)
    inputs = images()
    assert not torch.equal(model(inputs), copy.deepcopy(model)(inputs))


def test_gates_that_a_search_decides_are_not_drawn() -> None:
    with pytest.raises(ConfigError, match="such a gate cannot be both"):
        parse_config(
            '[parts]\nplanner = "structures"\n[structures]\ngates = "partial"\n'
            "[regularisation]\ngates_on = 0.5\n"
        )
    with pytest.raises(ConfigError, match="splits = 3 means nothing"):
        parse_config("[regularisation]\nsplits = 3\n")


CLOSED = {
    "attention": ["blocks.0.attention"],
    "mlp": ["blocks.1.mlp"],
    "all": [f"blocks.{k}.{name}" for k in (0, 1) for name in ("attention", "mlp")],
}


@pytest.mark.parametrize("off", CLOSED.values(), ids=CLOSED)
def test_what_is_left_of_a_structure_is_random_on_a_node_and_in_the_hand_off(
    tmp_path: Path, off: list[str]
) -> None:
    both = RegularisationConfig(survival=0.5, gates_on=0.5)
    part = build_part(vit, Part(gates=dict.fromkeys(off, False)), 0, None)
    narrow = regularise(part.module, both, part.whole).train()
    task = digits_vit(width=16, layers=2)
    save_tensors(tmp_path / "base", task.model().state_dict())
    job = HandoffJob(
        task=TaskConfig(),
        base=tmp_path / "base",
        folder=tmp_path,
        seed=0,
        deterministic=True,
        handoff=HandoffConfig(),
        training=TrainingConfig(),
        regularisation=both,
        share=0.2,
        norm_parts=[],
        off=off,
    )
    for model in (narrow, build_model(job, task).train()):
        torch.manual_seed(0)
        inputs = images(16)
        differs = not torch.equal(model(inputs), model(inputs))
        assert differs == (len(off) == 1)


def test_a_slice_that_is_too_narrow_for_the_splits_is_refused_before_a_node_joins() -> None:
    task = digits_vit(width=16, layers=1)
    base = Base(dataclasses.replace(task, model=lambda: ResidualMlp(4, 8, 8, 2, 2)), CPU)
    wanted = RegularisationConfig(gates_on=0.5, splits=8)
    check_regularisation(base, wanted)
    with pytest.raises(PartsumError, match="splits = 8, but no layer of a part"):
        check_regularisation(base, wanted, block_parts(base.widths, (0.5, 0.5)))
