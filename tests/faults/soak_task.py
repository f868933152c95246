"""The digits task at a walk: each training step sleeps, so that a soak takes time and not the CPU.

This file is copied to where the processes run.
"""

from __future__ import annotations

import time
from dataclasses import replace

from torch import Tensor

from partsum.shared.task import Task
from partsum.shared.tasks import digits


def task(step_seconds: float) -> Task:
    """Digits; a training step takes ``step_seconds`` more."""
    plain = digits(widths=[32, 32])

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            time.sleep(step_seconds)
        return plain.loss(outputs, targets)

    return replace(plain, loss=loss)
