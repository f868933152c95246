"""Outer optimizers: a round's mean change taken as a gradient, and how far the base goes along it.

Momentum: Hsu et al. 2019 (1909.06335, FedAvgM); with Nesterov's step ahead: Douillard et al. 2023
(2311.08105, DiLoCo); adaptive: Reddi et al. 2020 (2003.00295, FedAdam and FedYogi).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from partsum.shared.config import OuterConfig

# Hsu et al. leave the server's rate at 1; Douillard et al. found 0.7 best. Reddi et al. tune theirs
# for each task, so 0.01 is only where to begin.
_RATES = {"momentum": 1.0, "nesterov": 0.7, "adam": 0.01, "yogi": 0.01}
_MOMENTUM = 0.9
_BETAS = (0.9, 0.99)
_EPSILON = 1e-3


class Optimizer(Protocol):
    """What it keeps for each element begins as ``fresh``: a number for each moment."""

    @property
    def fresh(self) -> tuple[float, ...]:
        """The moments before the first step."""
        ...

    def step(self, change: Tensor, moments: Tensor) -> Tensor:
        """How far every element goes.

        Args:
            change: the merged values less the base's, of any shape.
            moments: one layer of that shape for each of ``fresh``; they become the next step's.
        """
        ...


@dataclass(frozen=True)
class Momentum:
    """v = momentum v + change; goes rate v, or, with Nesterov, rate (change + momentum v)."""

    rate: float
    momentum: float
    nesterov: bool

    @property
    def fresh(self) -> tuple[float, ...]:
        """The base stands still."""
        return (0.0,)

    def step(self, change: Tensor, moments: Tensor) -> Tensor:
        """As the class says; rate 1 without momentum goes just as far as the average."""
        speed = moments[0]
        speed.mul_(self.momentum).add_(change)
        ahead = change + speed * self.momentum if self.nesterov else speed
        return ahead * self.rate


@dataclass(frozen=True)
class Adaptive:
    """Goes rate m / (sqrt(v) + epsilon), without correction of the bias.

    m = b1 m + (1 - b1) change. Adam: v = b2 v + (1 - b2) change^2; Yogi: v moves towards change^2
    by (1 - b2) change^2, which forgets a rare large change no sooner than a small one comes.
    """

    rate: float
    betas: tuple[float, float]
    epsilon: float
    yogi: bool

    @property
    def fresh(self) -> tuple[float, ...]:
        """v begins at epsilon squared, the least that the paper's proof allows."""
        return (0.0, self.epsilon**2)

    def step(self, change: Tensor, moments: Tensor) -> Tensor:
        """As the class says."""
        mean, spread = moments[0], moments[1]
        first, second = self.betas
        square = change * change
        mean.mul_(first).add_(change, alpha=1 - first)
        if self.yogi:
            spread.addcmul_(square, (square - spread).sign(), value=1 - second)
        else:
            spread.mul_(second).add_(square, alpha=1 - second)
        return mean * self.rate / (spread.sqrt() + self.epsilon)


def make_optimizer(outer: OuterConfig) -> Optimizer:
    """The config's optimizer, with the papers' values where it names none. Not for average."""
    rate = outer.learning_rate or _RATES[outer.optimizer]
    if outer.optimizer in {"momentum", "nesterov"}:
        momentum = _MOMENTUM if outer.momentum is None else outer.momentum
        return Momentum(rate, momentum, nesterov=outer.optimizer == "nesterov")
    betas, epsilon = outer.betas or _BETAS, outer.epsilon or _EPSILON
    return Adaptive(rate, betas, epsilon, yogi=outer.optimizer == "yogi")
