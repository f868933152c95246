"""Complementary parts: disjoint units that cover the whole width between them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from partsum.coordinator.planner.fractions import equal_fractions, split_units
from partsum.shared.errors import WidthError
from partsum.shared.part import Part
from partsum.shared.width import WidthGroup, Widths


def block_parts(widths: Widths, fractions: Sequence[float]) -> list[Part]:
    """Every group in contiguous slices, the same in each round.

    Fixed, because re-drawing units when everything is sliced destroys pairs that have grown
    together (measured: 88.2 -> 85.2 %); contiguous, because a layer norm's slice must be.

    Raises WidthError where the model cannot be cut everywhere, or has fewer units than parts.
    """
    if widths.block_refusal:
        raise WidthError(
            f"mode block and mode copies cut every layer of a model, but {widths.block_refusal}. "
            'Use mode = "residual", or say the width groups yourself (docs/widths.md)'
        )
    owned: list[dict[str, tuple[int, ...]]] = [{} for _ in fractions]
    for group in widths.groups:
        first = 0
        for part, size in zip(owned, _sizes(group, fractions), strict=True):
            part[group.name] = tuple(range(first, first + size))
            first += size
    return [Part(units) for units in owned]


def equal_slices(widths: Widths, count: int) -> list[Part]:
    """Every group in so many contiguous slices, all alike. Raises WidthError where they are not."""
    for group in widths.groups:
        if group.units % count:
            fits = [n for n in range(1, group.units + 1) if group.units % n == 0]
            raise WidthError(
                f"width group {group.name!r} has {group.units} units, which are not {count} equal "
                'slices, as mode = "copies" needs them; parts.count can be '
                f"{', '.join(map(str, fits[1:8]))}"
            )
    return block_parts(widths, equal_fractions(count))


def residual_refusal(widths: Widths) -> str:
    """Why mode residual cannot cut a model; "" where it can."""
    if widths.residual_refusal:
        return widths.residual_refusal
    if not any(group.depth == "hidden" for group in widths.groups):
        return "it has no hidden width groups"
    if not (widths.scales or widths.normed):
        return (
            "nothing scales what its hidden groups add up to: let the task's model() return "
            "partsum.shared.width.with_scales(model)"
        )
    return ""


def residual_parts(widths: Widths, fractions: Sequence[float], seed: int, round: int) -> list[Part]:
    """Hidden groups only, units drawn anew from (seed, round) (ResIST, 2107.00961)."""
    owned: list[dict[str, tuple[int, ...]]] = [{} for _ in fractions]
    for group in hidden_groups(widths):
        order = list(range(group.units))
        random.Random(f"{seed}/{round}/{group.name}").shuffle(order)
        first = 0
        for part, size in zip(owned, _sizes(group, fractions), strict=True):
            part[group.name] = tuple(sorted(order[first : first + size]))
            first += size
    return [Part(units) for units in owned]


def hidden_groups(widths: Widths) -> list[WidthGroup]:
    """The groups that mode residual cuts. Raises WidthError where there is none that it can."""
    if refusal := residual_refusal(widths):
        raise WidthError(
            f'mode = "residual" cannot cut this model: {refusal}. Use mode = "block", or see '
            "docs/widths.md"
        )
    return [group for group in widths.groups if group.depth == "hidden"]


def _sizes(group: WidthGroup, fractions: Sequence[float]) -> list[int]:
    if group.units < len(fractions):
        raise WidthError(
            f"width group {group.name!r} has {group.units} units, too few for "
            f"{len(fractions)} parts of at least one each; lower parts.count to {group.units} or "
            "widen the model"
        )
    return split_units(group.units, fractions)
