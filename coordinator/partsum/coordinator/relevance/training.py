"""A few epochs of the whole model on the coordinator, before anybody else trains."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partsum.coordinator.relevance.ard import Ard
from partsum.shared.errors import PartsumError
from partsum.shared.schedule import rate
from partsum.shared.task import Samples, Task, gather, num_samples, walk

log = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0
_SPREAD_RATE = (
    10.0  # times the learning rate, for log sigma^2: it has some 6 nats to go in 2 epochs
)


class LeftError(PartsumError):
    """The training was left before its end, since the coordinator stops."""


@dataclass(frozen=True)
class Lesson:
    """How to train: passes over the data, and the rest as in [training] and [relevance]."""

    epochs: float
    batch_size: int
    learning_rate: float
    betas: tuple[float, float]
    warmup: float
    weight_decay: float
    kl_warmup: float
    precision: str
    seed: int


def train_whole(
    model: nn.Module,
    task: Task,
    samples: Samples,
    lesson: Lesson,
    ard: Ard | None,
    should_stop: Callable[[], bool] = lambda: False,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """Train a model in place with AdamW; the mean loss of its last tenth of steps, without KL.

    The same lesson gives the same bytes on the same kind of host. With ``ard`` the loss is the
    paper's bound: the KL divergence divided by the number of samples is added to it, growing to its
    full weight over the first ``kl_warmup`` of the steps, and weights do not decay beside that.

    Raises:
        LeftError: ``should_stop`` said so, before a step.
        PartsumError: the loss is not finite.
    """
    device = next(model.parameters()).device
    total, done = num_samples(samples), 0
    wanted = max(1, round(lesson.epochs * total))
    optimizer = _optimizer(model, lesson, ard)
    losses = _Losses()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(lesson.seed)
        model.train()
        for indices in walk(lesson.seed, torch.arange(total), 0, wanted, lesson.batch_size):
            if should_stop():
                raise LeftError("the training of the whole model was left before its end")
            progress = done / wanted
            done += len(indices)
            if len(indices) == 1 < min(done, lesson.batch_size):
                continue  # what is left over: batch norm refuses a batch of one
            loss = _forward(model, task, gather(samples, indices), lesson.precision, device)
            weight = min(1.0, progress / lesson.kl_warmup) if lesson.kl_warmup else 1.0
            bound = loss if ard is None else loss + weight / total * ard.divergence()
            _step(optimizer, bound, rate(progress, lesson.warmup))
            after_step()
            losses.add(loss, done / wanted)
    model.zero_grad(set_to_none=True)
    model.eval()
    return losses.last()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, factor: float) -> None:
    """One step down the loss, at so much of each group's peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


class _Losses:
    """The losses of all steps; says now and then how it goes."""

    def __init__(self) -> None:
        self._all: list[Tensor] = []
        self._told = time.monotonic()

    def add(self, loss: Tensor, share: float) -> None:
        """The loss of a step, after which so much of the training is done."""
        self._all.append(loss.detach())
        if time.monotonic() - self._told >= _REPORT_SECONDS:
            self._told = time.monotonic()
            log.info("%.0f %% done, loss %.4f", 100 * share, self.last())

    def last(self) -> float:
        """The mean of the last tenth of steps. Raises PartsumError where it is no number."""
        newest = self._all[-max(1, len(self._all) // 10) :]
        mean = float(torch.stack(newest).float().mean())
        if not math.isfinite(mean):
            raise PartsumError(
                f"the loss is {mean} after {len(self._all)} steps of the whole model on the "
                "coordinator; lower training.learning_rate"
            )
        return mean


def _forward(
    model: nn.Module, task: Task, batch: tuple[Tensor, Tensor], precision: str, device: torch.device
) -> Tensor:
    inputs, targets = (tensor.to(device) for tensor in batch)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        return task.loss(model(inputs), targets)


def _optimizer(model: nn.Module, lesson: Lesson, ard: Ard | None) -> torch.optim.Optimizer:
    """Matrices decay as on nodes, without ARD; spreads move faster."""
    spreads = ard.spreads if ard is not None else []
    own = {id(parameter) for parameter in spreads}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    decay = 0.0 if ard is not None else lesson.weight_decay
    peak = lesson.learning_rate
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": decay, "peak": peak},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0, "peak": peak},
        {"params": spreads, "weight_decay": 0.0, "peak": _SPREAD_RATE * peak},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=peak, betas=lesson.betas)
