"""Which parts there are in a round. Pure: widths, fractions, seed and round in; parts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from partsum.coordinator.planner.complement import block_parts, equal_slices, residual_parts
from partsum.coordinator.planner.fractions import equal_fractions, measured_fractions
from partsum.shared.config import PartsConfig
from partsum.shared.part import WHOLE, Part
from partsum.shared.width import Widths

__all__ = ["equal_fractions", "measured_fractions", "plan_parts", "plan_slices"]


def plan_parts(
    config: PartsConfig,
    widths: Widths,
    fractions: Sequence[float],
    seed: int,
    round: int,
    off: Sequence[str] = (),
) -> list[Part]:
    """The parts of a round, one for each fraction; the gates ``off`` are off in all of them.

    Raises:
        WidthError: more parts than a group has units, or no group that the mode can cut.
    """
    parts = _parts(config, widths, fractions, seed, round)
    return [replace(part, gates=dict.fromkeys(off, False)) for part in parts]


def _parts(
    config: PartsConfig, widths: Widths, fractions: Sequence[float], seed: int, round: int
) -> list[Part]:
    if config.planner != "complement":
        return [WHOLE] * len(fractions)
    match config.mode:
        case "block":
            return block_parts(widths, fractions)
        case "copies":
            return equal_slices(widths, len(fractions))[:1] * len(fractions)
        case "residual":
            return residual_parts(widths, fractions, seed, round)


def plan_slices(
    config: PartsConfig, widths: Widths, fractions: Sequence[float], seed: int
) -> list[Part]:
    """What the base is made of: the first round's parts, but all slices in mode copies."""
    if config.is_copies:
        return equal_slices(widths, len(fractions))
    return plan_parts(config, widths, fractions, seed, 0)
