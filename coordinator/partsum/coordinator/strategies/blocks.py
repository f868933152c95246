"""One tensor of all updates side by side, some rows at a time: memory does not grow with nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from partsum.coordinator.contribution import Contribution, Readable
from partsum.shared.part import region

BUDGET_BYTES = 8 << 20  # of one stack: as quick as any (measured), and sorting takes some more

Dims = Mapping[int, Tensor]
Where = tuple[slice | Tensor, ...]


def row_blocks(shape: Sequence[int], row_bytes: int, budget_bytes: int) -> Iterator[slice]:
    """Slices of the first dimension, of ``budget_bytes`` or of one row.

    A tensor without dimensions has one row; one without rows comes as an empty slice.
    """
    rows = (*shape, 1)[0]
    step = max(1, budget_bytes // max(1, row_bytes))
    for first in range(0, max(1, rows), step):
        yield slice(first, min(rows, first + step))


def held_rows(
    tensors: Readable, name: str, dims: Dims, block: Tensor, first: int
) -> tuple[Tensor, Where] | None:
    """What a part holds of a block of the base's rows: its values, and where in the block they lie.

    Args:
        tensors: the part's.
        name: the tensor.
        dims: the indices that the part keeps of it, by dimension.
        block: rows of the base; only its shape counts.
        first: the block's first row.
    """
    if 0 not in dims:
        value = tensors.read_rows(name, first, first + len(block))
        return value, region(block, dims)
    held = ((dims[0] >= first) & (dims[0] < first + len(block))).nonzero().reshape(-1)
    if not len(held):
        return None
    begin, end = int(held[0]), int(held[-1]) + 1
    value = tensors.read_rows(name, begin, end)
    if end - begin != len(held):
        value = value[held - begin]
    return value, region(block, {**dims, 0: dims[0][held] - first})


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
    for rows in row_blocks(shape, row_bytes, budget_bytes):
        count = rows.stop - rows.start
        stack = torch.full((len(shares), count, *shape[1:]), torch.nan, dtype=dtype)
        for layer, share, kept in zip(stack, shares, maps, strict=True):
            found = held_rows(share.tensors, name, kept.get(name, {}), layer, rows.start)
            if found is not None:
                layer[found[1]] = found[0].to(dtype)
        yield rows.start, stack
