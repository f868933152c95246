"""A task that is nothing but weights: rounds of it measure everything but training."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from partsum.shared.task import Task


def blank(width: int, layers: int, samples: int = 16) -> Task:
    """``layers`` square matrices of ``width``, float32, and so many samples of nothing."""

    def model() -> nn.Module:
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

    def nothing() -> TensorDataset:
        return TensorDataset(torch.zeros(samples, width), torch.zeros(samples, width))

    return Task(model, nothing, nothing, nn.functional.mse_loss)
