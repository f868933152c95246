"""The desk where nodes report: what they say becomes events, what is decided becomes messages."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from partsum.coordinator import events as e
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.records import RoundPlan, Span
from partsum.coordinator.registry import Node, Registry, Session
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.run import Run
from partsum.coordinator.updates import check_claim
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire
from partsum.shared.errors import RefusedError, StateError, UpdateRefusedError
from partsum.shared.messages import NodeProfile, Progress, Update

log = logging.getLogger(__name__)


@dataclass
class OpenRound:
    """The round that nodes work on."""

    plan: RoundPlan
    blobs: dict[str, Path]  # what nodes may pull, by digest
    largest_bytes: int  # that an update's file can have
    send_seconds: float = 0.0  # the longest delivery of an assignment

    def assignment_id(self, part: int) -> str:
        """The name of a part's assignment."""
        return f"r{self.plan.round}-p{part}"


class NodeDesk:
    """Deals with a run's nodes, in the daemon's loop. ``changed`` wakes those who watch."""

    def __init__(
        self,
        run: Run,
        machine: RoundMachine,
        metrics: Metrics,
        decide: Callable[[e.Event], None],
        changed: Callable[[], None],
    ) -> None:
        self.registry = Registry()
        self.round: OpenRound | None = None
        self._run = run
        self._machine = machine
        self._metrics = metrics
        self._decide = decide
        self._changed = changed
        self._samples_lock = asyncio.Lock()  # two must not write one cluster's file at once
        for name, body in run.store.nodes().items():
            self.registry.restore(name, body)

    # -- assignments ------------------------------------------------------------------------------

    def assign(self, name: str, part: int) -> None:
        """Note that the node has the part; `deliver` then tells it."""
        node, round = self.registry.get(name), self.round
        assert node is not None
        assert round is not None
        node.rest("receiving")
        node.part, node.assigned_samples = part, round.plan.parts[part].num_samples
        node.assigned_at = self._run.clock.now()
        self._run.note_holder(round.plan.round, part, name)

    async def deliver(self, name: str, part: int) -> None:
        """Send the assignment, with the cluster's samples where the node has no copy."""
        node, round = self.registry.get(name), self.round
        assert node is not None
        assert round is not None
        assignment = self._run.assignment(round.plan, part)
        if node.profile is not None and not node.profile.data_digest:
            async with self._samples_lock:
                path, blob = await asyncio.to_thread(self._run.workshop.cluster_samples, part)
            round.blobs[blob.digest] = path
            assignment = replace(assignment, samples=blob)
        if self.round is not round or not self._has(name, part):
            return  # meanwhile it was cancelled; the node may have another by now
        wanted = (assignment.start, assignment.cluster, assignment.samples)
        node.blobs = {blob.digest for blob in wanted if blob}
        message = pb.ControlResponse(assignment=wire.assignment_to_wire(assignment))
        if node.session is not None:
            node.bytes_sent += message.ByteSize()
            node.session.send(message)

    def _has(self, name: str, part: int) -> bool:
        job = self._machine.jobs.get(part)
        return job is not None and job.state == "assigned" and job.node == name

    def cancel(self, name: str, part: int, reason: str) -> None:
        """Tell a node that its work is no longer needed."""
        node, round = self.registry.get(name), self.round
        if node is None or round is None:
            return
        cancel = pb.Cancel(assignment=round.assignment_id(part), reason=reason)
        if node.session:
            node.session.send(pb.ControlResponse(cancel=cancel))
        node.rest()

    # -- a node's life ----------------------------------------------------------------------------

    def joins(self, hello: pb.Hello) -> tuple[Node, Session]:
        """A node connects. Raises RefusedError."""
        if hello.protocol != wire.PROTOCOL:
            raise RefusedError(
                f"this node speaks protocol {hello.protocol}, the coordinator {wire.PROTOCOL}; "
                f"install the same partsum on both (the node has {hello.version})"
            )
        if not 0 < len(hello.node) <= 64 or not hello.node.isprintable():
            raise RefusedError("a node's name must have 1 to 64 printable characters")
        node, session = self.registry.join(hello.node, hello.instance, time.monotonic())
        config = self._run.config
        welcome = pb.Welcome(
            run=self._run.folder.name,
            task=config.task.name,
            task_options=json.dumps(config.task.options),
            heartbeat_seconds=config.rounds.heartbeat_seconds,
            stream_samples=config.data.stream,
        )
        session.send(pb.ControlResponse(welcome=welcome))
        log.info("node %s connected", node.name)
        self._changed()
        return node, session

    def ready(self, node: Node, profile: NodeProfile) -> None:
        """It has the task and the data. Raises RefusedError where they are not ours."""
        self._run.check_profile(profile)
        node.profile = profile
        node.rest()
        self._run.store.note_node(node.name, self.registry.memory(node))
        log.info("node %s is ready: %s, %.0f GFLOP/s", node.name, profile.device, profile.gflops)
        self._decide(e.NodeReady(node.name))
        if self._is_benched(node):
            node.rest("benched")

    def heard(self, node: Node) -> None:
        """It lives."""
        node.last_heard = time.monotonic()

    def progress(self, node: Node, progress: Progress) -> None:
        """It trains."""
        if self.round is None or progress.assignment_id != self.round.assignment_id(node.part):
            return
        node.state, node.progress = "training", progress
        self._metrics.speed.labels(node.name).set(progress.samples_per_second)
        self._metrics.train_loss.labels(node.name).set(progress.loss)
        self._changed()

    def failed(self, node: Node, assignment: str, reason: str) -> None:
        """It cannot do an assignment."""
        round, jobs = self.round, self._machine.jobs
        held = {round.assignment_id(p): p for p in jobs if round and self._has(node.name, p)}
        if (part := held.get(assignment)) is None:
            return
        log.warning("node %s failed assignment %s: %s", node.name, assignment, reason)
        self._note("failed", f"assignment {assignment}: {reason}", node.name)
        self._metrics.failures.labels(node.name).inc()
        self._give_back(node, part, reason)

    def left(self, node: Node, session: Session) -> None:
        """Its stream has ended; an old stream of a node that is back does not count."""
        session.closed = True
        if node.session is not session:
            return
        node.session = None
        node.rest("gone")
        level = logging.INFO if self._machine.phase == "finished" else logging.WARNING
        log.log(level, "node %s is gone", node.name)
        self._note("gone", "the connection ended", node.name)
        self._decide(e.NodeGone(node.name))

    async def watch_heartbeats(self) -> None:
        """A node that is silent for three heartbeats is gone, though its connection stands."""
        beat = self._run.config.rounds.heartbeat_seconds
        while True:
            before = time.monotonic()
            await asyncio.sleep(beat)
            if time.monotonic() - before > 2 * beat:
                continue  # it was this process that was held up, and what they said is unread
            for node in self.registry:
                if node.session and time.monotonic() - node.last_heard > 3 * beat + 1:
                    log.warning("node %s has missed three heartbeats", node.name)
                    session = node.session
                    session.close()
                    self.left(node, session)

    # -- tensors ----------------------------------------------------------------------------------

    def known(self, name: str) -> Node:
        """The node of that name. Raises RefusedError where it has no control stream."""
        node = self.registry.get(name)
        if node is None or node.session is None:
            raise RefusedError(f"node {name!r} is not connected; open the control stream first")
        return node

    def blob_path(self, node: Node, digest: str) -> Path:
        """Where a blob of this node's assignment lies. Raises RefusedError."""
        if self.round is None or digest not in node.blobs or digest not in self.round.blobs:
            raise RefusedError(f"blob {digest[:40]!r} is not part of node {node.name}'s assignment")
        return self.round.blobs[digest]

    def update_wanted(self, node: Node, update: Update) -> str:
        """Empty, or why the update is not wanted. Raises UpdateRefusedError."""
        round = self.round
        if round is None or update.round != round.plan.round or self._machine.phase != "training":
            return f"round {update.round} is not open"
        job = self._machine.jobs.get(update.part_index)
        if job is None or job.state == "in":
            return f"part {update.part_index} of round {update.round} is already in"
        check_claim(update, round.plan.parts[update.part_index], round.largest_bytes)
        if node.state != "sending":
            node.state, node.offered_at = "sending", self._run.clock.now()
            self._changed()
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
        assert self.round is not None
        try:
            await self._run.check_update(path, self.round.plan.parts[update.part_index])
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
        assert self.round is not None
        trained = max(node.assigned_at, node.offered_at - update.train_seconds)
        self.round.send_seconds = max(self.round.send_seconds, trained - node.assigned_at)
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
        self._note(f"refused:{error.kind}", str(error), node.name, update.part_index)
        self._metrics.refused.labels(error.kind).inc()
        current = self.round is not None and update.round == self.round.plan.round
        self._give_back(node, update.part_index if current else -1, str(error))

    def _give_back(self, node: Node, part: int, reason: str) -> None:
        """The part is free again; a node that failed too often in a row gets no more."""
        if node.part in {-1, part}:
            node.rest()
        self._decide(e.JobFailed(node.name, part, reason))
        if self._is_benched(node) and node.state != "benched":
            node.rest("benched")
            log.warning("node %s gets no more work: it failed too often in a row", node.name)
            self._note("benched", "failed too often in a row", node.name)

    def _is_benched(self, node: Node) -> bool:
        member = self._machine.members.get(node.name)
        return member is not None and member.state == "benched"

    def _note(self, kind: str, text: str, node: str, part: int = -1) -> None:
        """For the report, which may miss a line while the disk is full."""
        try:
            self._run.store.note_event(self._run.clock.now(), kind, text, node, part)
        except StateError as error:
            log.error("cannot note what happened: %s", error)
