"""Batch norms of a base whose statistics fit no part: found, and counted again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def has_batch_norm(model: nn.Module) -> bool:
    """Whether averaging left running statistics behind that fit no part (failure mode 6)."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def recalibrate(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Recompute batch norm statistics of an averaged model as the mean over some input batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    with torch.no_grad():
        for inputs in batches:
            model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
