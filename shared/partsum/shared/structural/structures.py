"""The structures of a layer whose inputs are split: which neighbouring partial sums are added.

A layer W x over s slices of its input is a sum of s partial products W_i x_i. Each of the s - 1
``+`` between them is a gate: on, the two are added before the non-linearity; off, they stay apart
and go through it by themselves. So a structure is a way to cut the row of slices into **segments**,
runs of neighbours, and there are 2 ** (s - 1) of them, which share s (s + 1) / 2 segments.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_SPLITS = 12  # 2048 structures; a router's logits and its top-k grow with their number


@dataclass(frozen=True)
class Structures:
    """All structures of a layer of so many slices, numbered by their gates.

    Bit j of a structure's number is gate j, between slices j and j + 1; so the last one, all gates
    on, is the dense layer.

    Raises:
        ValueError: fewer than 2 splits, or more than 12.
    """

    splits: int

    def __post_init__(self) -> None:
        if not 2 <= self.splits <= _MOST_SPLITS:
            raise ValueError(
                f"splits = {self.splits}: a layer can be split into 2 to {_MOST_SPLITS} slices, "
                f"whose gates make 2 to {2 ** (_MOST_SPLITS - 1)} structures"
            )

    @classmethod
    def of(cls, count: int) -> Structures:
        """The structures that are ``count`` in number, a power of two. Raises ValueError else."""
        splits = count.bit_length()
        if count < 2 or count != 1 << (splits - 1):
            raise ValueError(
                f"experts = {count}: n gates make 2 ** n structures, so their number must be a "
                "power of two, at least 2, such as 8 or 64"
            )
        return cls(splits)

    @property
    def gates(self) -> int:
        """How many ``+`` there are between slices."""
        return self.splits - 1

    @property
    def count(self) -> int:
        """How many structures there are."""
        return 1 << self.gates

    @property
    def dense(self) -> int:
        """The number of the structure that is the dense layer."""
        return self.count - 1

    @property
    def segments(self) -> tuple[range, ...]:
        """Every run of neighbouring slices, by where it begins and then by its length."""
        ends = range(1, self.splits + 1)
        return tuple(range(a, b) for a in range(self.splits) for b in ends if b > a)

    def groups(self, structure: int) -> tuple[range, ...]:
        """The segments of one structure, in order; together they are all slices."""
        cuts = [j + 1 for j in range(self.gates) if not structure >> j & 1]
        edges = [0, *cuts, self.splits]
        return tuple(range(a, b) for a, b in itertools.pairwise(edges))

    def members(self, device: torch.device) -> Tensor:
        """Which slices are in which segment: float32 (segments, splits) of 0 and 1."""
        return _members(self, device)

    def made_of(self, device: torch.device) -> Tensor:
        """Which segments each structure is made of: float32 (structures, segments) of 0 and 1."""
        return _made_of(self, device)


@functools.cache
def _members(structures: Structures, device: torch.device) -> Tensor:
    rows = [[float(i in run) for i in range(structures.splits)] for run in structures.segments]
    return torch.tensor(rows, device=device)


@functools.cache
def _made_of(structures: Structures, device: torch.device) -> Tensor:
    segments = structures.segments
    rows = []
    for number in range(structures.count):
        groups = set(structures.groups(number))
        rows.append([float(run in groups) for run in segments])
    return torch.tensor(rows, device=device)
