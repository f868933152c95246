"""What an update's change is measured from: where its training started."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from partsum.coordinator.contribution import Readable


class Origin:
    """A part's start, in which the tensors that updates bring gradients of are zero."""

    def __init__(self, start: Readable, gradients: Collection[str]) -> None:
        self._start = start
        self._gradients = gradients

    def read(self, name: str) -> Tensor:
        """The tensor of that name, as it was before the change."""
        value = self._start.read(name)
        return torch.zeros_like(value) if name in self._gradients else value

    def read_rows(self, name: str, first: int, last: int, lead: int = 1) -> Tensor:
        """Rows of it."""
        value = self._start.read_rows(name, first, last, lead)
        return torch.zeros_like(value) if name in self._gradients else value
