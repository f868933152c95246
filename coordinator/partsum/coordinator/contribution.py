"""What a part brings to a merge: its tensors, where they belong, and how much they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from partsum.shared.part import Part
from partsum.shared.tensors import TensorFile


class Readable(Protocol):
    """Tensors by name: an open TensorFile, or a Tensors around a state dict."""

    def read(self, name: str) -> Tensor:
        """The tensor of that name."""
        ...


class Tensors:
    """A state dict in memory, read like a file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str) -> Tensor:
        """The tensor of that name; not a copy."""
        return self._tensors[name]


@dataclass(frozen=True)
class Contribution:
    """One part's tensors and how much they count, in samples or as a share."""

    part: Part
    tensors: Readable
    weight: float


def read_rows(tensors: Readable, name: str, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last - 1`` of a tensor; of a file no more than these are read.

    A tensor without dimensions has one row.
    """
    if isinstance(tensors, TensorFile) and tensors.tensors[name].shape:
        return tensors.read_rows(name, first, last)
    value = tensors.read(name)
    return value[first:last] if value.dim() else value.reshape(1)
