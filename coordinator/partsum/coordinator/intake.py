"""Where blobs go out to nodes and their updates come in: what is given, wanted, taken, refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from partsum.coordinator import events as e
from partsum.coordinator.desk import NodeDesk
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.records import Span
from partsum.coordinator.registry import Node
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.run import Run
from partsum.coordinator.updates import check_claim
from partsum.shared.errors import RefusedError, UpdateRefusedError
from partsum.shared.messages import Update

log = logging.getLogger(__name__)


class Intake:
    """The desk's counter for blobs; lives in the daemon's loop."""

    def __init__(
        self,
        desk: NodeDesk,
        run: Run,
        machine: RoundMachine,
        metrics: Metrics,
        decide: Callable[[e.Event], None],
    ) -> None:
        self._desk = desk
        self._run = run
        self._machine = machine
        self._metrics = metrics
        self._decide = decide

    def known(self, name: str) -> Node:
        """The node of that name. Raises RefusedError where it has no control stream."""
        node = self._desk.registry.get(name)
        if node is None or node.session is None:
            raise RefusedError(f"node {name!r} is not connected; open the control stream first")
        return node

    def blob_path(self, node: Node, digest: str) -> Path:
        """Where a blob of this node's assignment lies. Raises RefusedError."""
        round = self._desk.round
        if round is None or digest not in node.blobs or digest not in round.blobs:
            raise RefusedError(f"blob {digest[:40]!r} is not part of node {node.name}'s assignment")
        return round.blobs[digest]

    def update_wanted(self, node: Node, update: Update) -> str:
        """Empty, or why the update is not wanted. Raises UpdateRefusedError."""
        round = self._desk.round
        if round is None or update.round != round.plan.round or self._machine.phase != "training":
            return f"round {update.round} is not open"
        job = self._machine.jobs.get(update.part_index)
        if job is None or job.state == "in":
            return f"part {update.part_index} of round {update.round} is already in"
        check_claim(update, round.plan.parts[update.part_index], round.largest_bytes)
        if node.state != "sending":
            node.state, node.offered_at = "sending", self._run.clock.now()
            self._desk.changed()
        return ""

    def spool(self, node: Node, update: Update) -> Path:
        """The file that an update's bytes are gathered in."""
        name = f"push-r{update.round}-p{update.part_index}-n{node.index}-{update.blob.digest}"
        return self._run.store.spool_path(name)

    async def take_update(self, node: Node, update: Update, path: Path) -> None:
        """All bytes are in ``path``: check, name and journal them. Raises UpdateRefusedError."""
        if self.update_wanted(node, update):
            path.unlink(missing_ok=True)
            return  # the round has closed, or somebody was faster
        assert self._desk.round is not None
        try:
            await self._run.check_update(path, self._desk.round.plan.parts[update.part_index])
        except UpdateRefusedError:
            path.unlink(missing_ok=True)
            raise
        if self.update_wanted(node, update):
            path.unlink(missing_ok=True)
            return
        now = self._run.clock.now()
        self._run.take_update(node.name, update, path, now)
        self._note_spans(node, update, now)
        node.updates += 1
        node.speed = update.samples_per_second
        node.peak_memory_bytes = max(node.peak_memory_bytes, update.peak_memory_bytes)
        self._metrics.updates.labels(node.name).inc()
        if node.part in {-1, update.part_index}:
            node.rest()
        self._decide(e.UpdateIn(node.name, update.part_index))

    def _note_spans(self, node: Node, update: Update, now: float) -> None:
        """Three stretches of the node's time; the update says how long it trained."""
        round = self._desk.round
        assert round is not None
        trained = max(node.assigned_at, node.offered_at - update.train_seconds)
        round.send_seconds = max(round.send_seconds, trained - node.assigned_at)
        self._run.stages.note("train", update.train_seconds)
        self._run.stages.note("receive", now - node.offered_at)
        for state, start, end in (
            ("receiving", node.assigned_at, trained),
            ("training", trained, node.offered_at),
            ("sending", node.offered_at, now),
        ):
            span = Span(node.name, update.round, update.part_index, state, start, end)
            self._run.store.note_span(span)

    def refuse_update(self, node: Node, update: Update, error: UpdateRefusedError) -> None:
        """An update was refused: said, counted, and the part goes to somebody."""
        where = f"round {update.round} part {update.part_index}"
        log.warning("refused an update node=%s %s: %s", node.name, where, error)
        self._desk.note(f"refused:{error.kind}", str(error), node.name, update.part_index)
        self._metrics.refused.labels(error.kind).inc()
        current = self._desk.round is not None and update.round == self._desk.round.plan.round
        self._desk.give_back(node, update.part_index if current else -1, str(error))
