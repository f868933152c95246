"""The simplest score of a unit: how large its weights are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from partsum.coordinator.planner.selection import UnitScores
from partsum.shared.width import Widths


def magnitude_scores(state: Mapping[str, Tensor], widths: Widths) -> UnitScores:
    """The L2 norm of each unit's weights, incoming and outgoing: float64 (units,) by group.

    Vectors are left out: a norm's weights begin at one, and would hide all others.
    """
    scores: dict[str, Tensor] = {}
    for group in widths.groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        for slot in group.slots:
            if state[slot.tensor].dim() > 1:
                squares = state[slot.tensor].double().square()
                by_index = squares.movedim(slot.dim, 0).flatten(1).sum(1)
                owned = by_index[slot.index(torch.arange(group.units))]
                total += owned.reshape(len(slot.offsets), group.units, -1).sum((0, 2))
        scores[group.name] = total.sqrt()
    return scores
