"""What a hostile node does to an update that it has trained, or to the data that it trains on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

Tensors = Mapping[str, Tensor]
LARGE = 8.0  # just under the default merge.norm_bound


@dataclass(frozen=True)
class Attack:
    """``tamper`` makes of (update, start) what is sent; ``flips`` trains on wrong labels."""

    name: str
    tamper: Callable[[Tensors, Tensors, torch.Generator], Tensors] | None = None
    flips: bool = False

    @property
    def is_none(self) -> bool:
        """Whether everybody is honest."""
        return self.tamper is None and not self.flips


def _sign_flip(factor: float) -> Callable[[Tensors, Tensors, torch.Generator], Tensors]:
    def tamper(update: Tensors, start: Tensors, generator: torch.Generator) -> Tensors:
        return {name: start[name] - factor * (t - start[name]) for name, t in update.items()}

    return tamper


def _noise(update: Tensors, start: Tensors, generator: torch.Generator) -> Tensors:
    """As large as the weights themselves: a standard deviation of 1."""
    return {name: t + torch.randn(t.shape, generator=generator) for name, t in update.items()}


def _nan(update: Tensors, start: Tensors, generator: torch.Generator) -> Tensors:
    return {name: torch.full_like(t, math.nan) for name, t in update.items()}


def flipped(samples: TensorDataset, classes: int) -> TensorDataset:
    """The same samples, with class c called classes - 1 - c."""
    inputs, targets = samples.tensors
    return TensorDataset(inputs, classes - 1 - targets)


ATTACKS = (
    Attack("none"),
    Attack("sign flip", _sign_flip(1.0)),
    Attack(f"sign flip x {LARGE:g}", _sign_flip(LARGE)),
    Attack("noise", _noise),
    Attack("nan", _nan),
    Attack("label flip", flips=True),
)
