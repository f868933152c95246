"""What a part brings to a merge: its tensors, where they belong, and how much they count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from partsum.shared.part import Part


class Readable(Protocol):
    """Tensors by name: an open TensorFile, or a Tensors around a state dict."""

    def read(self, name: str) -> Tensor:
        """The tensor of that name."""
        ...

    def read_rows(self, name: str, first: int, last: int, lead: int = 1) -> Tensor:
        """Rows ``first`` to ``last - 1`` of it, which its first ``lead`` dimensions count."""
        ...


class Tensors:
    """A state dict in memory, read like a file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str) -> Tensor:
        """The tensor of that name; not a copy."""
        return self._tensors[name]

    def read_rows(self, name: str, first: int, last: int, lead: int = 1) -> Tensor:
        """Rows of it; not a copy."""
        return rows_of(self._tensors[name], lead)[first:last]


def rows_of(tensor: Tensor, lead: int = 1) -> Tensor:
    """It as rows, which its first ``lead`` dimensions count; one without dimensions has one row.

    A view, where it is contiguous.
    """
    return tensor.reshape(math.prod(tensor.shape[:lead]), *tensor.shape[lead:])


@dataclass(frozen=True)
class Contribution:
    """One part's tensors and how much they count, in samples or as a share."""

    part: Part
    tensors: Readable
    weight: float
