"""The worker: a child process that owns the device and stays warm between assignments.

It takes orders from the daemon's pipe one after the other, and ends by itself, even in the middle
of training, when that pipe closes: a killed daemon leaves no process behind.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

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
    PutOn,
    Stop,
    Train,
    Undone,
    Work,
)
from partsum.shared.errors import DataError, PartsumError, TaskError
from partsum.shared.logs import set_up_logging
from partsum.shared.messages import NodeProfile, Progress, TaskSpec

if TYPE_CHECKING:  # the daemon imports this module to name `serve`, and needs no torch
    import torch

    from partsum.node.ahead import Ahead
    from partsum.node.gang import Gang
    from partsum.node.trainer import Job
    from partsum.shared.task import Samples, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker is set up. ``threads`` 0 leaves the number of CPU threads to torch."""

    device: str
    threads: int = 0
    verbose: bool = False


def serve(pipe: Connection, settings: WorkerSettings) -> None:
    """The child process's main function: obey until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the daemon, which closes the pipe
    # Deterministic matrix products on CUDA need this before CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_up_logging(settings.verbose)
    orders = _Orders(pipe)
    threading.Thread(target=orders.listen, name="orders", daemon=True).start()
    bench = _Bench(pipe, orders, settings)
    while True:
        bench.go_ahead()
        bench.obey(orders.next())


@dataclass
class _Orders:
    """Reads the pipe in a thread, so that Stop and the daemon's end are heard during training."""

    pipe: Connection
    stopped: set[int] = field(default_factory=set)
    _queue: queue.SimpleQueue[Load | Work] = field(default_factory=queue.SimpleQueue)

    def listen(self) -> None:
        while True:
            try:
                order = self.pipe.recv()
            except (EOFError, OSError):
                os._exit(0)  # the daemon has gone; nobody waits for what is being trained
            if isinstance(order, Stop):
                self.stopped.add(order.ticket)
            else:
                self._queue.put(order)

    def next(self) -> Load | Work:
        return self._queue.get()

    def waiting(self) -> bool:
        """Whether `next` would return at once."""
        return not self._queue.empty()


