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
Held = Iterator[tuple[Tensor, Where, float]]
"""What each part holds of a block of rows: values, where in it they lie, and their weight."""


def row_blocks(shape: Sequence[int], row_bytes: int, budget_bytes: int) -> Iterator[slice]:
    """Slices of the first dimension, of ``budget_bytes`` or of one row.

    A tensor without dimensions has one row; one without rows comes as an empty slice.
    """
    rows = (*shape, 1)[0]
    step = max(1, budget_bytes // max(1, row_bytes))
    for first in range(0, max(1, rows), step):
        yield slice(first, min(rows, first + step))


def held_rows(
    tensors: Readable, name: str, dims: Dims, block: Tensor, first: int, lead: int = 1
) -> tuple[Tensor, Where] | None:
    """What a part holds of a block of the base's rows: its values, and where in the block they lie.

    Args:
        tensors: the part's.
        name: the tensor.
        dims: the indices that the part keeps of it, by the block's dimensions.
        block: rows of the base; only its shape counts.
        first: the block's first row.
        lead: how many of the tensor's dimensions count its rows; more than one only if uncut.
    """
    if 0 not in dims:
        value = tensors.read_rows(name, first, first + len(block), lead)
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
    """Blocks of rows of the tensor of that name: (its first number, a layer for each contribution).

    ``shape`` is the base's, and ``maps`` say where each contribution's elements lie in it; what a
    part does not hold is nan, which no update may hold. The first number is counted in the flat
    tensor. A stack takes ``budget_bytes`` at most, or of each one row that no part is cut before.
    """
    every = [kept.get(name, {}) for kept in maps]
    number_bytes = dtype.itemsize * len(shares)
    lead = _lead(shape, every, budget_bytes // number_bytes)
    every = [{dim - lead + 1: index for dim, index in kept.items()} for kept in every]
    rest = shape[lead:]
    size = math.prod(rest)
    if not size:
        return
    for rows in row_blocks((math.prod(shape[:lead]),), size * number_bytes, budget_bytes):
        count = rows.stop - rows.start
        stack = torch.full((len(shares), count, *rest), torch.nan, dtype=dtype)
        for layer, share, kept in zip(stack, shares, every, strict=True):
            found = held_rows(share.tensors, name, kept, layer, rows.start, lead)
            if found is not None:
                layer[found[1]] = found[0].to(dtype)
        yield rows.start * size, stack


def _lead(shape: Sequence[int], every: Sequence[Dims], numbers: int) -> int:
    """How many dimensions count rows: the first, and while a row has more than so many numbers
    the next, up to the first that a part is cut in."""
    uncut = min((dim for kept in every for dim in kept), default=len(shape))
    lead = 1
    while lead < uncut and math.prod(shape[lead:]) > numbers:
        lead += 1
    return lead
