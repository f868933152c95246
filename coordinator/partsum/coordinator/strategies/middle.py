"""The middle of all updates, element by element: coordinate median and trimmed mean.

Yin et al. 2018 (1803.01498). Every node counts the same: the number of samples is its own claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from partsum.coordinator.contribution import Contribution
from partsum.coordinator.strategies.blocks import BUDGET_BYTES, Dims, stacks


def middle(stack: Tensor, cut: int) -> Tensor:
    """The mean over the first dimension without the ``cut`` lowest and highest of each element.

    nan marks what a part does not hold. Where h parts hold an element, at most (h - 1) // 2 are cut
    at each end, which leaves its median: so a ``cut`` as large as the number of parts gives the
    median everywhere, and a trimmed mean falls back to it where too few hold an element (two: their
    mean; one: its value). nan comes out where nobody does. The order of the layers does not matter,
    nor does the sign of a zero, and equal values give exactly that value.
    """
    values = (stack + 0.0).sort(dim=0).values  # nan comes last
    held = len(stack) - stack.isnan().sum(0)
    ends = ((held - 1) // 2).clamp(0, cut)
    mean = torch.full_like(values[0], torch.nan)
    count = torch.zeros_like(mean)
    for rank in range(int(ends.min()), int((held - ends).max())):
        inside = (rank >= ends) & (rank < held - ends)
        count += inside
        moved = torch.lerp(mean, values[rank], 1 / count)
        moved = torch.where(count == 1, values[rank], moved)  # what was there is nan
        mean = torch.where(inside, moved, mean)
    return mean


def merge_middle(
    name: str,
    old: Tensor,
    shares: Sequence[Contribution],
    maps: Sequence[Mapping[str, Dims]],
    cut: int,
    budget_bytes: int = BUDGET_BYTES,
) -> Tensor:
    """The merged tensor of that name; elements that no part holds keep ``old``'s value."""
    wide = torch.promote_types(old.dtype, torch.float32)
    merged = old.to(wide, copy=True, memory_format=torch.contiguous_format)
    numbers = merged.view(-1)
    for first, stack in stacks(name, old.shape, shares, maps, wide, budget_bytes):
        found = middle(stack, cut).view(-1)
        block = numbers[first : first + len(found)]
        block.copy_(torch.where(found.isnan(), block, found))
    return merged.to(old.dtype)
