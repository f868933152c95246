"""The ways to spend one training budget, each as the config of a run.

The budget T is in passes of the whole model over all data that the nodes can do together: each
node has T * samples / nodes whole-model samples' worth of FLOPs, whatever it trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from partsum.coordinator.base import Base
from partsum.coordinator.cost import Cost, part_cost
from partsum.coordinator.planner import equal_fractions, plan_parts
from partsum.shared.config import PartsConfig
from partsum.shared.messages import TaskSpec
from partsum.shared.part import WHOLE
from partsum.shared.task import Task, load_task, num_samples

NODES = 4

Config = dict[str, Any]

Configure = Callable[["Workload", "Choice", int], Config]
"""A way to spend the budget: the workload, what is tuned, the seed -> a run's config."""


@dataclass(frozen=True)
class Choice:
    """What is tuned: every method gets a few of these, and its best on the first seed."""

    rate: float = 1e-3
    """Peak learning rate of the whole model, or of the only model that is trained."""
    batch: int = 64
    """Samples in a batch of the hand-off, or of data-parallel training over all nodes."""
    norms: str = "plain"
    rounds: int = 4
    share: float = 0.5
    """Of each node's FLOPs, that which goes into parts."""
    power: float = 1.0
    """Parts train their matrices at rate * 4 ** power."""

    def label(self) -> str:
        """For tables and folder names."""
        own = {k: v for k, v in vars(self).items() if v != getattr(Choice(), k)}
        changed = [f"{k}-{v}" for k, v in own.items() if k not in {"rate", "batch"}]
        return "-".join([f"rate-{self.rate:g}-batch-{self.batch}", *changed])


@dataclass(frozen=True)
class Workload:
    """A model on Fashion-MNIST, and the budget to train it with."""

    name: str
    task: str
    options: dict[str, Any]
    part_options: dict[str, Any]
    """Those of a model as wide as one part."""
    budget: float
    """T."""
    part_batch: int = 64
    evaluate_every: int = 1
    """Rounds of the parts phase between evaluations."""
    evaluations: int = 4
    """In the hand-off, on its way."""

    @functools.cached_property
    def costs(self) -> tuple[Cost, Cost, int]:
        """Of the whole model and of a part, and the number of training samples."""
        task: Task = load_task(TaskSpec(self.task, self.options))
        base, train = Base(task, torch.device("cpu")), task.train()
        part = plan_parts(PartsConfig(count=NODES), base.widths, equal_fractions(NODES), 0, 0)[0]
        whole = part_cost(base.shape, base.widths, WHOLE, task, train, self.part_batch)
        narrow = part_cost(base.shape, base.widths, part, task, train, self.part_batch)
        return whole, narrow, num_samples(train)

    @property
    def part_speed(self) -> float:
        """How many samples a part takes for the FLOPs of one of the whole model."""
        whole, narrow, _ = self.costs
        return whole.flops_per_sample / narrow.flops_per_sample

    def config(self, seed: int, **tables: Config) -> Config:
        """A run's config: the task, and what all methods share."""
        return {
            "name": self.name,
            "seed": seed,
            "task": {"name": self.task, "options": self.options},
            **tables,
        }

    def rounds(self, choice: Choice, epochs: float) -> Config:
        """The table of a parts phase in which each node passes over its data so many times."""
        return {
            "count": NODES,
            "rounds": choice.rounds,
            "local_epochs": epochs / choice.rounds,
            "evaluate_every": self.evaluate_every,
        }

    def training(self, choice: Choice) -> Config:
        """The table of how nodes train."""
        return {
            "batch_size": self.part_batch,
            "learning_rate": choice.rate,
            "width_lr_power": choice.power,
        }

    def handoff(self, choice: Choice, epochs: float) -> Config:
        """The table of a hand-off over so many passes."""
        return {
            "epochs": epochs,
            "batch_size": choice.batch,
            "norms": choice.norms,
            "evaluations": self.evaluations,
            "checkpoint_every_steps": 1_000_000,  # a killed benchmark starts the run anew
        }


@dataclass(frozen=True)
class Method:
    """A way to train, with the choices it is tuned over."""

    name: str
    title: str
    configure: Configure
    choices: tuple[Choice, ...]
    nodes: int = NODES
    cloned: bool = False
    """The run trains one part, which is then cloned and handed off (see `clones`)."""


def parts_then_handoff(load: Workload, choice: Choice, seed: int) -> Config:
    """Complementary parts for a share of the FLOPs, then DeepSpeed on the merged base."""
    return load.config(
        seed,
        parts=load.rounds(choice, choice.share * load.budget * load.part_speed),
        training=load.training(choice),
        handoff=load.handoff(choice, (1 - choice.share) * load.budget),
    )


def data_parallel(load: Workload, choice: Choice, seed: int) -> Config:
    """The same DeepSpeed job from a fresh base.

    Synchronous data-parallel training over four nodes is training with their global batch, so one
    process computes exactly what the four would.
    """
    return load.config(
        seed,
        parts={"rounds": 0},
        training=load.training(choice),
        handoff=load.handoff(choice, load.budget),
    )


def federated_averaging(load: Workload, choice: Choice, seed: int) -> Config:
    """Every node trains the whole model on its quarter of the data; averaged each round."""
    return load.config(
        seed,
        parts={"planner": "full", **load.rounds(choice, load.budget)},
        training={**load.training(choice), "batch_size": choice.batch},
        handoff={"enabled": False},
    )


def never_merged(load: Workload, choice: Choice, seed: int) -> Config:
    """Parts for the whole budget; the merged base with grouped norms is their ensemble."""
    return load.config(
        seed,
        parts=load.rounds(choice, load.budget * load.part_speed),
        training=load.training(choice),
        handoff={"enabled": False},
    )


def one_slice(load: Workload, choice: Choice, seed: int) -> Config:
    """One model as wide as a part, trained by all nodes with federated averaging.

    It has no width to scale its learning rate by: the choice's is its own.
    """
    config = load.config(
        seed,
        parts={
            "planner": "full",
            **load.rounds(choice, choice.share * load.budget * load.part_speed),
        },
        training={**load.training(choice), "parts_share": choice.share},
        handoff={"enabled": False},
    )
    return {**config, "task": {"name": load.task, "options": load.part_options}}
