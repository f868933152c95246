"""The daemon's end of the worker: starts it, gives it orders, notices its death at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from partsum.node.backoff import Backoff
from partsum.node.child import Main, start_child
from partsum.node.death import OomWatch, death_in_words
from partsum.node.orders import (
    Answer,
    Build,
    Built,
    Done,
    Going,
    Load,
    Loaded,
    NotLoaded,
    Opened,
    Order,
    PutOn,
    Stop,
    Train,
    Undone,
    Work,
)
from partsum.shared.errors import PartsumError, TaskError
from partsum.shared.messages import NodeProfile, Progress, TaskSpec

log = logging.getLogger(__name__)


class TrainingError(PartsumError):
    """The worker could not do an assignment, or died of it."""


class GangError(TrainingError):
    """Another member of the gang, or the way to it, was at fault."""


class WorkerProcess:
    """A worker that is there whenever it is needed: one that dies is replaced.

    All methods must be called in one running event loop.

    Args:
        main: the child's main function.
        rng: for the jitter of the waits between failed starts.
        on_restart: told each time that a dead worker is replaced.
    """

    def __init__(
        self, main: Main, rng: random.Random, on_restart: Callable[[], None] = lambda: None
    ) -> None:
        self._main = main
        self._backoff = Backoff(rng, first_seconds=0.5, last_seconds=60.0)
        self._on_restart = on_restart
        self._tickets = itertools.count(1)
        self._task: TaskSpec | None = None
        self._profile: NodeProfile | None = None  # of the first worker that loaded the task
        self._oom = OomWatch()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._loading: asyncio.Task[NodeProfile] | None = None
        self._loaded: asyncio.Future[NodeProfile] | None = None
        self._training: dict[int, asyncio.Future[Done | Built]] = {}
        self._on_progress: Callable[[Progress], None] = lambda progress: None
        self._on_opened: Callable[[str, int], None] = lambda gang, port: None

    @property
    def pid(self) -> int | None:
        """The worker's process id, or None while there is none."""
        return self._process.pid if self._process else None

    async def load(self, task: TaskSpec) -> NodeProfile:
        """Let the worker load a task; returns at once what is known if it has it already.

        Raises:
            TaskError: the task cannot be loaded here.
        """
        if self._loading is None or task != self._task:
            await self._drop_loading()
            self._task, self._profile = task, None
            self._load_again()
        return await self._whole()

    def _load_again(self) -> None:
        self._loading = asyncio.create_task(self._load(), name="load")
        # Whoever trains next hears of a failure; until then it is not an unheard one.
        self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _whole(self) -> NodeProfile:
        """Wait until a worker has the task loaded, even if the one that is loading dies."""
        while True:
            loading = self._loading
            assert loading is not None, "no task was loaded"
            profile = await asyncio.shield(loading)
            if loading is self._loading:
                return profile

    async def _load(self) -> NodeProfile:
        """Start a worker if there is none, and try until one has the task loaded."""
        assert self._task is not None
        while True:
            if self._process is None:
                self._start()
            self._loaded = asyncio.get_running_loop().create_future()
            self._send(Load(self._task))
            try:
                profile = await self._loaded
            except TrainingError as error:
                log.error("the worker ended while it loaded the task: %s", error)
                await self._backoff.wait()
            else:
                self._backoff.reset()
                return self._unchanged(profile)

    def _unchanged(self, profile: NodeProfile) -> NodeProfile:
        """The coordinator knows the first worker's task and data; a later one must have the same.

        Raises TaskError where a worker that was started anew has found others.
        """
        first = self._profile = self._profile or profile
        before, now = ((p.task_digest, p.data_digest) for p in (first, profile))
        if before != now:
            raise TaskError(
                "the task or its data has changed on this host since this node joined; start the "
                "node again, and the coordinator will say whether they are still its own"
            )
        return profile

    async def train(
        self,
        order: Train,
        on_progress: Callable[[Progress], None],
        on_opened: Callable[[str, int], None] = lambda gang, port: None,
    ) -> Done:
        """Train; as `carry_out`. ``on_opened`` is told a gang's name and where it can meet."""
        self._on_progress, self._on_opened = on_progress, on_opened
        return await self.carry_out(order)

    async def carry_out(self, order: Train | PutOn) -> Done:
        """Do what makes an update; as `_do`."""
        done = await self._do(order)
        assert isinstance(done, Done)
        return done

    async def build(self, order: Build) -> Built:
        """Make a start; as `_do`."""
        built = await self._do(order)
        assert isinstance(built, Built)
        return built

    async def _do(self, order: Work) -> Done | Built:
        """Do what is ordered; waits for a worker with the task loaded if need be.

        Cancelling this tells the worker to stop; the next order can be given at once.

        Raises:
            TrainingError: it could not be done; the message says why.
            GangError: for another member's fault.
            TaskError: the worker had to be restarted, and cannot load the task any more.
        """
        await self._whole()
        worker = self._process
        done: asyncio.Future[Done | Built] = asyncio.get_running_loop().create_future()
        self._training[order.ticket] = done
        self._send(order)
        try:
            return await done
        except asyncio.CancelledError:
            if isinstance(order, Train) and order.assignment.gang:
                self._replace()  # it may wait for the others, and would not hear
            else:
                self._send(Stop(order.ticket))
            raise
        finally:
            self._training.pop(order.ticket, None)
            if isinstance(order, Train) and order.is_last and worker is self._process:
                self._replace()

    def next_ticket(self) -> int:
        """A number for the next order."""
        return next(self._tickets)

    async def close(self) -> None:
        """End the worker; it takes no time, whatever it is doing."""
        await self._drop_loading()
        process = self._process
        self._let_go()
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.join)

    async def _drop_loading(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError, PartsumError):
                await self._loading
            self._loading = None

    def _start(self) -> None:
        self._oom = OomWatch()
        self._process, self._pipe = start_child(self._main)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._hear)
        loop.add_reader(self._process.sentinel, self._bury)
        log.debug("worker started pid=%s", self._process.pid)

    def _send(self, order: Order) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # it is dead: the sentinel says so in a moment
                self._pipe.send(order)

    def _hear(self) -> bool:
        """Take one answer from the pipe; False at its end, which is the sentinel's business."""
        assert self._pipe is not None
        try:
            answer: Answer = self._pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            return False
        match answer:
            case Loaded(profile) if self._loaded and not self._loaded.done():
                self._loaded.set_result(profile)
            case NotLoaded(reason) if self._loaded and not self._loaded.done():
                self._loaded.set_exception(TaskError(reason))
            case Going(ticket, progress) if ticket in self._training:
                self._on_progress(progress)
            case Opened(ticket, gang, port) if ticket in self._training:
                self._on_opened(gang, port)
            case Done(ticket) | Built(ticket):
                self._settle(ticket, answer)
            case Undone(ticket, reason, gang=True):
                self._replace()  # what hangs in the broken gang hangs there for good
                self._settle(ticket, GangError(reason))
                return False
            case Undone(ticket, reason):
                self._settle(ticket, TrainingError(reason or "stopped"))
        return True

    def _settle(self, ticket: int, result: Done | Built | TrainingError) -> None:
        future = self._training.get(ticket)
        if future is not None and not future.done():
            if isinstance(result, TrainingError):
                future.set_exception(result)
            else:
                future.set_result(result)
        elif not isinstance(result, TrainingError):  # done before it heard that it should stop
            for path in result.files:
                path.unlink(missing_ok=True)

    def _replace(self) -> None:
        """Another worker in place of this one, whatever it is doing."""
        process = self._process
        self._let_go()
        if process is not None:
            process.kill()
            process.join()
            log.debug("another worker takes over from one that was in a gang")
            self._load_again()

    def _bury(self) -> None:
        """The worker is dead: hear its last words, tell who waits, start another."""
        assert self._process is not None
        assert self._pipe is not None
        process = self._process
        while self._pipe.poll() and self._hear():
            pass
        process.join()
        if self._process is not process:
            return  # its last word was that its gang broke: another has its place already
        reason = death_in_words(process.exitcode, self._oom.happened())
        self._let_go()
        error = TrainingError(f"the worker process died: {reason}")
        for ticket in list(self._training):
            self._settle(ticket, error)
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(error)  # whoever loads tries again
        else:
            log.error("the worker died: %s; starting another", reason)
            self._load_again()
        self._on_restart()

    def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        if self._process is not None:
            loop.remove_reader(self._process.sentinel)
        if self._pipe is not None:
            loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
        self._process = self._pipe = None
