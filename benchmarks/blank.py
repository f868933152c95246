"""A task that is nothing but weights: rounds of it measure the data plane."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from partsum.shared.task import Task


def blank(width: int, layers: int) -> Task:
    """``layers`` square matrices of ``width``, float32, and sixteen samples of nothing."""

    def model() -> nn.Module:
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

    def samples() -> TensorDataset:
        return TensorDataset(torch.zeros(16, width), torch.zeros(16, width))

    return Task(model, samples, samples, nn.functional.mse_loss)
