"""Parts by relevance: who holds the strong units, and how the others are dealt."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from partsum.coordinator.planner.complement import hidden_groups
from partsum.coordinator.planner.fractions import split_units
from partsum.coordinator.planner.selection import by_strength
from partsum.shared.errors import WidthError
from partsum.shared.part import Part
from partsum.shared.width import WidthGroup, Widths


@dataclass(frozen=True)
class Ranking:
    """What is known of units: their scores by width group, and the share that all parts hold.

    Units of a group without scores are all alike.
    """

    scores: Mapping[str, Sequence[float]]
    shared: float = 0.0

    def strong(self, group: WidthGroup) -> int:
        """How many of the group's strongest units all parts share."""
        return round(self.shared * group.units)

    def order(self, group: WidthGroup) -> list[int]:
        """The group's units from the strongest to the weakest."""
        return by_strength(self.scores.get(group.name, [0.0] * group.units))


def relevance_parts(
    widths: Widths, fractions: Sequence[float], ranking: Ranking, seed: int, round: int
) -> list[Part]:
    """Hidden groups only: every part holds the strongest units, and its share of the others.

    These are dealt from the strongest to the weakest, so that each part gets its share of strong
    ones; which ones is drawn anew from (seed, round), as in mode residual. A part of fraction f
    holds ``shared + (1 - shared) f`` of a group's units.

    Raises:
        WidthError: no group that can be cut, or fewer units to deal than parts.
    """
    owned: list[dict[str, tuple[int, ...]]] = [{} for _ in fractions]
    for group in hidden_groups(widths):
        order, strong = ranking.order(group), ranking.strong(group)
        others = order[strong:]
        if len(others) < len(fractions):
            raise WidthError(
                f"width group {group.name!r} has {group.units} units, of which all parts share "
                f"{strong}: the other {len(others)} are too few for {len(fractions)} parts of at "
                "least one each; lower relevance.shared or parts.count, or widen the model"
            )
        chance = random.Random(f"{seed}/{round}/{group.name}")
        hands = deal(others, fractions, chance)
        for part, hand in zip(owned, hands, strict=True):
            part[group.name] = tuple(sorted([*order[:strong], *hand]))
    return [Part(units) for units in owned]


def deal(
    units: Sequence[int], fractions: Sequence[float], chance: random.Random
) -> list[list[int]]:
    """Units, strongest first, dealt in turns by fraction; neighbours in strength change places."""
    sizes, count = split_units(len(units), fractions), len(fractions)
    hands: list[list[int]] = [[] for _ in fractions]
    for first in range(0, len(units), count):
        band = list(units[first : first + count])
        chance.shuffle(band)
        for unit in band:
            done = sum(map(len, hands)) + 1
            due = [size * done / len(units) - len(hands[k]) for k, size in enumerate(sizes)]
            hungry = [k for k in range(count) if len(hands[k]) < sizes[k]]
            hands[max(hungry, key=lambda k: (due[k], -k))].append(unit)
    return hands
