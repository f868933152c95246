"""Float32 tensors in fewer bytes, for the wire.

    bfloat16   each number rounded to 8 significant bits: half of the bytes
    int8       256 numbers at a time as whole numbers from -127 to 127 times one float32 scale, the
               largest of them over 127 (blocks as in Dettmers 2110.02861): a quarter of the bytes

Only matrices are encoded: float32 tensors of two dimensions or more. Biases, norms and running
statistics are small, and a variance that shares a block with a large one could come out negative;
they travel as they are, like all other types.

An int8 tensor is one row in its file: its numbers, then the bytes of its scales. So it has one name
and one length, and can have no scale too many or too few. Decoding is one multiplication for each
number, and adding the start another operation, never fused: every host gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from partsum.shared.errors import PartsumError, WireError
from partsum.shared.messages import Encoding

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

BLOCK = 256  # numbers that share a scale: its four bytes are 1.6 % more
_PIECE = 256 * BLOCK  # numbers encoded at a time: they stay in the cache
_LARGEST = torch.finfo(torch.float32).max / 2  # as for updates: their difference must stay finite
# A smaller scale is zero: products with it would be subnormal, which some processors round away.
_SMALLEST = torch.finfo(torch.float32).tiny


def is_encoded(dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a tensor like this is a matrix, which an encoding shortens."""
    return dtype == torch.float32 and len(shape) >= 2


def encoded_shapes(shapes: Shapes, encoding: Encoding) -> Shapes:
    """Names, dtypes and shapes of the tensors in the encoded file."""
    return {
        name: _form(shape, encoding) if is_encoded(dtype, shape) else (dtype, shape)
        for name, (dtype, shape) in shapes.items()
    }


def _form(shape: tuple[int, ...], encoding: Encoding) -> tuple[torch.dtype, tuple[int, ...]]:
    if encoding == "int8":
        size = math.prod(shape)
        return torch.int8, (size + 4 * math.ceil(size / BLOCK),)
    return (torch.bfloat16 if encoding == "bfloat16" else torch.float32), shape


def encode(values: Tensor, encoding: Encoding) -> Tensor:
    """A float32 tensor in its encoded form.

    What is lost of a number is at most 2^-8 of it (bfloat16), or 1/254 of the largest in its block
    (int8), beside numbers below 2^-119, which may become zero. Raises PartsumError where a number
    is not finite, or larger than half of what float32 holds.
    """
    largest = float(values.abs().amax()) if values.numel() else 0.0
    if not largest <= _LARGEST:  # nor is nan
        raise PartsumError(
            f"a value of {largest:.3g} cannot be encoded as {encoding}; a lower "
            "training.learning_rate or a training.gradient_clip may help"
        )
    if encoding == "int8":
        return _to_int8(values)
    return values.to(torch.bfloat16) if encoding == "bfloat16" else values


def _to_int8(values: Tensor) -> Tensor:
    row, pieces, all_scales = values.reshape(-1), [], []
    for first in range(0, len(row), _PIECE):
        piece = row[first : first + _PIECE]
        blocks = _blocks(piece)
        scales = blocks.abs().amax(1) / 127
        scales[scales < _SMALLEST] = 0
        divisors = torch.where(scales > 0, scales, math.inf)
        numbers = (blocks / divisors[:, None]).round_().to(torch.int8)
        pieces.append(numbers.view(-1)[: len(piece)])
        all_scales.append(scales.view(torch.int8))
    return torch.cat([torch.empty(0, dtype=torch.int8), *pieces, *all_scales])


def decode(sent: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor of that shape that an encoded one stands for.

    Raises WireError where a scale is none.
    """
    if sent.dtype != torch.int8:
        return sent.float()
    size = math.prod(shape)
    scales = sent[size:].clone().view(torch.float32)  # a copy is aligned
    if not bool(((scales >= 0) & (scales <= _LARGEST)).all()):
        raise WireError("it has a scale that is negative, too large or not a number")
    return (_blocks(sent[:size]) * scales[:, None]).view(-1)[:size].view(shape)


def _blocks(row: Tensor) -> Tensor:
    """A row as blocks, the last filled up with zeros."""
    missing = -len(row) % BLOCK
    return (functional.pad(row, (0, missing)) if missing else row).view(-1, BLOCK)
