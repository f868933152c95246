"""Five nodes in one process: the real trainer, round machine, checks and merge, without a network.

The first node is hostile. What the daemon does between the machine and the rest is done here by a
loop that trains one assignment after the other.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.robust.attacks import Attack, flipped
from torch.utils.data import TensorDataset

from partsum.coordinator import events as e
from partsum.coordinator.clock import RunClock
from partsum.coordinator.folder import new_run
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.run import Run
from partsum.coordinator.terms import assignment, round_settings
from partsum.coordinator.updates import check_claim
from partsum.node.trainer import Job, train
from partsum.shared.config import parse_config
from partsum.shared.errors import UpdateRefusedError
from partsum.shared.files import file_digest
from partsum.shared.messages import Assignment, Blob, Update
from partsum.shared.tensors import load_tensors, save_tensors

HOSTILE = "node-0"
CLASSES = 10
_TOO_LARGE_BYTES = 1 << 40  # what an update says of its size is not what is measured here


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``refused`` counts by kind; ``benched`` says the hostile node was found.

    ``curve`` has the accuracy after each round that was evaluated.
    """

    accuracy: float
    loss: float
    refused: Counter[str]
    benched: bool
    curve: tuple[float, ...] = ()


def play(text: str, attack: Attack) -> Outcome:
    """Play a run of that config to its end."""
    config = parse_config(text)
    with closing(new_run(config, text, 1e9)) as store:
        run = Run(config, store, RunClock(1e9))
        run.prepare()
        return asyncio.run(_Cluster(run, attack).play())


class _Cluster:
    def __init__(self, run: Run, attack: Attack) -> None:
        self.run = run
        self.attack = attack
        self.machine = RoundMachine(round_settings(run.config), 0, now=0.0)
        self.refused: Counter[str] = Counter()
        self.waiting: deque[e.Action] = deque()
        self.plan: RoundPlan | None = None
        self.now = 0.0
        assert isinstance(run.train, TensorDataset)
        self.samples, self.wrong = run.train, flipped(run.train, CLASSES)

    async def play(self) -> Outcome:
        for k in range(self.run.config.parts.count):
            self.tell(e.NodeReady(f"node-{k}"))
        while self.machine.phase != "finished":
            await self.act(self.waiting.popleft())
        results = [found[0] for found in self.run.store.results().values()]
        return Outcome(
            accuracy=self.run.accuracy if self.run.accuracy is not None else 0.0,
            loss=self.run.loss if self.run.loss is not None else 0.0,
            refused=self.refused,
            benched=self.machine.is_benched(HOSTILE),
            curve=tuple(r.accuracy for r in results if r.accuracy is not None),
        )

    def tell(self, event: e.Event) -> None:
        self.now += 1.0
        self.waiting.extend(self.machine.handle(event, self.now).actions)

    async def act(self, action: e.Action) -> None:
        match action:
            case e.Plan(round):
                self.plan, holders, done = await self.run.open_round(round, {})
                # A node has the same cluster in all rounds, as long as it lives.
                self.tell(e.Planned([n or f"node-{k}" for k, n in enumerate(holders)], done))
            case e.Assign(node, part):
                self.train(node, part)
            case e.Merge(missing):
                await self.merge(missing)
            case e.Fail(reason):
                raise RuntimeError(reason)

    def train(self, node: str, part: int) -> None:
        assert self.plan is not None
        try:
            path, update = self.update(node, assignment(self.run.config, self.plan, part))
            check_claim(update, self.plan.parts[part], _TOO_LARGE_BYTES)
            change = self.run.workshop.inspector.check(path, self.plan, part)
        except UpdateRefusedError as error:
            self.refused[error.kind] += 1
            self.tell(e.JobFailed(node, part, str(error)))
            return
        self.run.take_update(node, update, path, self.now, change)
        self.tell(e.UpdateIn(node, part))

    def update(self, node: str, given: Assignment) -> tuple[Path, Update]:
        """What the node sends, and what it says of it."""
        assert self.plan is not None
        blobs = self.run.workshop.cutter.blob_paths(self.plan)
        assert given.start is not None
        hostile = node == HOSTILE
        job = Job(
            assignment=given,
            start=blobs[given.start.digest],
            optimizer=None,
            cluster=_indices(blobs[given.cluster.digest]),
            samples=self.wrong if hostile and self.attack.flips else self.samples,
            output=self.run.store.spool_path(f"sent-{given.id}"),
            device=torch.device("cpu"),
        )
        trained = train(self.run.task, job, lambda progress: None, lambda: False)
        assert trained.path is not None
        if not (hostile and self.attack.tamper):
            return trained.path, trained.update
        generator = torch.Generator().manual_seed(given.seed + given.round)
        start, update = load_tensors(blobs[given.start.digest]), load_tensors(trained.path)
        save_tensors(trained.path, self.attack.tamper(update, start, generator), durable=False)
        blob = Blob(file_digest(trained.path), trained.path.stat().st_size)
        return trained.path, Update(**{**vars(trained.update), "blob": blob})

    async def merge(self, missing: tuple[int, ...]) -> None:
        assert self.plan is not None
        found = self.run.workshop.inspector.outliers(self.plan, missing)
        for outlier in found:
            node = self.run.store.updates(self.plan.round)[outlier.part].node
            self.run.drop_update(self.plan.round, outlier.part)
            self.refused["norm"] += 1
            self.tell(e.Withdrawn(node, outlier.part, outlier.reason))
        if not found:
            await self.run.close_round(self.plan, missing)
            self.tell(e.Merged())


def _indices(path: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.int64)
