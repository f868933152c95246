"""Krum and Multi-Krum: only the updates that lie closest to each other count.

Blanchard et al. 2017 (1703.02757): an update's score is the sum of its squared distances to the
n - f - 2 nearest others; Krum takes the one with the lowest score, Multi-Krum the mean of the n - f
lowest. n >= 2 f + 3 is what the proof asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from partsum.coordinator.contribution import Contribution
from partsum.coordinator.strategies.blocks import stacks


def squared_distances(
    shapes: Mapping[str, Sequence[int]], shares: Sequence[Contribution]
) -> Tensor:
    """Squared L2 distances between all pairs of updates over the tensors named, which all hold.

    A square matrix in double precision, summed block by block in a fixed order.
    """
    found = torch.zeros(len(shares), len(shares), dtype=torch.float64)
    whole: list[dict[str, dict[int, Tensor]]] = [{}] * len(shares)
    for name, shape in sorted(shapes.items()):
        for _, stack in stacks(name, shape, shares, whole, torch.float64):
            flat = stack.reshape(len(shares), -1)
            # Not by a matrix product: of nearly equal updates nothing but rounding would be left.
            mode = "donot_use_mm_for_euclid_dist"
            found += torch.cdist(flat, flat, compute_mode=mode) ** 2
    return found


def ranked(distances: Tensor, hostile: int) -> list[int]:
    """Updates from the most trusted to the least, by Krum's score; of equals the first goes first.

    With fewer than 2 f + 3 updates f is as large as fits.
    """
    nearest = max(1, len(distances) - fitting(len(distances), hostile) - 2)
    # The first of each row is the distance to itself: zero.
    scores = distances.sort(dim=1).values[:, 1 : 1 + nearest].sum(1)
    return scores.argsort(stable=True).tolist()


def fitting(updates: int, hostile: int) -> int:
    """The largest f, up to ``hostile``, that so many updates are enough for."""
    return max(0, min(hostile, (updates - 3) // 2))
