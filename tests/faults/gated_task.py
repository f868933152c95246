"""The digits task with gates: a process stops where a test has closed one, and says so.

A closed gate is a file ``gates/PROCESS-STAGE``; who stands before it leaves ``PROCESS-STAGE.PID``
there, and goes on once the gate's file is gone. This file is copied to where the processes run.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from partsum.shared.task import Samples, Task
from partsum.shared.tasks import digits

GATES = Path("gates")


def task() -> Task:
    """Digits, with a gate before the data is loaded and before every loss."""
    plain = digits(widths=[32, 32])

    def train() -> Samples:
        _pass("load")
        return plain.train()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        _pass("train" if outputs.requires_grad else "evaluate")
        return plain.loss(outputs, targets)

    return replace(plain, train=train, loss=loss)


def _pass(stage: str) -> None:
    gate = GATES / f"{_process()}-{stage}"
    if gate.exists():
        gate.with_name(f"{gate.name}.{os.getpid()}").touch()
        while gate.exists():
            time.sleep(0.005)


def _process() -> str:
    """Which of a cluster's processes this is."""
    if "RANK" in os.environ:
        return "rank"
    return "worker" if multiprocessing.parent_process() else "coordinator"
