"""What stands where a skipped branch was: modules without parameters, next to no work."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Silence(nn.Module):
    """Zeros of the shape of what it reads, whatever else it is told.

    Where the module that was here returned a tuple, so does this: the zeros, then None.
    """

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs: object, **named: object) -> Tensor | tuple[Tensor | None, ...]:
        """Zeros like the first tensor among its arguments; no gradient goes through."""
        return _alone(torch.zeros_like(_first(inputs, named.values())), self.outputs)


class Pass(nn.Module):
    """What it reads, whatever else it is told; in a tuple with None as `Silence`."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs: object, **named: object) -> Tensor | tuple[Tensor | None, ...]:
        """The first tensor among its arguments."""
        return _alone(_first(inputs, named.values()), self.outputs)


def _alone(tensor: Tensor, outputs: int) -> Tensor | tuple[Tensor | None, ...]:
    return tensor if outputs == 1 else (tensor, *[None] * (outputs - 1))


def _first(*arguments: Iterable[object]) -> Tensor:
    return next(v for values in arguments for v in values if isinstance(v, Tensor))
