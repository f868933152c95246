"""What a method has spent at each mark: FLOPs, steps and bytes, for the busiest node.

Seconds come from these twice: measured, as steps times what one step takes (`stopwatch`), and
modelled, with the time that bytes take on a link on top. Two kinds of traffic are told apart:

- Averaging among nodes that hold the same model is a ring all-reduce, full duplex, all links at
  once: 2 (K - 1) / K times the model for each. FedAvg gets it too, though it usually has a server.
- Whatever goes through the coordinator shares the coordinator's one link: the sum over all nodes.

Latency, stragglers, and overlap of sending with computing are left out; the first two would count
against whoever averages at every step, the last one for him.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.accuracy.federation import Federation, nested, round_samples
from benchmarks.accuracy.simulator import Mark, Recipe, Stage, count_learners, turn_ends
from benchmarks.accuracy.workload import Workload


class Step(NamedTuple):
    """A training step of a model: what has to be measured."""

    width: float
    """Share of every group's units."""
    groups: int
    """Slices of the width that layer norms keep to."""
    batch: int


@dataclass(frozen=True)
class Spent:
    """By the busiest node; bytes on its link, or on the coordinator's."""

    flops: float = 0.0
    steps: Mapping[Step, float] = field(default_factory=dict)
    node_bytes: float = 0.0
    """Sent to others and received from the coordinator."""
    link_bytes: float = 0.0
    """That have to pass one after another."""

    def __add__(self, other: Spent) -> Spent:
        steps = Counter(self.steps)
        steps.update(other.steps)
        return Spent(
            self.flops + other.flops,
            dict(steps),
            self.node_bytes + other.node_bytes,
            self.link_bytes + other.link_bytes,
        )

    def __mul__(self, factor: float) -> Spent:
        return Spent(
            self.flops * factor,
            {step: count * factor for step, count in self.steps.items()},
            self.node_bytes * factor,
            self.link_bytes * factor,
        )

    def seconds(self, stopwatch: Mapping[Step, float], bits_per_second: float | None) -> float:
        """Of computing; with a link's speed, of computing and then sending."""
        computing = sum(count * stopwatch[step] for step, count in self.steps.items())
        return computing + (8 * self.link_bytes / bits_per_second if bits_per_second else 0.0)


def recipe_costs(
    load: Workload, recipe: Recipe, marks: Sequence[Mark], single_host: bool = False
) -> list[Spent]:
    """What a recipe's marks have cost; ``single_host``: one node does the last stage alone."""
    stages = recipe.stages
    alone = [single_host and number + 1 == len(stages) for number in range(len(stages))]
    costs = [
        _stage(load, recipe, stage, 1 if alone else load.nodes)
        for stage, alone in zip(stages, alone, strict=True)
    ]
    found = []
    for mark in marks:
        spent = Spent()
        for number in range(mark.stage):
            spent += costs[number]
        if mark.stage and not alone[mark.stage]:
            spent += _download(load, stages[mark.stage])
        found.append(spent + costs[mark.stage] * mark.done)
    return found


def _stage(load: Workload, recipe: Recipe, stage: Stage, nodes: int) -> Spent:
    """All of a stage: its steps, averaging among nodes that share a part, its uploads."""
    learners = count_learners(load, stage)
    gang, in_turn = max(1, nodes // learners), max(1, learners // nodes)
    cost = load.cost(load.parts(stage.parts)[0])
    samples = turn_ends(load, stage)[-1] * in_turn
    steps = samples / stage.batch
    groups = max(1, (recipe.stages[0].parts if recipe.grouped else 1) // stage.parts)
    moved = linked = _ring(gang) * cost.state_bytes * steps
    if stage.cloned == "averaged":
        moved = linked = _ring(nodes) * cost.state_bytes * stage.rounds
    elif stage.parts > 1:
        moved += cost.state_bytes * stage.rounds * in_turn
        linked += cost.state_bytes * stage.rounds * learners
    return Spent(
        flops=samples / gang * cost.flops_per_sample,
        steps={Step(1 / stage.parts, groups, stage.batch // gang): steps},
        node_bytes=moved,
        link_bytes=linked,
    )


def _ring(nodes: int) -> float:
    """What a node sends of a model to average it with the others'."""
    return 2 * (nodes - 1) / nodes


def _download(load: Workload, stage: Stage) -> Spent:
    """Every node fetches what it goes on from; nobody has the whole merged base."""
    size = load.cost(load.parts(stage.parts)[0]).state_bytes * max(1, stage.parts // load.nodes)
    return Spent(node_bytes=size, link_bytes=size * load.nodes)


def federation_costs(load: Workload, recipe: Federation, marks: Sequence[Mark]) -> list[Spent]:
    """What the marks of rounds of averaging have cost."""
    sizes = [load.cost(nested(load, width)).state_bytes for width in recipe.widths]
    widest = max(recipe.widths)
    samples = round_samples(load, recipe) * recipe.rounds
    if recipe.whole:
        moved = linked = _ring(load.nodes) * sizes[0] * recipe.rounds
    else:
        moved, linked = 2 * max(sizes) * recipe.rounds, 2 * sum(sizes) * recipe.rounds
    everything = Spent(
        flops=samples * load.cost(nested(load, widest)).flops_per_sample,
        steps={Step(widest, 1, recipe.batch): samples / recipe.batch},
        node_bytes=moved,
        link_bytes=linked,
    )
    return [everything * mark.done for mark in marks]
