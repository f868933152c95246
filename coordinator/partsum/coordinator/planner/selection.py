"""Which units to keep, by how much each one matters. Pure: scores and seed in; a part out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, get_args

from partsum.shared.config.study import Selection
from partsum.shared.part import Part
from partsum.shared.width import Widths

if TYPE_CHECKING:  # decisions do without torch
    from torch import Tensor

UnitScores: TypeAlias = "Mapping[str, Tensor]"
"""Name of a width group -> float tensor (units,): the higher, the more its unit matters."""


def select_units(
    scores: UnitScores, widths: Widths, keep: float, how: Selection, seed: int
) -> Part:
    """The part that keeps a share of the units of every group that is scored.

    Groups without scores stay whole. A group of n units keeps round(n * keep), at least one. Units
    of equal scores are taken in their order, and randomness is of (seed, group) alone, so the same
    scores give the same part. Keeping strong and some random weak units follows the idea that a
    compressed network needs both (not studied carefully: docs/relevance.md has what was measured).

    Raises:
        ValueError: ``keep`` is not in (0, 1], ``how`` is not known, or a group has not one score
            for each unit.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep:g}; it is a share of the units, above 0 and at most 1")
    if how not in get_args(Selection):
        raise ValueError(f"there is no selection {how!r}; take one of {get_args(Selection)}")
    units: dict[str, tuple[int, ...]] = {}
    for group in widths.groups:
        if group.name not in scores:
            continue
        order = by_strength(scores[group.name].tolist())
        if len(order) != group.units:
            raise ValueError(
                f"width group {group.name!r} has {group.units} units, but {len(order)} scores"
            )
        count = max(1, round(group.units * keep))
        units[group.name] = tuple(sorted(_picked(order, count, how, f"{seed}/{group.name}")))
    return Part(units)


def by_strength(scores: Sequence[float]) -> list[int]:
    """Units from the strongest to the weakest; equal ones in their order."""
    return sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))


def _picked(order: Sequence[int], count: int, how: Selection, seed: str) -> Sequence[int]:
    match how:
        case "strong":
            return order[:count]
        case "weak":
            return order[-count:]
        case "random":
            return random.Random(seed).sample(sorted(order), count)
        case "strong_weak":
            strong = (count + 1) // 2
            others = sorted(order[strong:])
            return [*order[:strong], *random.Random(seed).sample(others, count - strong)]
