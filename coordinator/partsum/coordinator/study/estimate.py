"""What a study will cost: FLOPs counted, and time by a few steps that are really made here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from partsum.coordinator.base import Base
from partsum.coordinator.cost import part_cost
from partsum.coordinator.planner.sweep import Cell, cells
from partsum.coordinator.study.cutter import any_part, studied
from partsum.shared.config import RunConfig
from partsum.shared.part import Part, cut_module, fresh_module
from partsum.shared.task import Samples, gather, num_samples

_WARM_STEPS, _STEPS = 2, 5


@dataclass(frozen=True)
class Estimate:
    """What one model of the study costs."""

    keep: float
    parameters: int
    flops: int  # of all its training
    memory_bytes: int
    seconds: float  # of all its training, on one thread of this machine


def estimates(
    config: RunConfig, base: Base, train: Samples, clock: Callable[[], float]
) -> dict[float, Estimate]:
    """Of a cell of each width that is kept; times are rough, for steps on a busy machine vary."""
    found = {}
    for keep in sorted({cell.keep for cell in cells(config.study)} | {1.0}):
        part = any_part(studied(base.widths, config.study.depth), keep, config.seed)
        batch = config.training.batch_size
        cost = part_cost(base.shape, base.widths, part, base.task, train, batch)
        total = num_samples(train)
        samples = max(1, round(config.study.epochs * total))
        step = step_seconds(base, part, train, min(batch, total), clock)
        found[keep] = Estimate(
            keep=keep,
            parameters=cost.parameters,
            flops=samples * cost.flops_per_sample,
            memory_bytes=cost.memory_bytes,
            seconds=step * samples / batch,
        )
    return found


def step_seconds(
    base: Base, part: Part, train: Samples, batch: int, clock: Callable[[], float]
) -> float:
    """The median of some training steps of the part, forward to AdamW, the first left out."""
    model = fresh_module(cut_module(base.task.model(), base.widths, part), 0).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    times = [clock()]
    for _ in range(_WARM_STEPS + _STEPS):
        _step(base, model, optimizer, train, batch)
        times.append(clock())
    return statistics.median(after - before for before, after in pairwise(times[_WARM_STEPS:]))


def _step(
    base: Base, model: nn.Module, optimizer: torch.optim.Optimizer, train: Samples, batch: int
) -> None:
    inputs, targets = gather(train, torch.arange(batch))
    torch.autograd.backward(base.task.loss(model(inputs), targets))
    optimizer.step()
    optimizer.zero_grad()


def makespan(seconds: Sequence[float], nodes: int) -> float:
    """How long the nodes take that get the next model, in this order, as soon as they are free."""
    free_at = [0.0] * max(1, nodes)
    for each in seconds:
        first = free_at.index(min(free_at))
        free_at[first] += each
    return max(free_at)


def kinds(config: RunConfig) -> list[tuple[Cell, int]]:
    """Cells that differ in more than their seed, in order, with how many seeds each has."""
    counted: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells(config.study):
        key = (cell.start, cell.selection, cell.keep, cell.data)
        counted.setdefault(key, []).append(cell)
    return [(group[0], len(group)) for group in counted.values()]
