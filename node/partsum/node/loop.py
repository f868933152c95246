"""One node's life: stay connected, take assignments, deliver updates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib import metadata

from partsum.node import control
from partsum.node.assignments import Assignments
from partsum.node.backoff import Backoff
from partsum.node.blobs import BlobCache
from partsum.node.client import Client, UnreachableError
from partsum.node.meeting import Meeting
from partsum.node.metrics import NodeMetrics
from partsum.node.process import WorkerProcess
from partsum.node.secrets import SecretsFile
from partsum.node.secure import SecureMember
from partsum.node.state import NodeState
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.errors import RefusedError, WireError
from partsum.shared.messages import Assignment, NodeProfile
from partsum.shared.secure import Ask, Roster, SecureOpen, Shares

log = logging.getLogger(__name__)

_COMPLAIN_SECONDS = 60.0


class Node:
    """Runs until the coordinator says that the run is finished, or will not have this node.

    The connection comes and goes; the job, which is one assignment from its blobs to its delivered
    update, goes on meanwhile.

    Args:
        client: the coordinator's address.
        worker: trains.
        state: this node's name for itself, and its last finished update.
        blobs: what it has on disk.
        metrics: kept up to date.
        name: unique in the run.
        rng: for the jitter of reconnects.
        clock: seconds; spaces out complaints.
        gang_host: finds this node's address, as other nodes reach it.
    """

    def __init__(
        self,
        client: Client,
        worker: WorkerProcess,
        state: NodeState,
        blobs: BlobCache,
        metrics: NodeMetrics,
        name: str,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
        gang_host: Callable[[], str] = lambda: "127.0.0.1",
    ) -> None:
        self._client = client
        self._worker = worker
        self._state = state
        self._metrics = metrics
        self._name = name
        self._rng = rng
        self._clock = clock
        self._outbox: asyncio.Queue[pb.ControlRequest | None] = asyncio.Queue()
        self._joined = asyncio.Event()  # set between our Ready and the end of that connection
        self._profile: NodeProfile | None = None
        self._secure = SecureMember(SecretsFile(state.folder / "secrets.json"), name, os.urandom)
        self._assignments = Assignments(
            client,
            worker,
            state,
            blobs,
            metrics,
            self._secure,
            rng,
            self._joined,
            self._say,
            Meeting(gang_host, self._say),
        )
        self._side_tasks: set[asyncio.Task[None]] = set()  # of the connection
        self._next_complaint = 0.0
        metrics.show_node(name)

    def health(self) -> tuple[bool, str]:
        """Whether the coordinator has this node, and a sentence; safe from any thread."""
        well = self._joined.is_set()
        return well, "connected" if well else "not connected to a coordinator, or still loading"

    async def run(self) -> str:
        """Live.

        Returns:
            Why the run is finished, in the coordinator's words.

        Raises:
            RefusedError: the coordinator will not have this node.
            TaskError: the task cannot be loaded here.
        """
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        connection = self._watch(asyncio.create_task(self._stay_connected(), name="connection"))
        try:
            return await self._ended
        finally:
            tasks = [
                t for t in (connection, self._assignments.task, *self._side_tasks) if t is not None
            ]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.close()

    def _watch(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Let the task's failure end the node."""

        def look(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) and not self._ended.done():
                self._ended.set_exception(error)

        task.add_done_callback(look)
        return task

    # ---- the connection --------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        backoff = Backoff(self._rng)
        while not self._ended.done():
            try:
                self._metrics.dials.inc()
                await self._client.dial()
                await self._converse(backoff)
                self._complain("the coordinator hung up")
            except UnreachableError as error:
                self._complain(str(error))
            except WireError as error:
                self._complain(f"it does not make sense: {error}")
            await backoff.wait()

    def _complain(self, reason: str) -> None:
        """Say it when it happens, and then once a minute."""
        if self._ended.done() or self._clock() < self._next_complaint:
            return
        self._next_complaint = self._clock() + _COMPLAIN_SECONDS
        log.warning("no coordinator answers at %s (%s); trying again", self._client.address, reason)

    async def _converse(self, backoff: Backoff) -> None:
        """One connection, from Hello until it breaks."""
        self._outbox = asyncio.Queue()  # what was not sent on the last one is stale
        self._say(control.hello(self._name, self._state.instance, metadata.version("partsum")))
        self._show("connecting")
        messages = self._client.control(self._outgoing(self._outbox))
        try:
            async with contextlib.aclosing(messages):
                async for message in messages:
                    backoff.reset()
                    self._next_complaint = 0.0
                    self._hear(message)
        finally:
            self._outbox.put_nowait(None)  # ends _outgoing, which gRPC would leave waiting
            self._joined.clear()
            self._metrics.connected.set(0)
            for task in self._side_tasks:
                task.cancel()
            self._side_tasks.clear()

    async def _outgoing(
        self, outbox: asyncio.Queue[pb.ControlRequest | None]
    ) -> AsyncIterator[pb.ControlRequest]:
        while (request := await outbox.get()) is not None:
            yield request

    def _say(self, request: pb.ControlRequest) -> None:
        self._outbox.put_nowait(request)

    def _hear(self, message: control.Incoming) -> None:
        match message:
            case control.Welcome():
                if self._side_tasks:
                    raise WireError("it said Welcome twice")
                log.info("welcome run=%s task=%s", message.run, message.task.name)
                self._metrics.connected.set(1)
                self._assignments.enter(message.run)
                self._beside(self._beat(message.heartbeat_seconds), "heartbeat")
                self._beside(self._get_ready(message), "ready")
            case Assignment():
                self._take(message)
            case control.Cancel(assignment_id, reason):
                self._assignments.cancel(assignment_id, reason)
            case control.Refused(reason, retry):
                if retry:
                    raise UnreachableError(f"the coordinator says: {reason}")
                raise RefusedError(f"the coordinator at {self._client.address} says: {reason}")
            case control.Quarantined(reason):
                log.error(
                    "the coordinator gives this node no more work in this run: %s. It stays "
                    "connected; see above what failed, and mend it before the next run",
                    reason,
                )
            case control.GangMeet(gang, address):
                self._assignments.meet(gang, address)
            case SecureOpen() | Roster() | Shares() | Ask():
                if (answer := self._secure.answer(message)) is not None:
                    self._say(answer)
            case control.Finished(reason):
                self._secure.forget()
                if not self._ended.done():
                    self._ended.set_result(reason)

    def _take(self, assignment: Assignment) -> None:
        if self._profile is None:
            raise WireError("an assignment came before this node said Ready")
        task = self._assignments.take(assignment, self._profile)
        if task is not None:
            self._watch(task)

    def _beside(self, work: Coroutine[None, None, None], name: str) -> None:
        """Do this beside the connection, and end it with it."""
        self._side_tasks.add(self._watch(asyncio.create_task(work, name=name)))

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._say(control.heartbeat())

    async def _get_ready(self, welcome: control.Welcome) -> None:
        self._show("loading")
        log.info("loading the task and its data, and measuring the device")
        profile = await self._worker.load(welcome.task)
        if self._profile and self._profile.task_digest != profile.task_digest:
            self._assignments.cancel("", "the coordinator has another task now")
        self._profile = profile
        self._metrics.show_node(self._name, profile.device)
        self._say(control.ready(profile))
        self._joined.set()
        self._show("idle")
        log.info("ready device=%s gflops=%.1f", profile.device, profile.gflops)

    def _show(self, state: str) -> None:
        """The connection's state, unless there is work, whose state counts more."""
        if not self._assignments.busy:
            self._metrics.state.state(state)
