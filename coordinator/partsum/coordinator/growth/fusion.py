"""Fusion: smaller trained models side by side are the base (Deep Fusion, 2306.11903).

What the merge of mode block does with parts: each model is a diagonal block, between them are
zeros, and the head weighs them, so that the base computes their weighted mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from partsum.coordinator.growth.model import TrainedModel
from partsum.coordinator.merge import Contribution
from partsum.shared.errors import WidthError
from partsum.shared.part import Part
from partsum.shared.width import Widths


def side_by_side(
    widths: Widths, models: Sequence[TrainedModel], weights: Sequence[float]
) -> list[Contribution]:
    """Each model with its slice of the base, in the order given.

    Raises WidthError where the models' widths do not add up to the base's.
    """
    slices: list[dict[str, tuple[int, ...]]] = [{} for _ in models]
    for group in widths.groups:
        sizes = [len(model.part.units[group.name]) for model in models]
        if sum(sizes) != group.units:
            raise WidthError(
                f"start.models: fused, they have {' + '.join(map(str, sizes))} = {sum(sizes)} "
                f"units of width group {group.name!r}, but the base has {group.units}; widths must "
                'add up to the base\'s (one model alone can be widened: grow = "widen")'
            )
        first = 0
        for units, size in zip(slices, sizes, strict=True):
            units[group.name] = tuple(range(first, first + size))
            first += size
    return [
        Contribution(Part(units), model, weight)
        for units, model, weight in zip(slices, models, weights, strict=True)
    ]
