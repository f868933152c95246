"""A small task for the hand-off's tests: importable by its ranks, and done in a second."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.shared.task import Samples, Task


class TiedNet(nn.Module):
    """Tied weights, batch statistics and an integer buffer: all that a state dict may hold."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.norm = nn.BatchNorm1d(32)
        self.middle = nn.Linear(32, 32, bias=False)
        self.again = nn.Linear(32, 32, bias=False)
        self.again.weight = self.middle.weight
        self.head = nn.Linear(32, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int32))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        hidden = torch.relu(self.norm(self.first(inputs)))
        outputs: Tensor = self.head(torch.relu(self.again(torch.relu(self.middle(hidden)))))
        return outputs


def _samples(seed: int, count: int) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0].sign() + inputs[:, 1].sign()).div(2).long() + 1)


def make(slow_seconds: float = 0.0, spoiled_step: int = 0, broken: bool = False) -> Task:
    """The task; each training batch takes ``slow_seconds``, and one loss may be spoiled."""
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        if broken:
            raise ValueError("the loss is broken")
        if outputs.requires_grad:
            calls += 1
            time.sleep(slow_seconds)
        value = nn.functional.cross_entropy(outputs, targets)
        return value * float("nan") if spoiled_step and calls == spoiled_step else value

    return Task(
        model=TiedNet,
        train=lambda: _samples(0, 512),
        validation=lambda: _samples(1, 256),
        loss=loss,
        metrics={"accuracy": lambda o, t: (o.argmax(-1) == t).float().mean()},
    )
