"""Updates whose change is shortened to a norm: Sun et al. 2019 (1911.07963)."""

from __future__ import annotations

import torch
from torch import Tensor

from partsum.coordinator.contribution import Readable


class Clipped:
    """An update, read with its change from ``origin`` multiplied by ``factor``, in (0, 1].

    Integer tensors are as they were. A factor of 1 changes no bit.
    """

    def __init__(self, tensors: Readable, origin: Readable, factor: float) -> None:
        self._tensors = tensors
        self._origin = origin
        self._factor = factor

    def read(self, name: str) -> Tensor:
        """The tensor of that name, shortened; at least in single precision."""
        value = self._tensors.read(name)
        return value if self._whole(value) else self._shorter(self._origin.read(name), value)

    def read_rows(self, name: str, first: int, last: int, lead: int = 1) -> Tensor:
        """Rows of it, shortened."""
        value = self._tensors.read_rows(name, first, last, lead)
        if self._whole(value):
            return value
        return self._shorter(self._origin.read_rows(name, first, last, lead), value)

    def _whole(self, value: Tensor) -> bool:
        return self._factor == 1 or not value.is_floating_point()

    def _shorter(self, start: Tensor, value: Tensor) -> Tensor:
        wide = torch.promote_types(value.dtype, torch.float32)
        return torch.lerp(start.to(wide), value.to(wide), self._factor)


def clip_factor(norm: float, limit: float) -> float:
    """What a change of that norm is multiplied by, so that it is no longer than ``limit``."""
    return min(1.0, limit / norm) if norm > 0 else 1.0
