"""The simplest score of a unit: how large its weights are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from partsum.coordinator.planner.selection import UnitScores
from partsum.shared.width import Widths


def magnitude_scores(state: Mapping[str, Tensor], widths: Widths) -> UnitScores:
    """Each unit's root mean square weight, over the matrices that make and read it.

    Vectors are left out: a norm's weights begin at one, and would hide all others.
    """
    scores: dict[str, Tensor] = {}
    for group in widths.groups:
        squares = []
        for slot in group.slots:
            tensor = state[slot.tensor]
            if tensor.dim() < 2:
                continue
            rows = tensor.float().square().movedim(slot.dim, 0).flatten(1).mean(1)
            index = slot.index(torch.arange(group.units)).reshape(
                len(slot.offsets), group.units, -1
            )
            squares.append(rows[index].mean((0, 2)))
        scores[group.name] = torch.stack(squares).mean(0).sqrt()
    return scores
