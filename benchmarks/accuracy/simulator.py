"""Parts, hand-off and data-parallel training in one process, by the product's own functions.

All three are stages of one recipe: a stage trains K complementary parts, cut from the merged base
of the stage before. Four parts and then one is partsum; one part alone is synchronous data-parallel
training (one process with the whole batch computes what four nodes with a quarter each would); four
parts alone are the never-merged ensemble. With fewer parts than nodes, nodes share a part and split
its batch; with more, a node trains several in turn. What all that costs is said in `costs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from benchmarks.accuracy.learner import MOMENTS, Learner, State
from benchmarks.accuracy.workload import Workload
from torch import Tensor

from partsum.coordinator.base import seeded_model
from partsum.coordinator.clusters import make_clusters
from partsum.coordinator.merge import AVERAGE, BLOCK, Contribution, MergeRule, Tensors, merge_state
from partsum.coordinator.planner import equal_fractions
from partsum.coordinator.planner.complement import block_parts
from partsum.node.model import build_part
from partsum.shared.config import DataConfig
from partsum.shared.messages import TrainSettings
from partsum.shared.norms import group_norms
from partsum.shared.part import WHOLE, Part, cut_tensors
from partsum.shared.schedule import handoff_rate, rate
from partsum.shared.width import find_widths

Schedule = Callable[[float, float, float], float]
"""(progress of the run, that at which the stage began, warm-up) -> factor on the peak rate."""

_CLONE_NOISE = 0.1  # of each matrix's spread; clones without noise stay symmetric for ever


def one_cosine(progress: float, begin: float, warmup: float) -> float:
    """The product's schedule: a cosine over the whole run, a short ramp where a stage begins."""
    return handoff_rate(progress, begin, warmup) if begin else rate(progress, warmup)


@dataclass(frozen=True)
class Stage:
    """Training of K parts for a share of the budget."""

    parts: int
    share: float
    """Of each node's FLOPs."""
    batch: int = 64
    """Samples in a part's batch; where nodes share a part, over all of them."""
    rounds: int = 4
    """How often the parts are merged, and the base is looked at."""
    rate: float = 1.0
    """A factor on the recipe's learning rate."""
    power: float = 1.0
    """Parts train their matrices at rate * K ** power."""
    cross: float = 0.0
    """Blocks between the parts of the stage before start as a fresh base's, times this."""
    keep_moments: bool = False
    """Go on with AdamW's moments of the stage before; those of cross blocks start at zero."""
    cloned: bool | Literal["averaged"] = False
    """All nodes train the first part together; the other parts are noisy copies of it. Averaged:
    each node trains on samples of its own, and what they have is averaged each round, not step."""


@dataclass(frozen=True)
class Recipe:
    """Stages, one after the other, under one learning-rate schedule. Shares add up to 1."""

    stages: tuple[Stage, ...]
    learning_rate: float
    grouped: bool = False
    """Layer norms keep to the first stage's slices to the end."""
    clusters: Literal["iid", "labels", "kmeans", "natural"] = "iid"
    warmup: float = 0.01
    schedule: Schedule = one_cosine


@dataclass(frozen=True)
class Mark:
    """The merged base at one moment: when ``done`` of a stage, in (0, 1], was done."""

    stage: int
    done: float
    loss: float
    accuracy: float


def simulate(load: Workload, recipe: Recipe, seed: int) -> tuple[list[Mark], State]:
    """Run a recipe: the base over time, and its last weights.

    The last mark is of all validation samples, the others of a few (see `Workload`).
    """
    marks: list[Mark] = []
    team: Team | None = None
    begin = 0.0
    for number, stage in enumerate(recipe.stages):
        team = Team(load, recipe, stage, seed, begin, team)
        for turn in range(stage.rounds):
            state = team.play(turn)
            last = turn + 1 == stage.rounds and number + 1 == len(recipe.stages)
            scores = load.scores(team.judge, state, glance=not last)
            marks.append(Mark(number, (turn + 1) / stage.rounds, scores.loss, scores.accuracy))
        begin += stage.share
    return marks, state


