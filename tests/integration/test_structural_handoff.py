"""Structural experts under DeepSpeed, with stochastic depth: as any other base."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from partsum.coordinator.handoff import HandoffJob, run_handoff
from partsum.shared.config import (
    HandoffConfig,
    RegularisationConfig,
    TaskConfig,
    TrainingConfig,
)
from partsum.shared.messages import TaskSpec
from partsum.shared.part import fresh_module
from partsum.shared.task import load_task
from partsum.shared.tensors import load_tensors, save_tensors

pytestmark = [pytest.mark.timeout(300)]


def test_experts_are_handed_off_to_zero_3_and_their_loss_goes_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options: dict[str, int | float | str | bool | list[int]] = {
        "width": 32,
        "experts": 8,
        "experts_per_token": 2,
    }
    task = load_task(TaskSpec("partsum.shared.tasks:digits_vit", options))
    model = fresh_module(task.model(), 0)
    save_tensors(tmp_path / "base.safetensors", model.state_dict())
    job = HandoffJob(
        task=TaskConfig(name="partsum.shared.tasks:digits_vit", options=options),
        base=tmp_path / "base.safetensors",
        folder=tmp_path / "handoff",
        seed=3,
        deterministic=True,
        handoff=HandoffConfig(epochs=6.0, batch_size=32, learning_rate=3e-3, zero_stage=3),
        training=TrainingConfig(),
        regularisation=RegularisationConfig(survival=0.9),
        share=0.25,
        norm_parts=[],
    )
    result = asyncio.run(run_handoff(job, lambda progress: None))
    assert result.scores.loss < 0.6 * result.start_scores.loss
    final = load_tensors(result.final)
    model.load_state_dict(final, strict=True)
    router = "blocks.0.router.weight"
    assert not torch.equal(final[router], load_tensors(job.base)[router])
