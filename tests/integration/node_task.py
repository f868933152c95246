"""A tiny task for the node's tests; workers import it from this folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.shared.task import Samples, Task


def blobs_of_points(count: int = 256, seed: int = 0) -> TensorDataset:
    """Points around four centres, and which one."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 4, (count,), generator=generator)
    centres = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [-2, -2, -2]])
    return TensorDataset(centres[targets] + torch.randn(count, 3, generator=generator), targets)


def _model(hidden: int = 16, dropout: float = 0.2) -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 4),
    )


def task(hidden: int = 16, dropout: float = 0.2) -> Task:
    return Task(
        model=lambda: _model(hidden, dropout),
        train=blobs_of_points,
        validation=lambda: blobs_of_points(seed=1),
        loss=nn.functional.cross_entropy,
    )


def no_data() -> Task:
    def train() -> Samples:
        raise FileNotFoundError("/no/such/folder")

    return Task(model=_model, train=train, validation=train, loss=nn.functional.cross_entropy)


def deadly(marker: str) -> Task:
    """Its loss kills the worker, once: the marker file remembers."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(outputs, targets)

    return Task(model=_model, train=blobs_of_points, validation=blobs_of_points, loss=loss)
