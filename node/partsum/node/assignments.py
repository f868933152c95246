"""Carries out assignments, one at a time: blobs in, training, update out."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from partsum.node import control
from partsum.node.backoff import Backoff, despite_a_full_disk
from partsum.node.blobs import BlobCache
from partsum.node.client import Client, UnreachableError
from partsum.node.meeting import Meeting
from partsum.node.metrics import NodeMetrics
from partsum.node.orders import PutOn
from partsum.node.process import GangError, TrainingError, WorkerProcess
from partsum.node.secure import SecureMember
from partsum.node.state import Finished, NodeState, assignment_key
from partsum.node.supplies import Supplies
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.errors import PartsumError, RefusedError, TaskError, WireError
from partsum.shared.messages import Assignment, NodeProfile, Progress, Update
from partsum.shared.secure import Masking

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_TRIES = 3  # how often a "no" to a blob's transfer is heard before it is believed
_GRACE_SECONDS = 2.0


class Assignments:
    """What the coordinator gives this node to do. It goes on while the connection is gone.

    Args:
        client: moves blobs.
        worker: trains.
        state: keeps the last finished update.
        blobs: what is on disk.
        metrics: kept up to date.
        secure: knows this node's masks, where updates are masked.
        rng: for the jitter of retries.
        joined: set while the coordinator has this node; transfers wait for it.
        say: sends a control message if the node is connected.
        meeting: where gangs meet.
    """

    def __init__(
        self,
        client: Client,
        worker: WorkerProcess,
        state: NodeState,
        blobs: BlobCache,
        metrics: NodeMetrics,
        secure: SecureMember,
        rng: random.Random,
        joined: asyncio.Event,
        say: Callable[[pb.ControlRequest], None],
        meeting: Meeting,
    ) -> None:
        self._client = client
        self._worker = worker
        self._state = state
        self._blobs = blobs
        self._metrics = metrics
        self._secure = secure
        self._rng = rng
        self._joined = joined
        self._say = say
        self._meeting = meeting
        self._id = self._key = ""  # of the assignment that is under way
        self._masking: Masking | None = None  # a restarted coordinator wants other masks on it
        self._samples_counted = 0  # of the assignment, by the metric
        self._run = ""  # that the coordinator last welcomed this node to
        self._delivering = ""  # the key whose update is on its way
        self._given_again = False  # that assignment came once more
        self._supplies = Supplies(client, worker, state, blobs, self._insist)
        self.task: asyncio.Task[None] | None = None
        self._treasure()

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self.task is not None and not self.task.done()

    def enter(self, run: str) -> None:
        """The coordinator's run: nobody there waits for what another run's assignment gives."""
        if self._run not in {"", run}:
            self.cancel("", f"the coordinator's run is {run} now")
        self._run = run

    def take(self, assignment: Assignment, profile: NodeProfile) -> asyncio.Task[None] | None:
        """Start on an assignment, in place of any other; None if it is under way already."""
        key = assignment_key(replace(assignment, masking=None), profile)
        self._masking = assignment.masking
        if self.busy and (self._id, self._key) == (assignment.id, key):
            log.info("assignment=%s is under way already; going on", assignment.id)
            self._given_again = self._delivering == key
            if assignment.gang is not None:
                self._meeting.say_again(assignment.gang.id)
            return None
        self._id, self._key = assignment.id, key
        self.task = asyncio.create_task(self._carry_out(assignment, key, self.task), name="job")
        return self.task

    def cancel(self, assignment_id: str, reason: str) -> None:
        """Leave the assignment, if it is the one under way; empty means any."""
        if self.task is not None and self.busy and assignment_id in {"", self._id}:
            log.info("cancelled assignment=%s: %s", self._id, reason)
            self.task.cancel()

    def meet(self, gang: str, address: str) -> None:
        """The coordinator says where a gang meets."""
        self._meeting.told(gang, address)

    async def _carry_out(
        self, assignment: Assignment, key: str, before: asyncio.Task[None] | None
    ) -> None:
        """One assignment, from its blobs to its delivered update."""
        if before is not None:
            # The next assignment can overtake the answer to the last push; let that arrive.
            try:
                await asyncio.wait({before}, timeout=_GRACE_SECONDS if self._delivering else 0)
            finally:  # also where this one is left meanwhile: nothing else knows of that one
                before.cancel()
                await asyncio.wait({before})
        log.info("assignment=%s samples=%d", assignment.id, assignment.num_samples)
        outcome = "cancelled"
        try:
            outcome = await despite_a_full_disk(
                lambda: self._train_and_deliver(assignment, key), self._rng
            )
        except TaskError:
            raise
        except (PartsumError, OSError) as error:  # OSError: this disk is still full
            outcome = "failed"
            log.error("assignment=%s failed: %s", assignment.id, error)
            if self._joined.is_set():  # else the coordinator gives it out again anyway
                blameless = isinstance(error, GangError)
                self._say(control.failed(assignment.id, str(error), blameless))
        finally:
            self._delivering = ""
            self._metrics.assignments.labels(outcome).inc()
            self._metrics.samples_per_second.set(0)
            self._metrics.state.state("idle")

    async def _train_and_deliver(self, assignment: Assignment, key: str) -> str:
        """The outcome; once more, if the coordinator gave it again before it answered the push."""
        while True:
            self._given_again = False
            update = self._finished(key) or await self._train(assignment, key)
            self._delivering = key
            outcome = await self._deliver(await self._masked(update))
            self._delivering = ""
            if outcome == "refused":
                self._state.forget(key)  # it would be refused again
            if not self._given_again:  # that message overtook the answer to the push
                return outcome

    async def _masked(self, update: Update) -> Update:
        """The update with this session's masks on, where there is one; the plain one stays here."""
        if self._masking is None:
            return update
        path = self._blobs.path(update.blob)
        assert path is not None, "a held blob has left"
        ticket = self._worker.next_ticket()
        output = self._blobs.folder / f"masked-{ticket}"
        masks = tuple(self._secure.masks(self._masking, update.blob.digest))
        order = PutOn(ticket, update, path, self._masking, masks, output)
        try:
            masked = (await self._worker.carry_out(order)).update
        except TrainingError:
            self._blobs.sweep(output)
            raise
        self._blobs.add(output, masked.blob.digest)
        self._blobs.hold([update.blob, masked.blob])
        return masked

    def _finished(self, key: str) -> Update | None:
        """The update of an assignment that was trained before, if it is still on disk."""
        known = next((one.update for one in self._state.finished() if one.key == key), None)
        if known is None or None in map(self._blobs.path, (known.blob, known.sent)):
            return None
        log.info("assignment=%s was trained before; offering its update", known.assignment_id)
        self._blobs.hold([known.blob, known.sent])
        return known

    def _treasure(self) -> None:
        """Each part goes on from what it was trained last, with moments that only this node has."""
        updates = [known.update for known in self._state.finished()]
        self._blobs.treasure(blob for update in updates for blob in (update.blob, update.sent))

    async def _train(self, assignment: Assignment, key: str) -> Update:
        a = assignment
        delta = (a.start_delta.blob, a.start_delta.against) if a.start_delta else ()
        self._blobs.hold(blob for blob in (a.start, a.cluster, a.samples, *delta) if blob)
        self._metrics.state.state("receiving")
        order = await self._supplies.order(a)
        if a.gang is not None:
            meet = await self._meeting.address(a.gang)
            order = replace(order, host=self._meeting.host, meet=meet)
        self._metrics.state.state("training")
        self._samples_counted = 0
        try:
            done = await self._worker.train(order, self._report, self._opened)
        except TrainingError as error:
            self._blobs.sweep(order.output)
            if a.gang is not None and isinstance(error, GangError):
                self._meeting.broke(a.gang.id)
            raise
        self._metrics.samples.inc(a.num_samples - self._samples_counted)
        self._metrics.samples_ahead.inc(done.ahead)
        if done.ahead:
            log.info("assignment=%s samples=%d were done ahead", a.id, done.ahead)
        self._blobs.hold([done.update.blob, done.update.sent])
        if done.path is not None:
            self._blobs.add(done.path, done.update.blob.digest, done.optimizer, done.residual)
        if done.encoded is not None:
            self._blobs.add(done.encoded, done.update.sent.digest)
        self._state.finish(Finished(key, done.update), keep_before=a.gang is not None)
        self._treasure()
        self._metrics.loss.set(done.update.loss)
        self._metrics.train_seconds.observe(done.update.train_seconds)
        self._metrics.device_memory.set(done.update.peak_memory_bytes)
        return done.update

    def _opened(self, gang: str, port: int) -> None:
        self._meeting.opened(gang, port)

    def _report(self, progress: Progress) -> None:
        self._metrics.samples.inc(progress.samples_done - self._samples_counted)
        self._samples_counted = progress.samples_done
        self._metrics.loss.set(progress.loss)
        self._metrics.samples_per_second.set(progress.samples_per_second)
        if self._joined.is_set():
            self._say(control.progress(progress))

    async def _deliver(self, update: Update) -> str:
        """Offer and push the update; returns the outcome, as in the metric's label."""
        path = self._blobs.path(update.sent)
        assert path is not None, "a held blob has left"

        async def send() -> str:
            offered = await self._client.offer(update)
            if not offered.wanted:
                log.info("update of %s is not wanted: %s", update.assignment_id, offered.reason)
                return "unwanted"
            reason = await self._client.push(update, path, offered.offset)
            if reason:
                log.warning("update of %s was refused: %s", update.assignment_id, reason)
                return "refused"
            log.info(
                "update of %s accepted loss=%.4f bytes=%d",
                update.assignment_id,
                update.loss,
                update.sent.size_bytes,
            )
            return "accepted"

        self._metrics.state.state("sending")
        return await self._insist(send)

    async def _insist(self, transfer: Callable[[], Awaitable[Result]]) -> Result:
        """Try a transfer, over as many connections as it takes.

        A refusal is believed at the third time: a coordinator that has just come back may not know
        yet what this node is about.
        """
        backoff = Backoff(self._rng)
        refusals = 0
        while True:
            await self._joined.wait()
            try:
                return await transfer()
            except UnreachableError as error:
                log.info("a transfer broke off: %s; it will go on", error)
                self._metrics.retries.labels("broken").inc()
            except (RefusedError, WireError):
                refusals += 1
                if refusals == _TRIES:
                    raise
                self._metrics.retries.labels("refused").inc()
            await backoff.wait()
