"""The desk where nodes report: what they say becomes events, what is decided becomes messages."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from partsum.coordinator import events as e
from partsum.coordinator.gang_desk import GangDesk
from partsum.coordinator.handoff_meter import HandoffMeter
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.open_round import OpenRound as OpenRound
from partsum.coordinator.registry import Node, Registry, Session
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.run import Run
from partsum.coordinator.secrecy import Secrecy
from partsum.coordinator.terms import (
    assignment,
    check_encodings,
    check_profile,
    check_texts,
    why_anew,
    why_moved,
)
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire
from partsum.shared.errors import RefusedError, StateError
from partsum.shared.messages import NodeProfile, Progress

log = logging.getLogger(__name__)


class NodeDesk:
    """Deals with a run's nodes, in the daemon's loop. ``changed`` wakes those who watch."""

    def __init__(
        self,
        run: Run,
        registry: Registry,
        machine: RoundMachine,
        metrics: Metrics,
        decide: Callable[[e.Event], None],
        changed: Callable[[], None],
    ) -> None:
        self.registry = registry
        self.round: OpenRound | None = None
        self._run = run
        self._machine = machine
        self._metrics = metrics
        self._decide = decide
        self.changed = changed
        self.meter = HandoffMeter(run, metrics)
        self.secrecy = self._make_secrecy()
        self.gangs = GangDesk(run.store, registry, run.config.gang)
        self._samples_lock = asyncio.Lock()  # two must not write one cluster's file at once

    def _make_secrecy(self) -> Secrecy | None:
        config = self._run.config
        if not config.privacy.secure_aggregation:
            return None
        terms = self._machine.settings
        patience = terms.return_seconds + 10 * config.rounds.heartbeat_seconds
        return Secrecy(
            self.registry, terms.quorum, patience, lambda node, why: self.give_back(node, -1, why)
        )

    # -- assignments ------------------------------------------------------------------------------

    def assign(self, name: str, part: int) -> None:
        """Note that the node has the part; `deliver` then tells it."""
        node, round = self.registry.get(name), self.round
        assert node is not None
        assert round is not None
        round.given.setdefault(part, set()).add(name)
        node.rest("receiving")
        node.part, node.assigned_samples = part, round.plan.parts[part].num_samples
        node.assigned_at = self._run.clock.now()
        if text := why_moved(self._run.config, round.plan, part, name):
            log.warning("%s", text)
            self.note("moved", text, name, part)
        slow = self._machine.jobs[part].node
        if slow != name:
            text = f"part {part} takes {slow} long; a second copy goes to {name}"
            log.info("%s", text)
            self.note("backup", text, name, part)
            return
        self._run.note_holder(round.plan.round, part, name)

    def form(self, formed: e.Formed) -> None:
        """Name a gang; its parts are assigned next."""
        assert self.round is not None
        self.round.generation = formed.generation
        plan, nodes = self.round.plan, self._machine.nodes()
        self.gangs.form(plan.round, formed, nodes)
        if text := why_anew(plan, formed.parts, nodes):
            log.warning("%s", text)
            self.note("moved", text, "")

    def restore_gang(self) -> e.Formed | None:
        """The gang that trained the open round before a restart, if there was one."""
        assert self.round is not None
        formed = self.gangs.restore(self.round.plan.round)
        self.round.generation = formed.generation if formed else 0
        return formed

    def meets(self, node: Node, message: pb.GangOpened) -> None:
        """A node says where its gang meets."""
        self.gangs.opened(node, message, self._machine.nodes())

    async def deliver(self, name: str, part: int) -> None:
        """Send the assignment, with the cluster's samples where the node has no copy."""
        node, round = self.registry.get(name), self.round
        assert node is not None
        assert round is not None
        works = self._run.workshop_of(round.plan.round)
        given = assignment(works.config, round.plan, part)
        given = replace(
            given,
            id=round.assignment_id(part),
            masking=round.masking.get(part),
            gang=self.gangs.place(round.plan, part),
        )
        if node.profile is not None and not node.profile.data_digest:
            async with self._samples_lock:
                path, blob = await asyncio.to_thread(
                    works.cutter.cluster_samples, round.plan.round, part
                )
            round.blobs[blob.digest] = path
            given = replace(given, samples=blob)
        if self.round is not round or not self._machine.has(name, part):
            return  # meanwhile it was cancelled; the node may have another by now
        delta = given.start_delta.blob if given.start_delta else None
        wanted = (given.start, given.cluster, given.samples, delta)
        node.blobs = {blob.digest for blob in wanted if blob}
        message = pb.ControlResponse(assignment=wire.assignment_to_wire(given))
        if node.session is not None:
            node.bytes_sent += message.ByteSize()
            node.session.send(message)
            self.gangs.tell(node, part)

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
        check_texts(instance=hello.instance, version=hello.version)
        if hello.protocol != wire.PROTOCOL:
            raise RefusedError(
                f"this node speaks protocol {hello.protocol}, the coordinator {wire.PROTOCOL}; "
                f"install the same partsum on both (the node has {hello.version})"
            )
        check_encodings(self._run.config, wire.known_encodings(hello.encodings), hello.version)
        if not 0 < len(hello.node) <= 64 or not hello.node.isprintable():
            raise RefusedError("a node's name must have 1 to 64 printable characters")
        config, now = self._run.config, time.monotonic()
        beat = config.rounds.heartbeat_seconds
        node, session = self.registry.join(hello.node, hello.instance, now, beat)
        welcome = pb.Welcome(
            run=self._run.folder.name,
            task=config.task.name,
            task_options=json.dumps(config.task.options),
            heartbeat_seconds=beat,
            stream_samples=config.data.stream,
        )
        session.send(pb.ControlResponse(welcome=welcome))
        self._metrics.welcome(node.name)
        log.info("node %s connected", node.name)
        self.changed()
        return node, session

    def ready(self, node: Node, profile: NodeProfile) -> None:
        """It has the task and the data. Raises RefusedError where they are not ours."""
        check_profile(self._run.config, self._run.digests, profile)
        node.profile = profile
        node.rest()
        self._run.store.note_nodes({node.name: self.registry.memory(node)})
        log.info("node %s is ready: %s, %.0f GFLOP/s", node.name, profile.device, profile.gflops)
        self._decide(e.NodeReady(node.name))
        if self.secrecy is not None:
            self.secrecy.back(node.name)
        if self._machine.is_benched(node.name):
            self._quarantine(node)

    def _quarantine(self, node: Node) -> None:
        """It gets no more work, and is told."""
        node.rest("benched")
        if node.session:
            reason = "too many of its updates in a row were refused or failed"
            message = pb.ControlResponse(quarantined=pb.Quarantined(reason=reason))
            node.session.send(message)

    def heard(self, node: Node) -> None:
        """It lives."""
        node.last_heard = time.monotonic()

    def progress(self, node: Node, progress: Progress) -> None:
        """It trains."""
        if self.round is None or progress.assignment_id != self.round.assignment_id(node.part):
            return
        node.state, node.progress = "training", progress
        self._metrics.trains(node.name, progress)
        self.meter.hear(self.round.plan, node.part, progress)
        self.changed()

    def failed(self, node: Node, assignment: str, reason: str, gang: bool) -> None:
        """It cannot do an assignment; ``gang``: for another member's fault."""
        round, machine = self.round, self._machine
        parts = [part for part in machine.jobs if machine.has(node.name, part)]
        held = {round.assignment_id(part): part for part in parts if round}
        if (part := held.get(assignment)) is None:
            return
        if gang:
            log.warning("the gang of node %s broke: %s", node.name, reason)
            self.note("gang", reason, node.name, part)
            node.rest()
            self._decide(e.GangBroke(node.name, part, reason))
            return
        log.warning("node %s failed assignment %s: %s", node.name, assignment, reason)
        self.note("failed", f"assignment {assignment}: {reason}", node.name)
        self._metrics.failures.labels(node.name).inc()
        self.give_back(node, part, reason)

    def left(self, node: Node, session: Session) -> None:
        """Its stream has ended; an old stream of a node that is back does not count."""
        session.closed = True
        if node.session is not session:
            return
        node.session = None
        node.rest("gone")
        level = logging.INFO if self._machine.phase == "finished" else logging.WARNING
        log.log(level, "node %s is gone", node.name)
        self.note("gone", "the connection ended", node.name)
        self._decide(e.NodeGone(node.name))
        if self.secrecy is not None:
            self.secrecy.left()

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

    def give_back(self, node: Node, part: int, reason: str) -> None:
        """The part is free again; a node that failed too often in a row gets no more."""
        if node.part in {-1, part}:
            node.rest()
        self._decide(e.JobFailed(node.name, part, reason))
        self.quarantine_if_benched(node)

    def quarantine_if_benched(self, node: Node) -> None:
        """Where the machine gives a node no more work: note it for good, and tell the node."""
        if self._machine.is_benched(node.name) and not node.benched:
            node.benched = True
            self._run.store.note_nodes({node.name: self.registry.memory(node)})
            self._quarantine(node)
            log.warning("node %s is quarantined: it failed too often in a row", node.name)
            self.note("benched", "failed too often in a row", node.name)

    def note(self, kind: str, text: str, node: str, part: int = -1) -> None:
        """For the report, which may miss a line while the disk is full."""
        try:
            self._run.store.note_event(self._run.clock.now(), kind, text, node, part)
        except StateError as error:
            log.error("cannot note what happened: %s", error)
