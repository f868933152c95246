"""A worker that is started anew may find another task than the coordinator was told of."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import signal
from pathlib import Path

import pytest

from partsum.node.process import WorkerProcess
from partsum.node.worker import WorkerSettings, serve
from partsum.shared.errors import TaskError
from partsum.shared.messages import TaskSpec

SOURCE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

from partsum.shared.task import Task


def samples():
    return TensorDataset(torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64))


def task() -> Task:
    return Task(lambda: nn.Linear(2, 2), samples, samples, nn.functional.cross_entropy, {})
"""


def test_a_new_worker_must_find_the_task_that_the_coordinator_was_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)  # the worker's too
    source = tmp_path / "task_that_changes.py"
    source.write_text(SOURCE)
    spec = TaskSpec("task_that_changes:task")

    async def restart() -> None:
        restarted = asyncio.Event()
        main = functools.partial(serve, settings=WorkerSettings("cpu", threads=1))
        worker = WorkerProcess(main, random.Random(0), restarted.set)
        try:
            await worker.load(spec)
            source.write_text(SOURCE.replace("nn.Linear(2, 2)", "nn.Linear(2, 2, bias=False)"))
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await restarted.wait()
            with pytest.raises(TaskError, match="has changed on this host"):
                await worker.load(spec)
        finally:
            await worker.close()

    asyncio.run(restart())
