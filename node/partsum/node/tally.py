"""How far an assignment is: samples, losses and seconds; the device is asked only now and then."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partsum.shared.errors import PartsumError
from partsum.shared.messages import Progress

PROGRESS_SECONDS = 0.25


@dataclass
class Tally:
    """Counts samples and adds up losses; ``seconds`` are those in which it was `running`."""

    assignment_id: str
    clock: Callable[[], float]
    samples_done: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    _steps_read: int = 0
    _unread: list[tuple[Tensor, int]] = field(default_factory=list)
    _last_read: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take the time meanwhile; at the end read what is left. Raises as `settle` does."""
        self._last_read = self.clock()
        yield
        self.settle()

    def add(self, loss: Tensor, samples: int) -> bool:
        """Count one step; True when it is time to report."""
        self._unread.append((loss.detach(), samples))
        self.samples_done += samples
        due = self.clock() - self._last_read >= PROGRESS_SECONDS
        if due:
            self.settle()
        return due

    def settle(self) -> None:
        """Read all losses so far. Raises PartsumError where one is not finite."""
        losses: list[float] = []
        if self._unread:  # reading them waits for the device
            losses = torch.stack([loss.float() for loss, _ in self._unread]).tolist()
        now = self.clock()
        self.seconds += now - self._last_read
        self._last_read = now
        for loss, (_, samples) in zip(losses, self._unread, strict=True):
            self._steps_read += 1
            if not math.isfinite(loss):
                raise PartsumError(
                    f"the loss became {loss} at step {self._steps_read} of assignment "
                    f"{self.assignment_id}; a lower training.learning_rate or a "
                    "training.gradient_clip may help, and bad samples are worth a look"
                )
            self.loss_sum += loss * samples
        self._unread.clear()

    def progress(self) -> Progress:
        """How far the assignment is; the loss is its mean so far."""
        done = self.samples_done
        speed = done / max(self.seconds, 1e-9)
        return Progress(self.assignment_id, done, self.loss_sum / max(done, 1), speed)
