"""Each part's share of the width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal


def equal_fractions(count: int) -> list[float]:
    """The same share for everyone."""
    return [1 / count] * count


def measured_fractions(
    gflops: Sequence[float], memory_bytes: Sequence[int], mode: Literal["block", "residual"]
) -> list[float]:
    """Shares by each node's speed, none above its share of memory allows; they add up to 1.

    Training a part of mode block costs its fraction squared (matrices are cut on both sides), so
    equal times need the square root of the speed; in mode residual the cost is linear. Memory
    bounds a share the same way: a node with a tenth of all memory does not get half of the width.
    """
    power = 0.5 if mode == "block" else 1.0
    # A speed that is no number counts as next to none: it came from a node.
    speed = [max(g, 1e-9) ** power if math.isfinite(g) else 1e-9 for g in gflops]
    memory = _normal([max(b, 1) ** power for b in memory_bytes])
    # A node may hold up to twice its memory's share before memory, not speed, sizes its part
    # (an assumption, not studied: what is free at the start is a rough figure).
    return _capped(speed, [2 * share for share in memory])


def _capped(shares: Sequence[float], caps: Sequence[float]) -> list[float]:
    """In proportion to ``shares``, but none above its cap: what one is denied goes to the others.

    The caps must add up to more than 1; the result adds up to 1.
    """
    full: set[int] = set()
    while True:
        left = 1 - sum(caps[k] for k in full)
        wanted = sum(share for k, share in enumerate(shares) if k not in full)
        found = [caps[k] if k in full else left * share / wanted for k, share in enumerate(shares)]
        over = {k for k, share in enumerate(found) if share > caps[k]}
        if not over:
            return found
        full |= over


def split_units(units: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the fractions, at least 1 each, adding up to ``units``.

    By largest remainder; ties go to the earlier part.
    """
    exact = [units * fraction for fraction in fractions]
    sizes = [max(1, int(share)) for share in exact]
    while sum(sizes) < units:
        sizes[max(range(len(sizes)), key=lambda k: (exact[k] - sizes[k], -k))] += 1
    while sum(sizes) > units:  # the floor of one took from the others
        wide = [k for k, size in enumerate(sizes) if size > 1]
        sizes[min(wide, key=lambda k: (exact[k] - sizes[k], k))] -= 1
    return sizes


def _normal(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total for value in values]
