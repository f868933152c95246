"""Layer norms over each part's slice of the width, so that a merged base computes its parts' mean.

A LayerNorm over the whole width mixes the parts' statistics (about 20 % of the logits, measured);
one over each slice is exact. Parameter names do not change, so state dicts move freely between a
plain and a grouped model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from partsum.shared.errors import WidthError
from partsum.shared.part import Part, index_map
from partsum.shared.width import Widths, forbid_fast_path
from partsum.shared.width.layers import is_norm


class GroupedNorm(nn.Module):
    """LayerNorm or RMSNorm applied to consecutive slices of the last dimension by themselves."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.eps = norm.eps
        self.rms = isinstance(norm, nn.RMSNorm)
        self.weight = norm.weight
        self.bias = None if isinstance(norm, nn.RMSNorm) else norm.bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., d) -> (..., d), where d is the sum of ``sizes``."""
        normed = torch.cat([self._norm(piece) for piece in torch.split(input, self.sizes, -1)], -1)
        scaled = normed * self.weight
        return scaled if self.bias is None else scaled + self.bias

    def _norm(self, piece: Tensor) -> Tensor:
        if self.rms:
            return nn.functional.rms_norm(piece, piece.shape[-1:], eps=self.eps)
        return nn.functional.layer_norm(piece, piece.shape[-1:], eps=self.eps or 1e-5)


class GroupedForeignNorm(nn.Module):
    """The same of any other norm, whose own ``forward`` is called with each slice of its weights.

    So what a library's norm does beside (its precision, a weight that counts from one) stays.
    """

    def __init__(self, norm: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        # In a tuple it is no submodule: its parameters have one name, and this module's are they.
        self._norm = (norm,)

    def forward(self, input: Tensor) -> Tensor:
        """(..., d) -> (..., d), where d is the sum of ``sizes``."""
        pieces = torch.split(input, self.sizes, -1)
        own = {name: torch.split(p, self.sizes) for name, p in self.named_parameters()}
        normed = []
        for place, piece in enumerate(pieces):
            weights = {name: slices[place] for name, slices in own.items()}
            normed.append(torch.func.functional_call(self._norm[0], weights, (piece,)))
        return torch.cat(normed, -1)


def group_norms(model: nn.Module, widths: Widths, parts: Sequence[Part]) -> nn.Module:
    """Replace, in place, each norm over an axis that the parts cut; returns the model.

    The parts must be contiguous, in order and disjoint, as mode block draws them.
    """
    maps = [index_map(widths, part) for part in parts]
    for path, module in list(model.named_modules()):
        if not is_norm(module):
            continue
        indices = [kept[f"{path}.weight"][0] for kept in maps if f"{path}.weight" in kept]
        if not indices:
            continue
        if not torch.equal(torch.cat(indices), torch.arange(sum(map(len, indices)))):
            raise WidthError(f"norm {path}: parts of mode block must be contiguous and in order")
        parent, _, leaf = path.rpartition(".")
        sizes = [len(index) for index in indices]
        setattr(model.get_submodule(parent), leaf, _grouped(module, sizes))
    forbid_fast_path(model)
    return model


def _grouped(norm: nn.Module, sizes: Sequence[int]) -> nn.Module:
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return GroupedNorm(norm, sizes)
    return GroupedForeignNorm(norm, sizes)
