"""Moments that travel in the update's file: any node goes on exactly where another was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from partsum.coordinator.updates import check_update, part_shapes
from partsum.node.trainer import Job, Trained, train
from partsum.shared.config import parse_config
from partsum.shared.errors import ConfigError, UpdateRefusedError
from partsum.shared.messages import Assignment, Blob, Part, TrainSettings
from partsum.shared.moments import is_moment, moment_shapes
from partsum.shared.task import Samples, Task
from partsum.shared.tensors import load_tensors, save_tensors
from partsum.shared.width import find_widths

HALF = Part({"0": tuple(range(8)), "2": tuple(range(8, 16))})
TRAVEL = TrainSettings(
    batch_size=16,
    learning_rate=1e-2,
    width_lr_power=0.5,
    weight_decay=0.01,
    betas=(0.9, 0.99),
    gradient_clip=0.0,
    warmup=0.0,
    precision="float32",
    aggregate="weights",
    deterministic=True,
    carry_moments=True,
)


def model() -> nn.Module:
    layers = [nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)]
    return nn.Sequential(*layers)


def points() -> Samples:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 3, generator=generator)
    return torch.utils.data.TensorDataset(inputs, torch.randint(0, 4, (96,), generator=generator))


def trained(folder: Path, round: int, before: Trained | None, carry: bool) -> Trained:
    """One round of the part; ``carry`` False is a node that keeps its moments to itself."""
    assignment = Assignment(
        id=f"r{round}-p0",
        round=round,
        part_index=0,
        part=HALF,
        seed=7,
        start=before.update.blob if before else None,
        cluster=Blob("0" * 32, 96 * 8),
        samples=None,
        first_sample=96 * round,
        num_samples=96,
        progress=(0.0, 0.5),
        settings=dataclasses.replace(TRAVEL, carry_moments=carry),
    )
    job = Job(
        assignment=assignment,
        start=before.path if before else None,
        optimizer=before.optimizer if before else None,
        cluster=torch.arange(96),
        samples=points(),
        output=folder / f"update-{round}-{carry}",
        device=torch.device("cpu"),
    )
    task = Task(model=model, train=points, validation=points, loss=nn.functional.cross_entropy)
    return train(task, job, lambda progress: None, lambda: False)


def tensors(update: Trained) -> dict[str, torch.Tensor]:
    assert update.path is not None
    return load_tensors(update.path)


def test_a_node_that_only_has_the_update_goes_on_as_the_one_that_trained_it(
    tmp_path: Path,
) -> None:
    stays = trained(tmp_path, 0, None, carry=False)
    stays = trained(tmp_path, 1, stays, carry=False)
    moves = trained(tmp_path, 0, None, carry=True)
    assert moves.optimizer is None, "nothing is left behind on the node"
    moves = trained(tmp_path, 1, moves, carry=True)
    weights = {name: t for name, t in tensors(moves).items() if not is_moment(name)}
    assert {n: t.tolist() for n, t in weights.items()} == {
        n: t.tolist() for n, t in tensors(stays).items()
    }


def test_an_update_whose_moments_are_missing_is_refused_where_they_travel(tmp_path: Path) -> None:
    update = trained(tmp_path, 0, None, carry=True)
    assert update.path is not None
    shapes = part_shapes(model(), find_widths(model()), HALF, moments=True)
    check_update(update.path, shapes)
    short = {name: t for name, t in tensors(update).items() if name != "0.weight/exp_avg"}
    save_tensors(tmp_path / "short", short, durable=False)
    with pytest.raises(UpdateRefusedError, match=r"'0\.weight/exp_avg' is missing"):
        check_update(tmp_path / "short", shapes)


def test_frozen_parameters_have_no_moments() -> None:
    frozen = model()
    frozen[0].weight.requires_grad_(False)  # type: ignore[index]
    names = set(moment_shapes(frozen))
    assert "0.weight/exp_avg" not in names
    assert {"0.bias/step", "0.bias/exp_avg", "0.bias/exp_avg_sq"} <= names


def test_travelling_moments_need_parts_that_are_cut_once_and_for_all() -> None:
    with pytest.raises(ConfigError, match='moments = "travel" needs mode = "block"'):
        parse_config('[parts]\nmode = "residual"\nmoments = "travel"')
