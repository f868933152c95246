"""A run in one process: the node's trainer and the coordinator's own code, without a network."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import torch

from partsum.coordinator.clock import RunClock
from partsum.coordinator.cohort import Change
from partsum.coordinator.folder import new_run
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.run import Run
from partsum.coordinator.terms import assignment
from partsum.node.trainer import Job, train
from partsum.shared.config import parse_config
from partsum.shared.task import Samples


def play(text: str, folder: Path) -> tuple[int, float | None]:
    """Play all rounds of a config but no hand-off; rounds committed, and the base's loss."""
    config = parse_config(text)
    with closing(new_run(config, text, 1e9, folder / "run.toml")) as store:
        run = Run(config, store, RunClock(1e9))
        run.prepare()
        while run.next_round < config.parts.rounds:
            plan, _, done = asyncio.run(run.open_round(run.next_round, {}))
            for part in set(range(len(plan.parts))) - set(done):
                deliver(run, plan, part, run.train)
            asyncio.run(run.close_round(plan, ()))
        return run.next_round, run.loss


def deliver(run: Run, plan: RoundPlan, part: int, samples: Samples) -> None:
    """What a node makes of an assignment, taken in."""
    paths = run.workshop.cutter.blob_paths(plan)
    given = assignment(run.config, plan, part)
    raw = bytearray(paths[given.cluster.digest].read_bytes())
    output = run.store.spool_path(f"trained-{part}")
    job = Job(
        assignment=given,
        start=paths[given.start.digest] if given.start else None,
        optimizer=None,
        cluster=torch.frombuffer(raw, dtype=torch.int64),
        samples=samples,
        output=output,
        device=torch.device("cpu"),
    )
    update = train(run.task, job, lambda _: None, lambda: False).update
    run.workshop.inspector.check(output, plan, part)
    run.take_update("node", update, output, run.clock.now(), Change(1.0, 1, ""))
