"""The baseline "one slice, cloned": a part-sized model, copied with noise into every part's place.

It asks whether parts have to be different models, or whether "small first, then grow" is enough.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from partsum.coordinator.base import Base
from partsum.coordinator.handoff import HandoffJob, HandoffProgress, run_handoff
from partsum.coordinator.merge import BLOCK, Contribution, Tensors, merge_files
from partsum.coordinator.planner import equal_fractions, plan_parts
from partsum.shared.config import RunConfig
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_task
from partsum.shared.tensors import load_tensors

NOISE = 0.1  # of each matrix's spread; clones without noise stay symmetric for ever


@dataclass(frozen=True)
class Point:
    """The whole model at one moment of its hand-off."""

    step: int
    seconds: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Grown:
    """A hand-off of clones: where it was evaluated, and the most memory it held."""

    points: tuple[Point, ...]
    peak_memory_bytes: int


_GROWN = TypeAdapter(Grown)


def grow(slice_file: Path, config: RunConfig, share: float, folder: Path) -> Grown:
    """Clone a part-sized model into the base of ``config`` and hand it to DeepSpeed.

    What was found is kept in ``folder``, and taken from there where it is.

    Args:
        slice_file: the weights of a model as wide as each of ``config.parts.count`` parts.
        config: the task of the whole model, and its hand-off.
        share: where on the schedule the hand-off starts.
        folder: its own.
    """
    kept = folder / "grown.json"
    if kept.exists():
        return _GROWN.validate_json(kept.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    job = HandoffJob(
        task=config.task,
        base=_cloned_base(slice_file, config, folder),
        folder=folder / "handoff",
        seed=config.seed,
        deterministic=config.deterministic,
        handoff=config.handoff,
        training=config.training,
        share=share,
        norm_parts=[],
    )
    points: list[Point] = []
    begun = time.monotonic()

    def note(progress: HandoffProgress) -> None:
        scores = progress.scores
        if scores is not None:
            seconds = time.monotonic() - begun
            points.append(Point(progress.step, seconds, scores.loss, scores.accuracy))

    result = asyncio.run(run_handoff(job, note))
    grown = Grown(tuple(points), result.peak_memory_bytes)
    kept.write_bytes(_GROWN.dump_json(grown, indent=2))
    return grown


def _cloned_base(slice_file: Path, config: RunConfig, folder: Path) -> Path:
    base = Base(load_task(TaskSpec(config.task.name, config.task.options)), torch.device("cpu"))
    fresh, cloned = folder / "fresh.safetensors", folder / "cloned.safetensors"
    base.initial(fresh, config.seed, 1.0)
    count = config.parts.count
    parts = plan_parts(config.parts, base.widths, equal_fractions(count), config.seed, 0)
    tensors = clones(load_tensors(slice_file), count, config.seed)
    shares = [Contribution(p, Tensors(t), 1.0) for p, t in zip(parts, tensors, strict=True)]
    merge_files(fresh, shares, base.widths, BLOCK, cloned, {})
    return cloned


def clones(tensors: dict[str, Tensor], count: int, seed: int) -> Sequence[dict[str, Tensor]]:
    """Copies whose matrices differ by noise; vectors and integers are the same in all."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dim() < 2:
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor + NOISE * tensor.std() * noise

    return [{name: noisy(tensor) for name, tensor in tensors.items()} for _ in range(count)]