class Team:
    """One stage's parts, each with its learner.

    Args:
        load: task and nodes.
        recipe: of the whole run.
        stage: what to do now.
        seed: of the run.
        begin: where on the run's schedule the stage begins, in [0, 1).
        before: the team of the stage before, which has played all its turns.
    """

    def __init__(
        self,
        load: Workload,
        recipe: Recipe,
        stage: Stage,
        seed: int,
        begin: float,
        before: Team | None,
    ) -> None:
        self.load, self.recipe, self.stage = load, recipe, stage
        self.seed, self.begin = seed, begin
        self.parts = load.parts(stage.parts)
        self.groups = max(recipe.stages[0].parts if recipe.grouped else 1, stage.parts)
        self.judge = load.model(self.groups)
        self.state: State = {}
        trained = self.parts[:1] * count_learners(load, stage) if stage.cloned else self.parts
        self.ends = turn_ends(load, stage)
        opened = before.opened(stage.cross) if before else None
        self.learners = [
            self._learner(k, part, cluster, opened)
            for k, (part, cluster) in enumerate(zip(trained, self._clusters(), strict=True))
        ]
        if before and stage.keep_moments:
            self._take_moments(before)

    def _learner(self, k: int, part: Part, cluster: Tensor, opened: State | None) -> Learner:
        """A part's learner, from its seed or with the weights of a base."""
        alone, stage = self.stage.parts == 1, self.stage
        seed = self.seed if alone else (self.seed * 1_000_003 + k) % 2**62  # as the coordinator's
        start = self.seed * 1_000_003 % 2**62 if stage.cloned == "averaged" else seed
        model = build_part(self.load.task.model, part, start, None)
        if opened is not None:
            weights = cut_tensors(opened, self.load.base.widths, part)
            for name in self.load.base.widths.readouts:  # which the merge has weighed
                weights[name] = weights[name] * stage.parts
            model.module.load_state_dict(weights)
        inner = self.groups // stage.parts
        if inner > 1:
            widths = find_widths(model.module)
            group_norms(model.module, widths, block_parts(widths, equal_fractions(inner)))
        chosen = settings(
            self.recipe.learning_rate * stage.rate, stage.batch, stage.power, self.recipe.warmup
        )
        return Learner(self.load, model, chosen, cluster, seed)

    def _clusters(self) -> list[Tensor]:
        """Each learner's samples; whoever is alone sees all."""
        load, count = self.load, count_learners(self.load, self.stage)
        if count == 1:
            return [torch.arange(load.samples)]
        config, shares = DataConfig(clusters=self.recipe.clusters), equal_fractions(count)
        found = make_clusters(config, load.task, load.train, shares, self.seed)
        return [torch.from_numpy(indices) for indices in found]

    def play(self, turn: int) -> State:
        """Train all parts through one turn, from 0; returns the merged base's weights."""
        total, span = self.ends[-1], self.stage.share

        def factor(samples: int) -> float:
            progress = self.begin + span * samples / total
            return self.recipe.schedule(progress, self.begin, self.recipe.warmup)

        for learner in self.learners:
            learner.train(self.ends[turn], self.ends[turn + 1], factor)
        if self.stage.cloned == "averaged":
            self._average()
        self.state = self._merge()
        return self.state

    def _average(self) -> None:
        """Let all go on from their mean; moments stay with each (local AdamW)."""
        shares = [Contribution(WHOLE, Tensors(learner.state), 1.0) for learner in self.learners]
        mean = merge_state(self.learners[0].state, shares, self.load.base.widths, AVERAGE)
        for learner in self.learners:
            learner.module.load_state_dict(mean)

    def _merge(self) -> State:
        states = [learner.state for learner in self.learners]
        if self.stage.cloned:
            states = clones(states[0], self.stage.parts, self.seed)
        old = self.judge.state_dict()
        return merge_state(old, self._contributions(states), self.load.base.widths, BLOCK)

    def _contributions(self, states: list[State]) -> list[Contribution]:
        return [Contribution(p, Tensors(s), 1.0) for p, s in zip(self.parts, states, strict=True)]

    def opened(self, cross: float) -> State:
        """The merged base with its cross blocks at ``cross`` times a fresh base's values."""
        if not cross:
            return self.state
        widths = self.load.base.widths
        fresh = seeded_model(self.load.task, self.seed).state_dict()
        scaled = {name: tensor * cross for name, tensor in fresh.items()}
        blocks = [cut_tensors(self.state, widths, part) for part in self.parts]
        return merge_state(scaled, self._contributions(blocks), widths, MergeRule("keep"))

    def _take_moments(self, before: Team) -> None:
        """Merge the moments of the stage before like weights, and cut them like weights."""
        widths = self.load.base.widths
        zeros = {name: torch.zeros_like(p) for name, p in self.judge.named_parameters()}
        merged = {}
        for key in MOMENTS:
            shares = before._contributions([learner.moments(key) for learner in before.learners])
            merged[key] = merge_state(zeros, shares, widths, MergeRule("zero"))
        for part, learner in zip(self.parts, self.learners, strict=True):
            cut = {key: cut_tensors(merged[key], widths, part) for key in MOMENTS}
            learner.take_moments(cut, before.learners[0].steps)


def settings(learning_rate: float, batch: int, power: float, warmup: float = 0.01) -> TrainSettings:
    """What all methods share: AdamW as the product's defaults have it."""
    return TrainSettings(
        batch_size=batch,
        learning_rate=learning_rate,
        width_lr_power=power,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        gradient_clip=0.0,
        warmup=warmup,
        precision="float32",
        aggregate="weights",
        deterministic=False,
    )


def turn_ends(load: Workload, stage: Stage) -> list[int]:
    """How many samples each of the stage's learners has seen when a turn begins; the last: in all.

    As in the product, a hand-off is whole batches, and a part's round is whole samples.
    """
    flops = load.cost(load.parts(stage.parts)[0]).flops_per_sample
    learners = count_learners(load, stage)
    together = learners == 1
    each = stage.share * load.node_flops * load.nodes / flops / learners
    if together:
        steps = max(1, round(each / stage.batch))
        return [stage.batch * round(steps * k / stage.rounds) for k in range(stage.rounds + 1)]
    return [max(1, round(each / stage.rounds)) * k for k in range(stage.rounds + 1)]


def count_learners(load: Workload, stage: Stage) -> int:
    """How many models a stage trains by themselves."""
    if stage.cloned:
        return load.nodes if stage.cloned == "averaged" else 1
    return stage.parts


def clones(tensors: State, count: int, seed: int) -> list[State]:
    """Copies whose matrices differ by noise; vectors and integers are the same in all."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dim() < 2:
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor + _CLONE_NOISE * tensor.std() * noise

    return [{name: noisy(tensor) for name, tensor in tensors.items()} for _ in range(count)]
