"""What fills a slice of mode block that no node has delivered yet (failure mode 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from partsum.coordinator.base import Base, seeded_model
from partsum.coordinator.clones import with_noise
from partsum.coordinator.merge import Contribution
from partsum.shared.part import Part, cut_module, fresh_module

_NOISE = 0.1  # clones without noise stay symmetric (failure mode 8)


def stand_in(base: Base, part: Part, live: Sequence[Contribution], seed: int) -> dict[str, Tensor]:
    """A noisy clone of a live part of the same shape, else the part's own fresh weights.

    It is merged with weight zero, so that the base's output is the mean of the live parts; the
    hand-off then trains it like everything else.
    """
    model = cut_module(seeded_model(base.task, seed), base.widths, part)
    fresh = fresh_module(model, seed).state_dict()
    widths = {name: len(units) for name, units in part.units.items()}
    for share in live:
        if {name: len(units) for name, units in share.part.units.items()} == widths:
            return _noisy({name: share.tensors.read(name) for name in fresh}, seed)
    return fresh


def _noisy(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: with_noise(tensor, _NOISE, generator) for name, tensor in tensors.items()}
