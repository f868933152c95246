"""One tensor of all updates side by side, some rows at a time: memory does not grow with nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from partsum.coordinator.contribution import Contribution, Readable, read_rows
from partsum.shared.part import region

BUDGET_BYTES = 8 << 20  # of one stack: as quick as any (measured), and sorting takes some more

Dims = Mapping[int, Tensor]


def stacks(
    name: str,
    shape: Sequence[int],
    shares: Sequence[Contribution],
    maps: Sequence[Mapping[str, Dims]],
    dtype: torch.dtype,
    budget_bytes: int = BUDGET_BYTES,
) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows of the tensor of that name: (first row, one layer for each contribution).

    ``shape`` is the base's, and ``maps`` say where each contribution's elements lie in it; what a
    part does not hold is nan, which no update may hold. A tensor without dimensions has one row. A
    stack takes ``budget_bytes`` at most, or one row of each.
    """
    shape = tuple(shape) or (1,)
    row_bytes = max(1, math.prod(shape[1:])) * dtype.itemsize * len(shares)
    step = max(1, budget_bytes // row_bytes)
    for first in range(0, shape[0], step):
        rows = min(step, shape[0] - first)
        stack = torch.full((len(shares), rows, *shape[1:]), torch.nan, dtype=dtype)
        for layer, share, kept in zip(stack, shares, maps, strict=True):
            _place(layer, share.tensors, name, kept.get(name, {}), first)
        yield first, stack


def _place(layer: Tensor, tensors: Readable, name: str, dims: Dims, first: int) -> None:
    """Put a part's elements of these rows of the base where they belong."""
    last = first + len(layer)
    if 0 not in dims:
        value = read_rows(tensors, name, first, last)
        layer[region(layer, dims)] = value.to(layer.dtype)
        return
    held = ((dims[0] >= first) & (dims[0] < last)).nonzero().reshape(-1)
    if not len(held):
        return
    begin = int(held.min())
    value = read_rows(tensors, name, begin, int(held.max()) + 1)[held - begin]
    layer[region(layer, {**dims, 0: dims[0][held] - first})] = value.to(layer.dtype)
