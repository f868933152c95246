"""Many structures of one layer at once: partial products computed once, mixed for each token.

What follows the non-linearity is linear and shared, so a token's weighted experts are one weighted
sum over segments, in front of one down projection:

    hidden = sum over segments g of  weight_g * act(sum over slices i in g of P_i),   P_i = W_i x_i

For one token the inner sums of all its m segments are one small product, (m, slices) by (slices,
hidden), and the outer sum another, (1, m) by (m, hidden). Tokens go in the order of their number of
segments, so that each batch of products is of one shape, and in blocks that stay in a core's cache:
written out tensor by tensor over all tokens, the same took three times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from partsum.shared.structural.structures import Structures

Activation = Callable[[Tensor], Tensor]
"""What comes between: (..., up) -> (..., hidden), each row by itself; for a gated layer
``act(gate) * up``, which takes two numbers for each that it gives."""

_CHUNK_TOKENS = 256  # whose partial products are in memory at a time
_BLOCK_NUMBERS = 1 << 18  # of segments' sums at a time: 1 MB of float32 (half as much is no faster)


@dataclass(frozen=True)
class Blend:
    """Which segments each token takes, all tokens' one after the other.

    ``order`` int64 (tokens,) sorts tokens by their number of segments, ``counts`` are those
    numbers, in that order; those of none come first. ``members`` (taken, splits) and ``weights``
    (taken,) are the segments' slices and weights, again in that order.
    """

    order: Tensor
    counts: list[int]
    members: Tensor
    weights: Tensor

    @classmethod
    def of(cls, chosen: Tensor, structures: Structures) -> Blend:
        """From each token's weights on structures, (tokens, structures): zero is not chosen.

        A segment that several chosen structures share is taken once, with their weights' sum.
        """
        made_of = structures.made_of(chosen.device)
        weights = chosen @ made_of.to(chosen.dtype)
        taken = (chosen.detach() > 0).to(made_of.dtype) @ made_of > 0
        counts = taken.sum(dim=1)
        order = torch.argsort(counts, stable=True)
        places, segments = taken[order].nonzero(as_tuple=True)
        members = structures.members(chosen.device)[segments]
        return cls(order, counts[order].tolist(), members, weights[order[places], segments])


def mix(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    blend: Blend,
    act: Activation,
    recompute: bool = False,
) -> Tensor:
    """The blended hidden units of each token, (tokens, d) -> (tokens, hidden), in ``blend.order``.

    To sort is left to the caller, whose rows are shorter: `sorted_rows` and `unsorted_rows`.

    Each of the s partial products brings 1 / s of the bias: so it counts once for each token,
    however many segments there are, and all gates on give the dense layer.

    Args:
        inputs: floating-point (tokens, d), in ``blend.order``; d is split into s slices, the first
            d % s of them one longer.
        weight: (up, d), as nn.Linear's.
        bias: (up,) or None.
        blend: which segments; gradients flow to its weights.
        act: the non-linearity. It is called again in the backward pass, and must not be random.
        recompute: compute the partial products, tokens * s * up numbers, again in the backward pass
            instead of keeping them: a tenth slower, and less memory than the dense layer.

    Raises:
        ValueError: fewer inputs than slices.
    """
    splits = blend.members.shape[1]
    if inputs.shape[1] < splits:
        raise ValueError(f"{inputs.shape[1]} inputs cannot be split into {splits} slices")
    sliced = _sliced(inputs, splits, None if bias is None else inputs.new_tensor(1 / splits))
    weights = _sliced(weight, splits, bias).transpose(1, 2).contiguous()
    blended = blend.weights.to(inputs.dtype)
    mixed: Tensor = _Mix.apply(sliced, weights, blended, blend, act, recompute)  # type: ignore[no-untyped-call]
    return mixed


def sorted_rows(rows: Tensor, blend: Blend) -> Tensor:
    """(tokens, n) in the order of a blend."""
    return rows.index_select(0, blend.order)


def unsorted_rows(rows: Tensor, blend: Blend) -> Tensor:
    """(tokens, n) back in the order that they came in."""
    return rows.index_select(0, torch.argsort(blend.order))


def _sliced(rows: Tensor, splits: int, last: Tensor | None) -> Tensor:
    """(n, d) -> (splits, n, w): the slices, zeros where one is shorter, ``last`` behind each."""
    pieces = torch.tensor_split(rows, splits, dim=1)
    width = pieces[0].shape[1]
    padded = [functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces]
    if last is not None:
        column = last.expand(len(rows))[:, None]
        padded = [torch.cat([piece, column], dim=1) for piece in padded]
    return torch.stack(padded)


@dataclass(frozen=True)
class _Block:
    """Tokens of equally many segments: where they are in their chunk, and among all segments."""

    tokens: slice
    segments: slice
    each: int


def _chunks(counts: Sequence[int], per_segment: int) -> Iterator[tuple[slice, list[_Block]]]:
    """Chunks of tokens, each with its blocks; tokens of no segments are in none."""
    taken = 0
    for first in range(counts.count(0), len(counts), _CHUNK_TOKENS):
        chunk = counts[first : first + _CHUNK_TOKENS]
        blocks, begin = [], 0
        while begin < len(chunk):
            each = chunk[begin]
            most = max(1, _BLOCK_NUMBERS // (each * per_segment))
            end = begin + 1
            while end < len(chunk) and chunk[end] == each and end - begin < most:
                end += 1
            segments = slice(taken, taken + each * (end - begin))
            blocks.append(_Block(slice(begin, end), segments, each))
            taken, begin = taken + each * (end - begin), end
        yield slice(first, first + len(chunk)), blocks


class _Mix(torch.autograd.Function):
    """Of inputs (splits, tokens, w) and weights (splits, w, up), which suits BLAS best."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weights: Tensor,
        blended: Tensor,
        blend: Blend,
        act: Activation,
        recompute: bool,
    ) -> Tensor:
        members = blend.members.to(inputs.dtype)
        ctx.save_for_backward(inputs, weights, blended, members)
        ctx.counts, ctx.act = blend.counts, act
        ctx.kept = None if recompute or not any(ctx.needs_input_grad) else []
        one = act(weights.new_zeros(1, weights.shape[2]))
        mixed = one.new_zeros(inputs.shape[1], one.shape[1])
        space = None if ctx.kept is not None else _space(weights, blend.counts)
        for tokens, blocks in _chunks(blend.counts, weights.shape[2]):
            products = _products(inputs[:, tokens], weights, space)
            there = mixed[tokens]
            if ctx.kept is not None:
                ctx.kept.append(products)
            for block in blocks:
                hidden = act(_sums(products, members, block))
                torch.bmm(_row(blended, block), hidden, out=there[block.tokens, None])
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weights, blended, members = ctx.saved_tensors
        d_inputs, d_weights = torch.zeros_like(inputs), torch.zeros_like(weights)
        d_blended = torch.zeros_like(blended)
        space = None if ctx.kept is not None else _space(weights, ctx.counts)
        # Tokens first: into a strided output, bmm goes token by token.
        d_space = _space(weights, ctx.counts).transpose(0, 1).contiguous()
        for number, (tokens, blocks) in enumerate(_chunks(ctx.counts, weights.shape[2])):
            chosen, over = inputs[:, tokens], gradient[tokens]
            products = _products(chosen, weights, space) if ctx.kept is None else ctx.kept[number]
            d_products = d_space[: len(over)]
            for block in blocks:
                above = over[block.tokens]
                hidden, d_sums = _pulled_back(above, _sums(products, members, block), ctx.act)
                # This way round it is ten times as fast as hidden @ above (measured).
                found = torch.bmm(above[:, None], hidden.transpose(1, 2))
                d_blended[block.segments] = found.flatten()
                spread = _of(members, block).transpose(1, 2) * _row(blended, block)
                torch.bmm(spread, d_sums, out=d_products[block.tokens])
            d_inputs[:, tokens] = torch.bmm(weights, d_products.permute(1, 2, 0)).transpose(1, 2)
            d_weights.baddbmm_(chosen.transpose(1, 2), d_products.transpose(0, 1))
        return d_inputs, d_weights, d_blended, None, None, None


