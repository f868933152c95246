"""The rivals that average: every round each node trains a part of one base, which becomes the mean.

FedAvg (1602.05629) and DiLoCo (2311.08105: AdamW inside, Nesterov outside) give every node the
whole base, HeteroFL (2010.01264) nested parts of different widths, FedRolex (2212.01548) windows
that move on along the width. Averaging is the product's own merge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmarks.accuracy.learner import Learner, State
from benchmarks.accuracy.simulator import Mark, settings
from benchmarks.accuracy.workload import Workload
from torch import Tensor, nn

from partsum.coordinator.base import seeded_model
from partsum.coordinator.clusters import make_clusters
from partsum.coordinator.merge import AVERAGE, Contribution, Tensors, merge_state
from partsum.coordinator.planner import equal_fractions
from partsum.node.model import build_part
from partsum.shared.config import DataConfig
from partsum.shared.part import Part, cut_tensors, index_map
from partsum.shared.schedule import rate

_WINDOW_STEP = 1 / 8  # of the width a round: few rounds have to cover all of it
_LOOKS = 8


@dataclass(frozen=True)
class Federation:
    """Rounds of local training and averaging, under one cosine of the learning rate."""

    learning_rate: float
    rounds: int
    batch: int
    """Of each node's own steps."""
    widths: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    """Each node's share of the width, from the first unit on."""
    rolling: bool = False
    """Nodes' windows begin spread over the width, and move on every round."""
    outer: tuple[float, float] | None = None
    """Learning rate and Nesterov momentum of the step towards the mean; None takes the mean."""

    @property
    def whole(self) -> bool:
        """Whether every node trains all of the base."""
        return min(self.widths) == 1


def federate(load: Workload, recipe: Federation, seed: int) -> tuple[list[Mark], State]:
    """Run the rounds: the base over time, and its last weights.

    All nodes see equally many samples, as many as the widest has FLOPs for.
    """
    model = seeded_model(load.task, seed)
    nodes = [_Node(load, recipe, k, seed) for k in range(load.nodes)]
    outer = recipe.outer and torch.optim.SGD(
        model.parameters(), recipe.outer[0], recipe.outer[1], nesterov=True
    )
    marks = []
    each = round_samples(load, recipe)
    for turn in range(recipe.rounds):
        base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        shares = [node.play(turn, base, each) for node in nodes]
        mean = merge_state(base, shares, load.base.widths, AVERAGE)
        if outer:
            _step_towards(mean, model, outer)
        else:
            model.load_state_dict(mean)
        last = turn + 1 == recipe.rounds
        if last or (turn + 1) % max(1, recipe.rounds // _LOOKS) == 0:
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            scores = load.scores(load.model(1), state, glance=not last)
            marks.append(Mark(0, (turn + 1) / recipe.rounds, scores.loss, scores.accuracy))
    return marks, state


def round_samples(load: Workload, recipe: Federation) -> int:
    """How many samples a node sees in a round."""
    widest = nested(load, max(recipe.widths))
    return max(1, round(load.node_flops / load.cost(widest).flops_per_sample / recipe.rounds))


def nested(load: Workload, width: float, first: float = 0.0) -> Part:
    """A share of every group's units, from ``first`` (a share too) on, around the end."""
    if width == 1:
        return load.parts(1)[0]
    units = {}
    for group in load.base.widths.groups:
        begin, count = round(first * group.units), max(1, round(width * group.units))
        units[group.name] = tuple(sorted((begin + u) % group.units for u in range(count)))
    return Part(units)


class _Node:
    """One node's own data, and its optimizer for as long as its part stays the same."""

    def __init__(self, load: Workload, recipe: Federation, number: int, seed: int) -> None:
        self.load, self.recipe, self.number = load, recipe, number
        shares = equal_fractions(load.nodes)
        clusters = make_clusters(DataConfig(), load.task, load.train, shares, seed)
        self.cluster = torch.from_numpy(clusters[number])
        self.seed = (seed * 1_000_003 + number) % 2**62
        self.learner: Learner | None = None

    def play(self, turn: int, base: State, each: int) -> Contribution:
        """One round's training from the base."""
        recipe, load = self.recipe, self.load
        total = each * recipe.rounds
        shift = self.number / load.nodes + turn * _WINDOW_STEP if recipe.rolling else 0.0
        part = nested(load, recipe.widths[self.number], shift % 1)
        if self.learner is None or recipe.rolling:
            self.learner = self._learner(part)
        weights = cut_tensors(base, load.base.widths, part)
        self.learner.module.load_state_dict(weights)
        self.learner.train(turn * each, (turn + 1) * each, lambda done: rate(done / total, 0.01))
        state = {name: tensor.clone() for name, tensor in self.learner.state.items()}
        return Contribution(part, Tensors(state), 1.0)

    def _learner(self, part: Part) -> Learner:
        model = build_part(self.load.task.model, part, self.seed, None)
        scale_inputs(self.load, model.module, part)
        chosen = settings(self.recipe.learning_rate, self.recipe.batch, power=0.0)
        return Learner(self.load, model, chosen, self.cluster, self.seed)


def scale_inputs(load: Workload, module: nn.Module, part: Part) -> None:
    """Let a part's sums be as large as the whole model's: HeteroFL's Scaler, 1 / width."""
    for name, dims in index_map(load.base.widths, part).items():
        path, _, kind = name.rpartition(".")
        layer = module.get_submodule(path)
        if kind == "weight" and 1 in dims and isinstance(layer, nn.Linear):
            whole = load.base.shape.get_parameter(name).shape[1]
            layer.register_forward_pre_hook(_times(whole / len(dims[1])))


def _times(factor: float) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    return lambda _, inputs: inputs[0] * factor


def _step_towards(mean: State, model: nn.Module, outer: torch.optim.Optimizer) -> None:
    """One step of the outer optimizer, whose gradient is the way from the mean to the base."""
    for name, parameter in model.named_parameters():
        parameter.grad = parameter.detach() - mean[name]
    outer.step()
