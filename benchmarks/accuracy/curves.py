"""Curves: how good a method is against what it has spent, and when it is as good as another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.accuracy.costs import Spent, Step
from benchmarks.accuracy.simulator import Mark
from benchmarks.accuracy.workload import Workload
from benchmarks.harness import Spread

Stopwatch = Mapping[Step, float]
"""Seconds of one step of each kind."""


@dataclass(frozen=True)
class Axis:
    """A way to count what has been spent."""

    name: str
    title: str
    value: Callable[[Workload, Stopwatch, Spent], float]


def _simulated(load: Workload, stopwatch: Stopwatch, spent: Spent) -> float:
    """In the unit of T: passes of the whole model over all data, by all nodes together."""
    return spent.flops * load.nodes / (load.whole.flops_per_sample * load.samples)


def _link(bits_per_second: float | None) -> Callable[[Workload, Stopwatch, Spent], float]:
    return lambda load, stopwatch, spent: spent.seconds(stopwatch, bits_per_second)


AXES = (
    Axis("simulated", "simulated", _simulated),
    Axis("measured", "measured", _link(None)),
    Axis("10gbit", "10 Gbit/s", _link(1e10)),
    Axis("1gbit", "1 Gbit/s", _link(1e9)),
    Axis("100mbit", "100 Mbit/s", _link(1e8)),
    Axis("bytes", "bytes", lambda load, stopwatch, spent: spent.node_bytes),
)


@dataclass(frozen=True)
class Curve:
    """A method with its best learning rate: what its marks cost, and each seed's marks."""

    name: str
    title: str
    rate: float
    spent: Sequence[Spent]
    runs: Sequence[Sequence[Mark]]
    score: Callable[[Mark], float]
    """More is better."""
    tried: Mapping[float, float]
    """Learning rate -> final score on the first seed."""

    def scores(self, seed: int | None = None) -> list[float]:
        """At each mark, of one seed or the mean of all."""
        if seed is not None:
            return [self.score(mark) for mark in self.runs[seed]]
        return [
            sum(self.score(mark) for mark in marks) / len(marks)
            for marks in zip(*self.runs, strict=True)
        ]

    def half(self, seed: int | None = None) -> float:
        """The best score by half of a budget that is one stage."""
        marks = zip(self.runs[0], self.scores(seed), strict=True)
        return max(score for mark, score in marks if mark.done <= 0.5)

    def last(self, field: str) -> Spread:
        """Of a field of the last mark, over seeds."""
        return Spread.of([float(getattr(marks[-1], field)) for marks in self.runs])

    def handoff(self, field: str) -> Spread | None:
        """Of a field of the last mark before the last stage, where there are several stages."""
        stages = {mark.stage for mark in self.runs[0]}
        if len(stages) < 2:
            return None
        before = [[m for m in marks if m.stage < max(stages)] for marks in self.runs]
        return Spread.of([float(getattr(marks[-1], field)) for marks in before])

    def reaches(self, target: float, costs: Sequence[float], seed: int | None = None) -> float:
        """At what cost the score first is the target; inf for never.

        A straight line is drawn between two marks; nothing is known before the first.
        """
        scores = self.scores(seed)
        for number, score in enumerate(scores):
            if score >= target:
                if number == 0:
                    return costs[0]
                rise = (target - scores[number - 1]) / (score - scores[number - 1])
                return costs[number - 1] + rise * (costs[number] - costs[number - 1])
        return math.inf


@dataclass(frozen=True)
class Comparison:
    """All curves of one task, and the target that they are compared by.

    The target is the best that any of the rivals has seen by half of its budget.

    Args:
        load: the task.
        stopwatch: for the axes of time.
        curves: each method at its best.
        rivals: data-parallel training with every batch and every learning rate that was tried,
            since what is best at the end need not be what is best by half.
    """

    load: Workload
    stopwatch: Stopwatch
    curves: Sequence[Curve]
    rivals: Sequence[Curve]

    def target(self, seed: int | None = None) -> float:
        """Of the mean over seeds, or of one."""
        return max(curve.half(seed) for curve in self._rivals(seed))

    def _rivals(self, seed: int | None) -> list[Curve]:
        """Those that were run on this seed."""
        return [curve for curve in self.rivals if seed is None or seed < len(curve.runs)]

    def costs(self, curve: Curve, axis: Axis) -> list[float]:
        """Each mark's cost on an axis."""
        return [axis.value(self.load, self.stopwatch, spent) for spent in curve.spent]

    def cost(self, curve: Curve, axis: Axis, seed: int | None = None) -> float:
        """What the target costs on an axis; inf where it is never reached."""
        return curve.reaches(self.target(seed), self.costs(curve, axis), seed)

    def ratio(self, curve: Curve, axis: Axis, seed: int | None = None) -> float:
        """That cost over what the cheapest rival needs."""
        cheapest = min(self.cost(rival, axis, seed) for rival in self._rivals(seed))
        return self.cost(curve, axis, seed) / cheapest
