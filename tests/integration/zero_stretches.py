"""Trains the same steps at one stretch and at two, in a process of its own: ``... FOLDER``.

Prints, for each way of ZeRO, whether the weights are the same to the bit, and have moved.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch

from partsum.node.trainer import Job, Trained
from partsum.node.zero import train_zero
from partsum.shared.messages import Assignment, Blob, TaskSpec, TrainSettings, ZeroWork
from partsum.shared.part import WHOLE
from partsum.shared.task import load_task
from partsum.shared.tensors import load_tensors, save_tensors

SETTINGS = TrainSettings(16, 1e-2, 0.5, 0.01, (0.9, 0.99), 1.0, 0.01, "float32", "weights", True)
TASK = load_task(TaskSpec("partsum.shared.tasks:digits", {"widths": [32, 32]}))
Stage = Literal[0, 1, 2, 3]


def stretch(
    folder: Path, start: Path, first: int, steps: int, stage: Stage, offload: bool
) -> Trained:
    """Take ``steps`` of six steps, after ``first`` earlier ones."""
    before = "0" * 32 if first else ""
    work = ZeroWork("apart", stage, offload, 1, first, steps, 6, 0.0, start_before=before)
    given = Assignment(
        id=f"s{first}",
        round=first,
        part_index=0,
        part=WHOLE,
        seed=(2**31 - 1) * 1_000_003,  # the largest that a config's seed makes
        start=Blob("0" * 32, 1),
        cluster=Blob("1" * 32, 1),
        samples=None,
        first_sample=first * SETTINGS.batch_size,
        num_samples=steps * SETTINGS.batch_size,
        progress=(first / 6, (first + steps) / 6),
        settings=SETTINGS,
        zero=work,
    )
    cluster, samples = torch.arange(400), TASK.train()
    output = folder / f"update-{first}-{steps}"
    device = torch.device("cpu")
    job = Job(given, start, None, cluster, samples, output, device)
    return train_zero(TASK, job, folder, lambda progress: None, lambda: False)


def kept_of_another_run(folder: Path, start: Path) -> None:
    """What an earlier run left in the node's folder goes, and not what this one has just kept."""
    kept = folder / "own" / "zero"
    kept.mkdir(parents=True)
    for step in (4, 6):
        save_tensors(kept / f"p0-s{step}.safetensors", {})
    stretch(kept.parent, start, 0, 2, 0, False)
    print("kept", sorted(path.name for path in kept.iterdir()))


def main(folder: Path) -> None:
    torch.manual_seed(0)
    start = folder / "start"
    save_tensors(start, TASK.model().state_dict())
    kept_of_another_run(folder, start)
    ways: tuple[tuple[Stage, bool], ...] = ((0, False), (1, True), (2, True), (3, False))
    for stage, offload in ways:
        one = stretch(folder, start, 0, 6, stage, offload)
        first = stretch(folder, start, 0, 2, stage, offload)
        assert first.path is not None
        second = stretch(folder, first.path, 2, 4, stage, offload)
        assert one.path is not None
        assert second.path is not None
        left, right = load_tensors(one.path), load_tensors(second.path)
        same = all(torch.equal(left[name], right[name]) for name in left)
        moved = not torch.equal(left["head.weight"], load_tensors(start)["head.weight"])
        print(f"stage={stage} offload={offload} same={same} moved={moved}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
