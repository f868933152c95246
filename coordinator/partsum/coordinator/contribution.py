"""What a part brings to a merge: its tensors, where they belong, and how much they count."""

from __future__ import annotations

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

    def read_rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last - 1`` of it; a tensor without dimensions has one row."""
        ...


class Tensors:
    """A state dict in memory, read like a file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str) -> Tensor:
        """The tensor of that name; not a copy."""
        return self._tensors[name]

    def read_rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows of it; not a copy."""
        return rows_of(self._tensors[name])[first:last]


def rows_of(tensor: Tensor) -> Tensor:
    """A view of it as rows; one without dimensions has one row."""
    return tensor if tensor.dim() else tensor.reshape(1)


@dataclass(frozen=True)
class Contribution:
    """One part's tensors and how much they count, in samples or as a share."""

    part: Part
    tensors: Readable
    weight: float