def _space(weights: Tensor, counts: Sequence[int]) -> Tensor:
    """Memory for a chunk's partial products, taken once: to touch new memory costs a third more."""
    return weights.new_empty(len(weights), min(_CHUNK_TOKENS, len(counts)), weights.shape[2])


def _products(inputs: Tensor, weights: Tensor, space: Tensor | None) -> Tensor:
    """The partial products of a chunk, (splits, tokens, up), in ``space`` where there is some."""
    return torch.bmm(inputs, weights, out=None if space is None else space[:, : inputs.shape[1]])


def _of(rows: Tensor, block: _Block) -> Tensor:
    """Each token's segments' rows, (tokens, segments each, columns)."""
    return rows[block.segments].view(-1, block.each, rows.shape[1])


def _row(values: Tensor, block: _Block) -> Tensor:
    """Each token's segments' values, (tokens, 1, segments each)."""
    return values[block.segments].view(-1, 1, block.each)


def _sums(products: Tensor, members: Tensor, block: _Block) -> Tensor:
    """Each token's segments' sums, (tokens, segments each, up)."""
    return torch.bmm(_of(members, block), products[:, block.tokens].transpose(0, 1))


def _pulled_back(above: Tensor, sums: Tensor, act: Activation) -> tuple[Tensor, Tensor]:
    """``act(sums)``, and what a gradient ``above`` of each token's is at the sums."""
    sums.requires_grad_()
    with torch.enable_grad():
        hidden = act(sums)
    # Copied out: gelu's backward pass takes five times as long for a broadcast one (measured).
    copied = above[:, None].expand_as(hidden).contiguous()
    (d_sums,) = torch.autograd.grad(hidden, sums, copied)
    return hidden.detach(), d_sums
