"""Four nodes in one process: real training, encoding, checks and merge, without a network.

What would travel is counted by its files: what a node sends of its updates, and fetches of its
starts. Chunks and messages would add about 0.1 %.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from partsum.coordinator.clock import RunClock
from partsum.coordinator.folder import new_run
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.run import Run
from partsum.coordinator.terms import assignment
from partsum.coordinator.updates import check_claim
from partsum.node.encoder import build_start, encode_update
from partsum.node.trainer import Job, Trained, train
from partsum.shared.config import parse_config

_TOO_LARGE_BYTES = 1 << 40


@dataclass(frozen=True)
class Outcome:
    """How a run ended; bytes are of all nodes and rounds together."""

    curve: tuple[float, ...]  # accuracy after each round
    loss: float
    sent_bytes: int
    fetched_bytes: int

    @property
    def accuracy(self) -> float:
        """At the end."""
        return self.curve[-1]


def play(text: str, feedback: bool = True) -> Outcome:
    """Play a run of that config; without ``feedback`` what encodings lose is forgotten."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        config = parse_config(text).model_copy(update={"folder": place})
        with closing(new_run(config, text, 1e9)) as store:
            run = Run(config, store, RunClock(1e9))
            run.prepare()
            nodes = [Node(folder / f"node-{k}", feedback) for k in range(config.parts.count)]
            return asyncio.run(_play(run, nodes))


async def _play(run: Run, nodes: list[Node]) -> Outcome:
    curve = []
    for round in range(run.config.parts.rounds):
        plan, _, _ = await run.open_round(round, {})
        for k, node in enumerate(nodes):
            await _take(run, plan, node.train(run, plan, k), k)
        result = await run.close_round(plan, ())
        curve.append(result.accuracy or 0.0)
    return Outcome(
        curve=tuple(curve),
        loss=run.loss or 0.0,
        sent_bytes=sum(node.sent_bytes for node in nodes),
        fetched_bytes=sum(node.fetched_bytes for node in nodes),
    )


async def _take(run: Run, plan: RoundPlan, done: Trained, k: int) -> None:
    """As the coordinator takes in an update whose bytes have come."""
    check_claim(done.update, plan.parts[k], _TOO_LARGE_BYTES, run.config.wire.up)
    sent = done.encoded or done.path
    assert sent is not None
    came = run.store.spool_path(f"push-{k}")
    shutil.copy(sent, came)
    path, update = await run.decode_update(came, done.update, plan)
    change = await run.check_update(path, plan, k)
    run.take_update(f"node-{k}", update, path, 0.0, change)


@dataclass
class Node:
    """A node that has the same part in every round, and its folder."""

    folder: Path
    feedback: bool
    starts: dict[str, Path] = field(default_factory=dict)  # what is on its disk, by digest
    last: Trained | None = None
    sent_bytes: int = 0
    fetched_bytes: int = 0

    def train(self, run: Run, plan: RoundPlan, k: int) -> Trained:
        """Fetch, train and encode one assignment."""
        self.folder.mkdir(exist_ok=True)
        given, last = assignment(run.config, plan, k), self.last
        goes_on = last is not None and given.start == last.update.blob
        job = Job(
            assignment=given,
            start=self._start(run, plan, k),
            optimizer=last.optimizer if last and goes_on else None,
            cluster=torch.frombuffer(
                bytearray(run.workshop.cutter.cluster_paths()[k].read_bytes()), dtype=torch.int64
            ),
            samples=run.train,
            output=self.folder / f"update-{plan.round % 2}",
            device=torch.device("cpu"),
            residual=last.residual if last and self.feedback else None,
        )
        done = encode_update(train(run.task, job, lambda progress: None, lambda: False), job)
        assert done.path is not None
        self.last, self.starts[done.update.blob.digest] = done, done.path
        self.sent_bytes += done.update.sent.size_bytes
        return done

    def _start(self, run: Run, plan: RoundPlan, k: int) -> Path | None:
        """The part's start: here already, built out of the last one, or fetched."""
        start, delta = plan.parts[k].start, plan.parts[k].delta
        if start is None or start.digest in self.starts:
            return self.starts[start.digest] if start else None
        paths, out = run.workshop.cutter.blob_paths(plan), self.folder / start.digest
        if delta is not None and delta.against.digest in self.starts:
            old = self.starts[delta.against.digest]
            build_start(paths[delta.blob.digest], old, delta.against.digest, out)
            self.fetched_bytes += delta.blob.size_bytes
        else:
            shutil.copy(paths[start.digest], out)
            self.fetched_bytes += start.size_bytes
        self.starts[start.digest] = out
        return out