class _Bench:
    """Where the work is done: the device, and what stays loaded between orders."""

    def __init__(self, pipe: Connection, orders: _Orders, settings: WorkerSettings) -> None:
        self._pipe = pipe
        self._orders = orders
        self._settings = settings
        self._device: torch.device | None = None
        self._task: Task | None = None
        self._samples: Samples | None = None
        self._ahead: Ahead | None = None  # with the task: to import it is to import torch

    def go_ahead(self) -> None:
        """Do what there is to do without an order, until one comes."""
        if self._ahead is None:
            return
        try:
            self._ahead.go_on(self._orders.waiting)
        except Exception as error:  # nobody waits for it: the assignment will say what is wrong
            log.info("nothing is trained ahead: %s", error)
            log.debug("training ahead failed", exc_info=True)
            if "CUDA error" in str(error):
                os._exit(1)

    def obey(self, order: Load | Work) -> None:
        if isinstance(order, Load):
            self._say(self._load(order.task))
            return
        if isinstance(order, PutOn):
            self._say(self._put_on(order))
            return
        if isinstance(order, Build):
            self._say(self._build(order))
            return
        answer, broken = self._train(order)
        self._say(answer)
        if broken:
            os._exit(1)  # after an error inside CUDA only a new process can use the device

    def _say(self, answer: Answer) -> None:
        try:
            self._pipe.send(answer)
        except OSError:
            os._exit(0)

    def _put_on(self, order: PutOn) -> Done | Undone:
        from partsum.node.masking import mask_update

        try:
            masked = mask_update(order.update, order.path, order.masking, order.masks, order.output)
        except (PartsumError, OSError, MemoryError) as error:
            return Undone(order.ticket, str(error))
        return Done(order.ticket, masked, order.output, None)

    def _build(self, order: Build) -> Built | Undone:
        from partsum.node.encoder import build_start

        try:
            digest = build_start(order.change, order.against, order.digest, order.output)
        except (PartsumError, OSError, MemoryError) as error:
            return Undone(order.ticket, str(error))
        return Built(order.ticket, digest, order.output)

    def _load(self, spec: TaskSpec) -> Loaded | NotLoaded:
        try:
            return Loaded(self._prepare(spec))
        except PartsumError as error:
            return NotLoaded(str(error))
        except Exception as error:
            log.debug("loading failed", exc_info=True)
            return NotLoaded(f"task {spec.name} cannot be used: {type(error).__name__}: {error}")

    def _prepare(self, spec: TaskSpec) -> NodeProfile:
        import torch

        from partsum.node import probe
        from partsum.node.ahead import Ahead
        from partsum.shared import task as tasks

        if self._ahead is not None:
            self._ahead.drop()
        self._ahead = Ahead()

        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # The first optimizer of a process takes seconds, for what torch imports with it: not while
        # a round waits (2-6 s measured on 2 busy cores).
        torch.optim.AdamW([torch.zeros(1)])
        device = probe.choose_device(self._settings.device)
        self._device = device
        self._task = tasks.load_task(spec)
        digest = ""
        try:
            self._samples = tasks.load_samples(self._task.train, "training")
            digest = tasks.data_digest(self._samples)
        except DataError as error:
            self._samples = None
            log.info("%s; asking for samples instead", error)
        return NodeProfile(
            device=probe.device_name(device),
            memory_bytes=probe.free_memory_bytes(device),
            gflops=probe.measure_gflops(device),
            task_digest=tasks.task_digest(spec),
            data_digest=digest,
            deepspeed=find_spec("deepspeed") is not None,
        )

    def _train(self, order: Train) -> tuple[Done | Undone, bool]:
        """The answer, and whether the device is broken."""
        import torch

        from partsum.node import words
        from partsum.node.encoder import encode_update
        from partsum.node.gang import GangBrokeError
        from partsum.node.trainer import StoppedError

        def report(progress: Progress) -> None:
            self._say(Going(order.ticket, progress))

        def should_stop() -> bool:
            return order.ticket in self._orders.stopped

        try:
            if self._task is None or self._ahead is None:
                raise TaskError("the worker was told to train before it was told the task")
            job = self._job(order)
            if order.assignment.zero is None:
                trained = self._ahead.train(self._task, job, report, should_stop)
            else:
                from partsum.node.zero import train_zero

                self._ahead.drop()
                assert order.folder is not None
                trained = train_zero(self._task, job, order.folder, report, should_stop)
            done = encode_update(trained, job)
            return Done(order.ticket, **vars(done)), False
        except StoppedError:
            return Undone(order.ticket, ""), False
        except GangBrokeError as error:
            return Undone(order.ticket, str(error), gang=True), False
        except PartsumError as error:
            return Undone(order.ticket, str(error)), False
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            batch = order.assignment.settings.batch_size
            return Undone(order.ticket, words.out_of_memory(self._device, batch, error)), False
        except Exception as error:
            log.debug("training failed", exc_info=True)
            return Undone(order.ticket, words.training_failed(error)), "CUDA error" in str(error)
        finally:
            self._orders.stopped.discard(order.ticket)

    def _job(self, order: Train) -> Job:
        import numpy as np
        import torch
        from torch.utils.data import TensorDataset

        from partsum.node.trainer import Job
        from partsum.shared.tensors import load_tensors

        assert self._device is not None
        samples = self._samples
        cluster = torch.from_numpy(np.fromfile(order.cluster, dtype="<i8"))
        if order.samples is not None:
            tensors = load_tensors(order.samples)
            samples = TensorDataset(tensors["inputs"], tensors["targets"])
            cluster = torch.arange(len(tensors["targets"]))
        if samples is None:
            raise DataError(
                "this node has no copy of the data set, and the coordinator sent no samples. Put "
                "the data on this host, or set data.stream = true in run.toml"
            )
        return Job(
            assignment=order.assignment,
            start=order.start,
            optimizer=order.optimizer,
            cluster=cluster,
            samples=samples,
            output=order.output,
            device=self._device,
            residual=order.residual,
            gang=self._join(order),
        )

    def _join(self, order: Train) -> Gang | None:
        """Meet the others that train in step with this, where there are any."""
        from partsum.node.gang import Gang

        place = order.assignment.gang
        if place is None:
            return None
        assert self._device is not None

        def opened(port: int) -> None:
            self._say(Opened(order.ticket, place.id, port))

        return Gang.join(place, order.host, order.meet, self._device, opened)
