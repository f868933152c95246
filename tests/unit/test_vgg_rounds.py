"""Rounds of a VGG with batch norms: parts that really train, merged by the coordinator."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.cutter import base_name, blob_of, write_clusters
from partsum.coordinator.invariants import certify
from partsum.coordinator.planner import equal_fractions, plan_parts
from partsum.coordinator.records import RoundPlan, RoundResult
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.coordinator.workshop import Workshop
from partsum.node.model import build_part
from partsum.shared.config import PartsConfig, RunConfig
from partsum.shared.messages import Update
from partsum.shared.task import Task
from partsum.shared.tasks import digits
from partsum.shared.tasks.vgg import Vgg
from partsum.shared.tensors import load_tensors, save_tensors
from partsum.shared.width import with_scales

CPU = torch.device("cpu")
COUNT = 4


def model() -> nn.Module:
    return with_scales(Vgg(8, 1, (16, 16, 0, 32, 0), (32,), 10))


TASK: Task = replace(digits(), model=model)


@pytest.fixture(scope="module")
def data() -> tuple[TensorDataset, TensorDataset]:
    train, validation = TASK.train(), TASK.validation()
    assert isinstance(train, TensorDataset)
    assert isinstance(validation, TensorDataset)
    return train, validation


def train_part(shop: Workshop, plan: RoundPlan, k: int, images: TensorDataset) -> nn.Module:
    """A few epochs of a node's part on its quarter of the images."""
    planned = plan.parts[k]
    start = shop.cutter.blob_paths(plan)[planned.start.digest] if planned.start else None
    narrow = build_part(model, planned.part, planned.seed, start).module.train()
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=5e-3)
    inputs, targets = (tensor[k::COUNT] for tensor in images.tensors)
    for _ in range(4):
        for batch in torch.split(torch.arange(len(inputs)), 64):
            loss = TASK.loss(narrow(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return narrow


def deliver(shop: Workshop, plan: RoundPlan, k: int, narrow: nn.Module) -> None:
    path = shop.update_path(plan.round, k)
    digest = save_tensors(path, dict(narrow.state_dict()), durable=False)
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
    shop.store.take_update(f"node-{k}", update, 0.0, shop.inspector.check(path, plan, k))


def play(
    folder: Path, config: RunConfig, data: tuple[TensorDataset, TensorDataset]
) -> tuple[RoundResult, dict[str, torch.Tensor]]:
    """Two rounds; the last one's result and base."""
    train, validation = data
    with closing(Store(folder)) as store:
        shop = Workshop(config, store, Base(TASK, CPU), train, validation)
        shop.first_base.write()
        clusters = [np.arange(k, len(train), COUNT) for k in range(COUNT)]
        write_clusters(store.folder / "clusters", clusters)
        workplan = Workplan(tuple(equal_fractions(COUNT)), ("",) * COUNT, 0.25)
        for round in range(2):
            plan = shop.cutter.plan_round(workplan, round)
            store.open_round(plan, at=0.0)
            for k in range(COUNT):
                deliver(shop, plan, k, train_part(shop, plan, k, train))
            result, facts = shop.merge_round(plan, (), Stages())
            store.commit_round(round, result, 1.0, facts)
        return result, load_tensors(store.folder / "bases" / base_name(2))


def test_a_vgg_with_batch_norms_learns_in_mode_block_and_merges_to_the_mean_of_its_parts(
    tmp_path: Path,
    data: tuple[TensorDataset, TensorDataset],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = RunConfig(seed=3, parts=PartsConfig(count=COUNT, rounds=2))
    base = Base(TASK, CPU)
    parts = plan_parts(config.parts, base.widths, equal_fractions(COUNT), config.seed, 0)
    certify(base, parts, block=True, samples=data[1])
    with caplog.at_level(logging.WARNING):
        result, state = play(tmp_path, config, data)  # asserts the mean at each merge
    assert not caplog.records
    assert result.accuracy is not None
    assert result.accuracy > 0.6
    assert not bool(state["features.3.weight"][:4, 4:].any())  # no cross blocks
    assert bool((state["features.4.running_var"] != 1).all())


def test_a_vgg_with_batch_norms_learns_in_mode_residual_without_scales_before_norms(
    tmp_path: Path, data: tuple[TensorDataset, TensorDataset]
) -> None:
    config = RunConfig(seed=3, parts=PartsConfig(count=COUNT, rounds=2, mode="residual"))
    result, state = play(tmp_path, config, data)
    assert [name for name in state if name.endswith("scale")] == ["classifier.0.scale"]
    assert float(state["classifier.0.scale"]) == 1 / COUNT
    assert result.accuracy is not None
    assert result.accuracy > 0.6
