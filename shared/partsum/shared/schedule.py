"""The learning rate over a whole run: linear warm-up, then cosine to zero."""

from __future__ import annotations

import math


def rate(progress: float, warmup: float) -> float:
    """The factor on the peak learning rate at ``progress`` in [0, 1] of the run's schedule."""
    if warmup and progress < warmup:
        return max(progress, 1e-4) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def handoff_rate(progress: float, share: float, warmup: float) -> float:
    """The factor in the hand-off, which runs from ``share`` to 1 of the schedule.

    Its first ``warmup`` of progress ramps up again, as a guard for the new optimizer state.
    """
    factor = rate(progress, warmup)
    ramp = warmup * (1 - share)
    if progress >= share + ramp:
        return factor
    return factor * min(1.0, max(progress - share, 1e-4) / ramp)
