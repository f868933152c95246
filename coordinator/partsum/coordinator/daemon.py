"""The coordinator's daemon: carries out what the round machine decides."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path

from partsum.coordinator import events as e
from partsum.coordinator.clock import RunClock
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.registry import Node, Registry, Session
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.run import Run
from partsum.coordinator.store import RoundPlan, Span
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire
from partsum.shared.errors import PartsumError, RefusedError, UpdateRefusedError
from partsum.shared.messages import NodeProfile, Progress, RunStatus, Update

log = logging.getLogger(__name__)

_STATUS_SECONDS = 0.2  # an operator's screen needs no more
_REMIND_SECONDS = 30.0  # while it waits it says for what, this often


class CoordinatorDaemon:
    """One run's daemon; lives in one event loop, and all of its methods are called there."""

    def __init__(self, run: Run, address: str) -> None:
        self.run = run
        self.metrics = Metrics()
        self.registry = Registry()
        self.outcome: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self._address = address
        self._clock: RunClock = run.clock
        self._plan: RoundPlan | None = None
        self._blobs: dict[str, Path] = {}
        self._reason = ""
        self._reminded = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._pulls: dict[str, float] = {}
        self._machine = RoundMachine(run.round_settings(), run.next_round, time.monotonic())
        for name, body in run.store.nodes().items():
            self.registry.restore(name, body)

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to decide; call once the door is open."""
        self.metrics.rounds.set(self.run.config.parts.rounds)
        self._decide(e.Tick())
        self._spawn(self._watch_heartbeats())

    async def close(self) -> None:
        """Stop side tasks and let nodes go."""
        if self._timer:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for node in self.registry:
            if node.session:
                node.session.close()

    def stop(self, reason: str) -> None:
        """End this coordinator; the run can be resumed."""
        self._end("stopped", reason)

    def _end(self, state: str, reason: str) -> None:
        if not self.outcome.done():
            self.outcome.set_result((state, reason))
            self._publish()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        """A side task that fails ends the run in words; what is committed stays."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, PartsumError | OSError):
            log.error("an error inside partsum; please report it", exc_info=error)
        self._end("failed", str(error) or type(error).__name__)

    # -- decisions --------------------------------------------------------------------------------

    def _decide(self, event: e.Event) -> None:
        now = time.monotonic()
        decision = self._machine.handle(event, now)
        for action in decision.actions:
            self._act(action)
        if decision.reason != self._reason:
            self._reason, self._reminded = decision.reason, now
            log.info("%s", self._said())
        if self._timer:
            self._timer.cancel()
        wake = min(decision.wake_at or now + _REMIND_SECONDS, now + _REMIND_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(wake - now, self._remind)
        self._publish()

    def _remind(self) -> None:
        now = time.monotonic()
        if now - self._reminded >= _REMIND_SECONDS and self._machine.phase in {
            "waiting",
            "training",
        }:
            self._reminded = now
            log.info("still %s", self._said())
        self._decide(e.Tick())

    def _said(self) -> str:
        """The reason, and what to type where nodes are what is missing."""
        missing = self._machine.phase == "waiting" or "no node is connected" in self._reason
        if not missing:
            return self._reason
        return f"{self._reason}; on each: partsum node --coordinator {self._address}"

    def _act(self, action: e.Action) -> None:
        match action:
            case e.Plan(round):
                self._spawn(self._plan_round(round))
            case e.Assign(node, part):
                self._assign(node, part)
            case e.Cancel(node, part, reason):
                self._cancel(node, part, reason)
            case e.Merge(missing):
                self._spawn(self._merge(missing))
            case e.Handoff():
                self._spawn(self._hand_off())
            case e.Finish():
                self._end("finished", "the run is done")
            case e.Fail(reason):
                self._end("failed", reason)

    async def _plan_round(self, round: int) -> None:
        profiles = {n.name: n.profile for n in self.registry if n.session and n.profile}
        plan, holders, done = await self.run.open_round(round, profiles)
        self._plan = plan
        self._blobs = self.run.workshop.blob_paths(plan)
        self._decide(e.Planned(holders, done))

    async def _merge(self, missing: tuple[int, ...]) -> None:
        assert self._plan is not None
        self.run.stages.note("send", max(self._pulls.values(), default=0.0))
        self._pulls.clear()
        result = await self.run.close_round(self._plan, missing)
        if missing:
            names = ", ".join(map(str, missing))
            self._note("partial", f"round {self._plan.round} closed without part {names}")
            self.metrics.partial.inc()
        self._show_result(result.loss, result.accuracy)
        for stage, seconds in result.stage_seconds.items():
            self.metrics.stage_seconds.labels(stage).observe(seconds)
        self.metrics.merge_seconds.set(result.stage_seconds.get("merge", 0.0))
        self.metrics.round_seconds.observe(self._clock.now() - self.run.opened)
        for node in self.registry:
            self.run.store.note_node(node.name, self.registry.memory(node))
        self._decide(e.Merged())

    async def _hand_off(self) -> None:
        self.run.begin_handoff(self.registry.totals())
        await self.run.hand_off(self._show_handoff)
        self._show_result(self.run.loss, self.run.accuracy)
        self._decide(e.HandoffDone())

    def _show_result(self, loss: float | None, accuracy: float | None) -> None:
        if loss is None:
            return
        log.info("base %d: loss %.4f, accuracy %.4f", self.run.next_round, loss, accuracy or 0.0)
        self.metrics.loss.set(loss)
        self.metrics.accuracy.set(accuracy if accuracy is not None else float("nan"))

    def _show_handoff(self) -> None:
        progress = self.run.handoff_progress
        if progress is not None:
            self.metrics.handoff_step.set(progress.step)
            self.metrics.handoff_loss.set(progress.loss)
            self.metrics.handoff_speed.set(progress.samples_per_second)
        self._publish()

    # -- assignments ------------------------------------------------------------------------------

    def _assign(self, name: str, part: int) -> None:
        node, plan = self.registry.get(name), self._plan
        assert node is not None
        assert plan is not None
        node.rest("receiving")
        node.part, node.assigned_samples = part, plan.parts[part].num_samples
        node.assigned_at = self._clock.now()
        self.run.note_holder(plan.round, part, name)
        self._spawn(self._send_assignment(node, node.session, plan, part))

    async def _send_assignment(
        self, node: Node, session: Session | None, plan: RoundPlan, part: int
    ) -> None:
        assignment = self.run.assignment(plan, part)
        if node.profile is not None and not node.profile.data_digest:
            path, blob = await self.run.samples_of(part)
            self._blobs[blob.digest] = path
            assignment = replace(assignment, samples=blob)
        wanted = (assignment.start, assignment.cluster, assignment.samples)
        node.blobs = {blob.digest for blob in wanted if blob}
        message = pb.ControlResponse(assignment=wire.assignment_to_wire(assignment))
        if session is not None:
            node.bytes_sent += message.ByteSize()
            session.send(message)

    def _cancel(self, name: str, part: int, reason: str) -> None:
        node = self.registry.get(name)
        if node is not None and self._plan is not None:
            cancel = pb.Cancel(assignment=_assignment_id(self._plan.round, part), reason=reason)
            if node.session:
                node.session.send(pb.ControlResponse(cancel=cancel))
            node.rest()

    # -- what the door says: nodes ----------------------------------------------------------------

    def node_joins(self, hello: pb.Hello) -> tuple[Node, Session]:
        """A node connects. Raises RefusedError."""
        if hello.protocol != wire.PROTOCOL:
            raise RefusedError(
                f"this node speaks protocol {hello.protocol}, the coordinator {wire.PROTOCOL}; "
                f"install the same partsum on both (the node has {hello.version})"
            )
        if not 0 < len(hello.node) <= 64 or not hello.node.isprintable():
            raise RefusedError("a node's name must have 1 to 64 printable characters")
        node, session = self.registry.join(hello.node, hello.instance, time.monotonic())
        config = self.run.config
        session.send(
            pb.ControlResponse(
                welcome=pb.Welcome(
                    run=self.run.folder.name,
                    task=config.task.name,
                    task_options=json.dumps(config.task.options),
                    heartbeat_seconds=config.rounds.heartbeat_seconds,
                    stream_samples=config.data.stream,
                )
            )
        )
        log.info("node %s connected", node.name)
        self._publish()
        return node, session

    def node_ready(self, node: Node, session: Session, profile: NodeProfile) -> None:
        """It has the task and the data. Raises RefusedError where they are not ours."""
        self.run.check_profile(profile)
        node.profile = profile
        node.rest()
        self.run.store.note_node(node.name, self.registry.memory(node))
        log.info("node %s is ready: %s, %.0f GFLOP/s", node.name, profile.device, profile.gflops)
        self._decide(e.NodeReady(node.name))

    def node_heard(self, node: Node) -> None:
        """It lives."""
        node.last_heard = time.monotonic()

    def node_progress(self, node: Node, progress: Progress) -> None:
        """It trains."""
        if self._plan is None or progress.assignment_id != _assignment_id(
            self._plan.round, node.part
        ):
            return
        node.state, node.progress = "training", progress
        self.metrics.speed.labels(node.name).set(progress.samples_per_second)
        self.metrics.train_loss.labels(node.name).set(progress.loss)
        self._publish()

    def node_failed(self, node: Node, assignment: str, reason: str) -> None:
        """It cannot do an assignment."""
        part = node.part
        if self._plan is None or assignment != _assignment_id(self._plan.round, part):
            return
        log.warning("node %s failed assignment %s: %s", node.name, assignment, reason)
        self._note("failed", f"assignment {assignment}: {reason}", node.name)
        self.metrics.failures.labels(node.name).inc()
        node.rest()
        self._decide(e.JobFailed(node.name, part, reason))
        self._bench(node)

    def _bench(self, node: Node) -> None:
        if self._machine.members[node.name].state == "benched" and node.state != "benched":
            node.rest("benched")
            log.warning("node %s gets no more work: it failed too often in a row", node.name)
            self._note("benched", "failed too often in a row", node.name)

    def node_left(self, node: Node, session: Session) -> None:
        """Its stream has ended; an old stream of a node that is back does not count."""
        session.closed = True
        if node.session is not session:
            return
        node.session = None
        node.rest("gone")
        log.warning("node %s is gone", node.name)
        self._note("gone", "the connection ended", node.name)
        self._decide(e.NodeGone(node.name))

    async def _watch_heartbeats(self) -> None:
        """A node that is silent for three heartbeats is gone, though its connection stands."""
        beat = self.run.config.rounds.heartbeat_seconds
        while True:
            await asyncio.sleep(beat)
            for node in self.registry:
                if node.session and time.monotonic() - node.last_heard > 3 * beat + 1:
                    log.warning("node %s has missed three heartbeats", node.name)
                    session = node.session
                    session.close()
                    self.node_left(node, session)

    # -- what the door says: tensors --------------------------------------------------------------

    def known_node(self, name: str) -> Node:
        """The node of that name. Raises RefusedError where it has no control stream."""
        node = self.registry.get(name)
        if node is None or node.session is None:
            raise RefusedError(f"node {name!r} is not connected; open the control stream first")
        return node

    def blob_path(self, node: Node, digest: str) -> Path:
        """Where a blob of this node's assignment lies. Raises RefusedError."""
        if digest not in node.blobs or digest not in self._blobs:
            raise RefusedError(f"blob {digest[:40]!r} is not part of node {node.name}'s assignment")
        return self._blobs[digest]

    def update_wanted(self, node: Node, update: Update) -> str:
        """Empty, or why the update is not wanted. Raises UpdateRefusedError."""
        plan = self._plan
        if plan is None or update.round != plan.round or self._machine.phase != "training":
            return f"round {update.round} is not open"
        job = self._machine.jobs.get(update.part_index)
        if job is None or job.state == "in":
            return f"part {update.part_index} of round {update.round} is already in"
        self.run.check_claim(update, plan.parts[update.part_index])
        if node.state != "sending":
            node.state, node.offered_at = "sending", self._clock.now()
            self._publish()
        return ""

    def spool(self, node: Node, update: Update) -> Path:
        """The file that an update's bytes are gathered in."""
        name = f"push-r{update.round}-p{update.part_index}-n{node.index}-{update.blob.digest}"
        return self.run.store.spool_path(name)

    async def take_update(self, node: Node, update: Update, path: Path) -> None:
        """All bytes are in ``path``: check, name and journal them. Raises UpdateRefusedError."""
        plan = self._plan
        assert plan is not None
        try:
            await self.run.check_update(path, plan.parts[update.part_index])
        except UpdateRefusedError:
            path.unlink(missing_ok=True)
            raise
        if self.update_wanted(node, update):
            path.unlink(missing_ok=True)
            return  # somebody was faster; the sender need not care
        now = self._clock.now()
        self.run.take_update(node.name, update, path, now)
        self._note_spans(node, update, now)
        node.updates += 1
        node.speed = update.samples_per_second
        node.peak_memory_bytes = max(node.peak_memory_bytes, update.peak_memory_bytes)
        self.metrics.updates.labels(node.name).inc()
        node.rest()
        self._decide(e.UpdateIn(node.name, update.part_index))

    def _note_spans(self, node: Node, update: Update, now: float) -> None:
        """Three stretches of the node's time; the update says how long it trained."""
        trained = max(node.assigned_at, node.offered_at - update.train_seconds)
        self._pulls[node.name] = trained - node.assigned_at
        self.run.stages.note("train", update.train_seconds)
        self.run.stages.note("receive", now - node.offered_at)
        for state, start, end in (
            ("receiving", node.assigned_at, trained),
            ("training", trained, node.offered_at),
            ("sending", node.offered_at, now),
        ):
            span = Span(node.name, update.round, update.part_index, state, start, end)
            self.run.store.note_span(span)

    def refuse_update(self, node: Node, update: Update, error: UpdateRefusedError) -> None:
        """An update was refused: said, counted, and the part goes to somebody."""
        where = f"round {update.round} part {update.part_index}"
        log.warning("refused an update node=%s %s: %s", node.name, where, error)
        self._note(f"refused:{error.kind}", f"{where}: {error}", node.name)
        self.metrics.refused.labels(error.kind).inc()
        node.rest()
        self._decide(e.JobFailed(node.name, update.part_index, str(error)))
        self._bench(node)

    # -- what operators see -----------------------------------------------------------------------

    def _note(self, kind: str, text: str, node: str = "") -> None:
        self.run.store.note_event(self._clock.now(), kind, text, node)

    def _publish(self) -> None:
        """Bring metrics up to date and wake those who watch."""
        self.metrics.set_phase(self._phase())
        self.metrics.round.set(self.run.next_round)
        self.metrics.parts_in.set(self._parts_in())
        for node in self.registry:
            self.metrics.set_node_state(node.name, node.state)
            self.metrics.set_bytes(node.name, node.bytes_sent, node.bytes_received)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _parts_in(self) -> int:
        return sum(job.state == "in" for job in self._machine.jobs.values())

    def _phase(self) -> str:
        if self.outcome.done():
            return self.outcome.result()[0]
        phase = self._machine.phase
        return "parts" if phase in {"planning", "training", "merging"} else phase

    def status(self) -> RunStatus:
        """The run as an operator sees it."""
        sent, received = self.registry.totals()
        reason = self.outcome.result()[1] if self.outcome.done() else self._said()
        return self.run.status(
            phase=self._phase(),
            reason=reason,
            parts_in=self._parts_in(),
            bytes_moved=(sent, received),
            nodes=tuple(node.status() for node in self.registry),
        )

    async def statuses(self) -> AsyncIterator[RunStatus]:
        """The run's status now, and again on every change; ends with the run."""
        while True:
            changed = self._changed
            yield self.status()
            if self.outcome.done():
                return
            await asyncio.sleep(_STATUS_SECONDS)  # several changes make one status
            await changed.wait()

    def health(self) -> tuple[bool, str]:
        """For /healthz."""
        return not self.outcome.done(), f"{self._phase()}: {self._reason}"


def _assignment_id(round: int, part: int) -> str:
    return f"r{round}-p{part}"
