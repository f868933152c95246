"""A block of rows of the base, and what parts hold of it -> the merged block."""

from __future__ import annotations

import torch
from torch import Tensor

from partsum.coordinator.strategies.blocks import Held


def scattered(block: Tensor, held: Held, weigh: bool) -> Tensor:
    """Where nobody holds what another does: each value in its place, times its weight or not."""
    for value, where, weight in held:
        block[where] = (value * weight if weigh else value).to(block.dtype)
    return block


def mean(block: Tensor, held: Held) -> Tensor:
    """A running weighted mean: m += (x - m) w / W, which leaves m as it is where x == m."""
    wide = torch.promote_types(block.dtype, torch.float32)
    merged, seen = block.to(wide), 0.0
    for value, _, weight in held:
        if weight == 0:
            continue
        seen += weight
        if seen == weight:  # what was there must not count, be it nan
            merged.copy_(value)
        else:
            merged.lerp_(value.to(wide), weight / seen)
    return merged


def uneven_mean(block: Tensor, held: Held) -> Tensor:
    """The same where elements are held by different sets of parts."""
    wide = torch.promote_types(block.dtype, torch.float32)
    merged = block.to(wide)
    seen = torch.zeros(merged.shape, dtype=wide)
    for value, where, weight in held:
        if weight == 0:
            continue
        fresh = seen[where] == 0
        seen[where] += weight
        known = torch.lerp(merged[where], value.to(wide), weight / seen[where])
        merged[where] = torch.where(fresh, value.to(wide), known)
    return merged
