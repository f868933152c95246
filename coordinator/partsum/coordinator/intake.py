"""Where blobs go out to nodes and their updates come in: what is given, wanted, taken, refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import xxhash

from partsum.coordinator import events as e
from partsum.coordinator.cohort import Change, Outlier
from partsum.coordinator.desk import NodeDesk
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.records import Span
from partsum.coordinator.registry import Node
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.run import Run
from partsum.coordinator.updates import check_claim
from partsum.shared.errors import RefusedError, UpdateRefusedError
from partsum.shared.messages import Update
from partsum.shared.partial import Partial

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
            raise RefusedError(
                f"node {name[:64]!r} is not connected; open the control stream first"
            )
        return node

    def blob_path(self, node: Node, digest: str) -> Path:
        """Where a blob of this node's assignment lies. Raises RefusedError."""
        round = self._desk.round
        if round is None or digest not in node.blobs or digest not in round.blobs:
            raise RefusedError(f"blob {digest[:40]!r} is not part of node {node.name}'s assignment")
        return round.blobs[digest]

    def update_wanted(self, node: Node, update: Update) -> str:
        """Empty, or why the update is not wanted. Raises UpdateRefusedError, or RefusedError."""
        if node.state == "loading":  # a new connection may bring another version of the task
            raise RefusedError(f"node {node.name!r} has not said yet which task and data it has")
        if self._machine.is_benched(node.name):
            return "this node is quarantined"
        round = self._desk.round
        if round is None or update.round != round.plan.round or self._machine.phase != "training":
            return f"round {update.round} is not open"
        job = self._machine.jobs.get(update.part_index)
        if job is None or job.state == "in":
            return f"part {update.part_index} of round {update.round} is already in"
        if node.name not in round.given.get(update.part_index, {job.node}):
            return f"part {update.part_index} of round {update.round} was given to others"
        if round.generation and update.assignment_id != round.assignment_id(update.part_index):
            return "the gang that trained it broke before all of its members had delivered"
        masking = round.masking.get(update.part_index)
        if update.session != (masking.session if masking else ""):
            return "its masks are not those of this round"  # it is told the right ones, or was
        planned = round.plan.parts[update.part_index]
        up = self._run.workshop_of(round.plan.round).config.wire.up
        if self.follows(update):
            planned = replace(planned, num_samples=0)
        check_claim(update, planned, round.largest_bytes, up)
        if node.state != "sending":
            node.state, node.offered_at = "sending", self._run.clock.now()
            self._desk.changed()
        return ""

    def follows(self, update: Update) -> bool:
        """Whether it holds nothing new: in a gang of the hand-off rank 0 delivers for all."""
        round, gang = self._desk.round, self._desk.gangs.gang
        if round is None or round.plan.handoff is None or gang is None:
            return False
        start = round.plan.parts[update.part_index].start
        return update.part_index in gang.parts[1:] and update.blob == start

    def take_following(self, node: Node, update: Update) -> None:
        """Journal an update that is its own start, of which no bytes have to travel."""
        assert self._desk.round is not None
        plan = self._desk.round.plan
        origin = self._run.workshop_of(plan.round).cutter.origin_paths(plan)[update.part_index]
        path = self.spool(node, update)
        path.unlink(missing_ok=True)
        os.link(origin, path)
        self._taken(node, update, path, Change(0.0, 0, ""))

    def spool(self, node: Node, update: Update) -> Path:
        """The file that an update's bytes are gathered in."""
        who = xxhash.xxh3_64_hexdigest(node.name.encode())  # the same after a restart
        name = f"push-r{update.round}-p{update.part_index}-{who}"
        # Its size too: under one of another size the same digest is that of other bytes.
        sent = update.sent
        return self._run.store.spool_path(f"{name}-{sent.digest}.{sent.size_bytes}")

    def begin_spool(self, node: Node, update: Update) -> Path:
        """The same, to be written; what the node sent of another update of the part is dropped.

        So a node fills no more of the disk than one file for each part that it was given.
        """
        path = self.spool(node, update)
        assert self._desk.round is not None
        pushes, name = self._desk.round.pushes, path.name.rpartition("-")[0]
        if (other := pushes.get(name, path)) != path:
            other.unlink(missing_ok=True)
        pushes[name] = path
        return path

    def gather(self, spool: Path, update: Update) -> Partial:
        """What takes the update's bytes."""
        return Partial(spool, update.sent.size_bytes, self._run.store.spares)

    async def take_update(self, node: Node, update: Update, path: Path) -> None:
        """All bytes are in ``path``: check, name and journal them. Raises UpdateRefusedError."""
        if self.update_wanted(node, update):
            path.unlink(missing_ok=True)
            return  # the round has closed, or somebody was faster
        assert self._desk.round is not None
        plan = self._desk.round.plan
        try:
            path, update = await self._run.decode_update(path, update, plan)
            change = await self._run.check_update(path, plan, update.part_index)
        except UpdateRefusedError:
            path.unlink(missing_ok=True)
            if self.update_wanted(node, update):
                return  # the round has closed: what was looked at may have been written over
            raise
        if self.update_wanted(node, update):
            path.unlink(missing_ok=True)
            return
        self._taken(node, update, path, change)

    def _taken(self, node: Node, update: Update, path: Path, change: Change) -> None:
        """The update is whole, in that file: name and journal it, and tell the machine."""
        now = self._run.clock.now()
        self._run.take_update(node.name, update, path, now, change)
        self._note_spans(node, update, now)
        node.updates += 1
        node.speed = update.samples_per_second
        node.peak_memory_bytes = max(node.peak_memory_bytes, update.peak_memory_bytes)
        self._metrics.took_update(node.name)
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
        stretches = (
            ("receiving", node.assigned_at, trained),
            ("training", trained, node.offered_at),
            ("sending", node.offered_at, now),
        )
        part = (node.name, update.round, update.part_index)
        self._run.store.note_spans(*(Span(*part, *stretch) for stretch in stretches))

    def refuse_update(self, node: Node, update: Update, error: UpdateRefusedError) -> None:
        """An update was refused: said, counted, and the part goes to somebody."""
        self._tell_refused(node.name, update, error)
        current = self._desk.round is not None and update.round == self._desk.round.plan.round
        self._desk.give_back(node, update.part_index if current else -1, str(error))

    def withdraw_outliers(self, missing: tuple[int, ...]) -> bool:
        """Before a merge: take back the updates that stand out beside the others; were there any?

        Their parts go to other nodes. Where the machine closes the round without one of them, it
        stops there: the merge that follows looks again.
        """
        round = self._desk.round
        assert round is not None
        works = self._run.workshop_of(round.plan.round)
        found = works.inspector.outliers(round.plan, missing)
        for outlier in found:
            self._withdraw(round.plan.round, outlier)
            if self._machine.phase != "training":
                break
        return bool(found)

    def _withdraw(self, round: int, outlier: Outlier) -> None:
        received = self._run.store.updates(round)[outlier.part]
        self._run.drop_update(round, outlier.part)
        error = UpdateRefusedError("norm", outlier.reason)
        self._tell_refused(received.node, received.update, error)
        self._decide(e.Withdrawn(received.node, outlier.part, outlier.reason))
        if (node := self._desk.registry.get(received.node)) is not None:
            self._desk.quarantine_if_benched(node)

    def _tell_refused(self, node: str, update: Update, error: UpdateRefusedError) -> None:
        where = f"round {update.round} part {update.part_index}"
        log.warning("refused an update node=%s %s: %s", node, where, error)
        self._desk.note(f"refused:{error.kind}", str(error), node, update.part_index)
        self._metrics.refused.labels(error.kind).inc()
