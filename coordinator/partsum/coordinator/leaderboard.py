"""The search's structures, how well each does, and what it costs: plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

By = Literal["metric", "loss"]
"""What structures are ranked by."""


@dataclass(frozen=True)
class Score:
    """A structure after a round, on the validation samples that it is ranked on."""

    round: int
    loss: float | None  # None: not finite
    accuracy: float | None  # None: the task has no metric, or the model has diverged
    seconds_per_sample: float  # of training, as the node that did it measured

    def key(self, by: By) -> tuple[float, float]:
        """Smaller is better: the metric and then the loss, or the loss alone.

        A task without a metric is ranked by its loss.
        """
        loss = math.inf if self.loss is None else self.loss
        if by == "loss" or (self.accuracy is None and self.loss is not None):
            return 0.0, loss
        return math.inf if self.accuracy is None else -self.accuracy, loss


@dataclass(frozen=True)
class Candidate:
    """A structure of the search. ``flops`` are of training, for a sample."""

    bits: str
    parameters: int
    flops: int
    parent: str = ""
    scores: tuple[Score, ...] = ()

    @property
    def last(self) -> Score | None:
        """Its newest score."""
        return self.scores[-1] if self.scores else None

    def rank(self, by: By) -> tuple[float, ...]:
        """Smaller is better: who got further, then the score, and the size."""
        last = self.last
        if last is None:
            return (1.0, math.inf, math.inf, float(self.parameters))
        return (-float(last.round), *last.key(by), float(self.parameters))


@dataclass(frozen=True)
class Leaderboard:
    """All structures that were tried; ``alive`` are those of the newest round, in its order."""

    gates: tuple[str, ...]
    candidates: tuple[Candidate, ...] = ()
    alive: tuple[str, ...] = ()
    by: By = "metric"

    def ranked(self) -> list[Candidate]:
        """The best first. One that missed a round ranks behind all that did not."""
        return sorted(self.candidates, key=lambda one: (one.rank(self.by), one.bits))

    def scored(self, scores: dict[str, Score]) -> Leaderboard:
        """With a round's scores added."""
        added = (
            replace(one, scores=(*one.scores, scores[one.bits])) if one.bits in scores else one
            for one in self.candidates
        )
        return replace(self, candidates=tuple(added))

    def joined(self, candidates: Iterable[Candidate], alive: Sequence[str]) -> Leaderboard:
        """With new structures, and those of a round named."""
        return replace(self, candidates=(*self.candidates, *candidates), alive=tuple(alive))

    def front(self) -> list[Candidate]:
        """The structures that no other beats in both score and FLOPs, the cheapest first.

        Only those of the newest round count: what was left behind was trained less.
        """
        newest = max((one.last.round for one in self.candidates if one.last), default=-1)
        rivals = [one for one in self.ranked() if one.last and one.last.round == newest]
        front: list[Candidate] = []
        for one in rivals:  # from the best down: it is on the front if it is cheaper than all above
            if not front or one.flops < front[-1].flops:
                front.append(one)
        return front[::-1]

    def correlations(self) -> dict[int, float]:
        """Spearman's rank correlation of each round's scores with the last one's.

        Over the structures that have both, where there are at least three.
        """
        by_round: dict[int, dict[str, tuple[float, float]]] = {}
        for one in self.candidates:
            for score in one.scores:
                by_round.setdefault(score.round, {})[one.bits] = score.key(self.by)
        last = max(by_round, default=0)
        result: dict[int, float] = {}
        for round in sorted(by_round):
            both = sorted(by_round[round].keys() & by_round[last].keys())
            if round != last and len(both) >= 3:
                early = [by_round[round][bits] for bits in both]
                late = [by_round[last][bits] for bits in both]
                result[round] = spearman(early, late)
        return result


def spearman(first: Sequence[tuple[float, ...]], second: Sequence[tuple[float, ...]]) -> float:
    """Spearman's rank correlation of two lists of equal length; equal entries share a rank.

    0 where one of them is all alike: there is no order to agree with.
    """
    left, right = _ranks(first), _ranks(second)
    mean = (len(left) - 1) / 2
    together = sum((a - mean) * (b - mean) for a, b in zip(left, right, strict=True))
    spread = sum((a - mean) ** 2 for a in left) * sum((b - mean) ** 2 for b in right)
    return together / math.sqrt(spread) if spread else 0.0


def _ranks(values: Sequence[tuple[float, ...]]) -> list[float]:
    order = sorted(values)
    places: dict[tuple[float, ...], list[int]] = {}
    for place, value in enumerate(order):
        places.setdefault(value, []).append(place)
    return [sum(places[value]) / len(places[value]) for value in values]
