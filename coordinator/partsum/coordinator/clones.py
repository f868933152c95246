"""Noise that lets copies part: clones without it stay alike (Net2Net, 1511.05641)."""

from __future__ import annotations

import torch
from torch import Tensor


def with_noise(tensor: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A matrix with Gaussian noise, ``share`` of its own standard deviation; all else as it is.

    Vectors (biases, norms) and integers are left alone: matrices that differ are enough.
    """
    if tensor.dim() < 2 or tensor.numel() < 2 or not tensor.is_floating_point():
        return tensor
    drawn = torch.randn(tensor.shape, generator=generator)
    return tensor + (share * tensor.float().std() * drawn).to(tensor.dtype)
