"""A task with a budget to train it with, and what every method needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.cost import Cost, part_cost
from partsum.coordinator.planner import equal_fractions
from partsum.coordinator.planner.complement import block_parts
from partsum.shared.messages import TaskSpec
from partsum.shared.norms import group_norms
from partsum.shared.part import WHOLE, Part
from partsum.shared.task import (
    Samples,
    Scores,
    Task,
    evaluate,
    gather,
    load_samples,
    load_task,
    num_samples,
)

CPU = torch.device("cpu")
_COUNTED_BATCH = 8  # FLOPs of a sample do not depend on it


@dataclass(frozen=True)
class Workload:
    """A task, nodes, and how long they may train.

    ``budget`` is T: passes of the whole model over all data that the nodes can do together, by
    FLOPs. ``glance`` validation samples are looked at on the way, all of them at the end.
    """

    name: str
    spec: TaskSpec
    budget: float
    nodes: int = 4
    glance: int = 2000

    @cached_property
    def task(self) -> Task:
        """The task itself."""
        return load_task(self.spec)

    @cached_property
    def train(self) -> Samples:
        """The training samples, loaded once."""
        return load_samples(self.task.train, "training")

    @cached_property
    def validation(self) -> Samples:
        """All validation samples."""
        return load_samples(self.task.validation, "validation")

    @cached_property
    def glanced(self) -> Samples:
        """``glance`` validation samples, spread evenly over all of them."""
        total = num_samples(self.validation)
        kept = torch.linspace(0, total - 1, min(self.glance, total)).long()
        return TensorDataset(*gather(self.validation, kept))

    @cached_property
    def base(self) -> Base:
        """The whole model's shape and widths."""
        return Base(self.task, CPU)

    @cached_property
    def samples(self) -> int:
        """How many training samples there are."""
        return num_samples(self.train)

    def parts(self, count: int) -> list[Part]:
        """That many complementary parts; one is the whole model."""
        return block_parts(self.base.widths, equal_fractions(count)) if count > 1 else [WHOLE]

    def cost(self, part: Part) -> Cost:
        """A part's FLOPs and bytes."""
        base = self.base
        return part_cost(base.shape, base.widths, part, self.task, self.train, _COUNTED_BATCH)

    @cached_property
    def whole(self) -> Cost:
        """The whole model's FLOPs and bytes."""
        return self.cost(WHOLE)

    @property
    def node_flops(self) -> float:
        """What each node may spend."""
        return self.budget * self.samples * self.whole.flops_per_sample / self.nodes

    def model(self, groups: int) -> nn.Module:
        """The whole model, its layer norms over that many slices of the width."""
        model = self.task.model()
        return group_norms(model, self.base.widths, self.parts(groups)) if groups > 1 else model

    def scores(self, model: nn.Module, state: dict[str, Tensor], glance: bool) -> Scores:
        """Of a model with these weights, on a few validation samples or all."""
        model.load_state_dict(state)
        samples = self.glanced if glance else self.validation
        return evaluate(model.eval(), self.task, samples, CPU)
