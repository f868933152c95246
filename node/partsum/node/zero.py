"""Train a stretch of the hand-off under DeepSpeed: the whole base, on this node's own samples.

A node by itself makes a new engine for each stretch, in a group of one that stays. A gang's group
and DeepSpeed's idea of it belong to the process, so its stretch is the last that a worker carries
out (see `process`); the next worker loads while the round ends.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # it is public

from partsum.node.gang import GangBrokeError
from partsum.node.model import build_part
from partsum.node.tally import Tally
from partsum.node.trainer import Job, StoppedError, Trained, check_cluster, update_of
from partsum.node.zero_moments import ZeroMoments
from partsum.node.zero_pipeline import Pipeline
from partsum.shared.memory import peak_memory_bytes
from partsum.shared.messages import Assignment, Blob, Progress, ZeroWork
from partsum.shared.moments import part_digest
from partsum.shared.norms import group_norms
from partsum.shared.regularisation import regularise
from partsum.shared.task import Task, walk
from partsum.shared.tensors import save_tensors
from partsum.shared.zero.engine import Engine, Place, start_engine, whole_tensors
from partsum.shared.zero.settings import DeepSpeedSettings, ZeroTerms, zero_settings
from partsum.shared.zero.stepper import Course, ZeroStepper

log = logging.getLogger(__name__)

_OF_THE_NETWORK = re.compile(r"gloo|nccl|connection|broken pipe|timed? ?out", re.IGNORECASE)


def train_zero(
    task: Task,
    job: Job,
    folder: Path,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    clock: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Take the assignment's steps; once this returns, the update is on disk.

    ``folder`` keeps DeepSpeed's moments for the next stretch. Raises as `trainer.train` does, and
    HandoffError where DeepSpeed cannot be used here.
    """
    a = job.assignment
    work = a.zero
    assert work is not None
    with _broken_gangs_in_words(job):
        return _train(task, job, work, folder, on_progress, should_stop, clock)


def _train(
    task: Task,
    job: Job,
    work: ZeroWork,
    folder: Path,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    clock: Callable[[], float],
) -> Trained:
    check_cluster(job)
    a, place = job.assignment, _place(job)
    torch.manual_seed(a.seed)
    model = _model(task, job, work)
    elements = sum(parameter.numel() for parameter in model.parameters())
    settings = zero_settings(_terms(a, work, place), elements, place.on_gpu)
    course = Course(work.total_steps, work.share, a.settings.warmup, a.seed)
    trainee: Trainee
    if work.way == "pipeline":
        trainee = Pipeline(model, task, job, settings, place, course)
    else:
        trainee = Whole(model, task, job, settings, place, course, should_stop)
    del model  # a stage of a pipeline keeps its own layers alone
    try:
        moments = ZeroMoments(folder, a, place)
        moments.go_on(trainee.engine)
        tally = _steps(job, work, trainee, place, on_progress, clock)
        moments.keep(trainee.engine)
        tensors = trainee.tensors()
        _wait_for_all(place)
    finally:
        trainee.engine.destroy()
        del trainee
        gc.collect()  # the engine holds itself, by its hooks
    return _written(job, tensors, tally) if place.rank == 0 else _followed(job, tally)


def _wait_for_all(place: Place) -> None:
    """A worker that says Done may be ended at once, in the middle of what others still read."""
    if place.world_size > 1:
        with suppress(RuntimeError):  # a member that is lost now is missed by the coordinator
            torch.distributed.barrier()


class Trainee(Protocol):
    """What is trained step by step, and then read out. All ranks make every call."""

    engine: Engine

    def step(self, step: int, mine: Tensor) -> tuple[float, bool]:
        """The ranks' mean loss, and whether one of them has to stop."""

    def tensors(self) -> dict[str, Tensor]:
        """The whole model's state; rank 0's counts."""


class Whole:
    """The whole model on each rank, as ZeRO shards it."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        job: Job,
        settings: DeepSpeedSettings,
        place: Place,
        course: Course,
        should_stop: Callable[[], bool],
    ) -> None:
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self.engine = start_engine(model, settings, place)
        self.engine.train()
        stepper = ZeroStepper(self.engine, task, job.samples, settings, place, course, should_stop)
        self.step = stepper.step

    def tensors(self) -> dict[str, Tensor]:
        """Gathered from all ranks."""
        return whole_tensors(self.engine.module, self._dtypes)


def _place(job: Job) -> Place:
    """This node's rank, in torch's world: DeepSpeed wants one, also of a node by itself."""
    device, gang = job.device, job.gang
    rank, size = (gang.place.rank, gang.place.size) if gang else (0, 1)
    if device.type != "cuda":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # which is the GPU that DeepSpeed takes
    if gang is not None:
        gang.make_world()
    elif not torch.distributed.is_initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing of it leaves the host
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return Place(rank, size, device)


@contextmanager
def _broken_gangs_in_words(job: Job) -> Iterator[None]:
    """What torch says where another member is gone is that member's fault, not this node's."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if job.gang is None or not _OF_THE_NETWORK.search(str(error)):
            raise
        first = str(error).splitlines()[0][:300]
        raise GangBrokeError(f"the gang's members could not train together: {first}") from error


def _model(task: Task, job: Job, work: ZeroWork) -> nn.Module:
    """The base, or the structure, with the weights of the start."""
    a = job.assignment
    built = build_part(task.model, a.part, a.seed, job.start)
    model = group_norms(built.module, built.whole, work.norm_parts)
    regularise(model, a.settings.regularisation, built.whole)
    return model.to(job.device)


def _terms(a: Assignment, work: ZeroWork, place: Place) -> ZeroTerms:
    s, pieces = a.settings, work.micro_batches if work.way == "pipeline" else 1
    return ZeroTerms(
        ranks=1 if work.way == "pipeline" else place.world_size,  # that share the data
        micro_batch=s.batch_size // pieces if work.way == "pipeline" else _mine(a, place),
        accumulation=pieces,
        learning_rate=s.learning_rate,
        weight_decay=s.weight_decay,
        betas=s.betas,
        gradient_clip=s.gradient_clip,
        stage=work.stage,
        offload=work.offload,
        precision=s.precision,
    )


def _steps(
    job: Job,
    work: ZeroWork,
    trainee: Trainee,
    place: Place,
    on_progress: Callable[[Progress], None],
    clock: Callable[[], float],
) -> Tally:
    """All steps of the assignment. Raises StoppedError once a rank is to stop."""
    a = job.assignment
    tally = Tally(a.id, clock)
    with tally.running():
        for step, indices in enumerate(_batches(job, work, place), work.first_step + 1):
            loss, stopping = trainee.step(step, indices)
            if stopping:
                raise StoppedError(f"assignment {a.id} was stopped")
            if tally.add(torch.tensor(loss), a.settings.batch_size):  # of all ranks
                on_progress(tally.progress())
    return tally


def _mine(a: Assignment, place: Place) -> int:
    """Samples of a step that are this rank's. What does not split evenly is left out."""
    return max(1, a.settings.batch_size // place.world_size)


def _batches(job: Job, work: ZeroWork, place: Place) -> Iterator[Tensor]:
    """This rank's samples of each step: its share of a walk that all take, or its own walk."""
    a, batch, mine = (
        job.assignment,
        job.assignment.settings.batch_size,
        _mine(job.assignment, place),
    )
    if work.own_data:
        first, count = work.first_step * mine, work.steps * mine
        yield from walk(a.seed, job.cluster, first, count, mine)
        return
    for indices in walk(a.seed, job.cluster, a.first_sample, a.num_samples, batch):
        yield indices if work.way == "pipeline" else indices[place.rank :: place.world_size][:mine]


def _followed(job: Job, tally: Tally) -> Trained:
    """What a member says whose weights rank 0 delivers: the start again, and no samples."""
    a = job.assignment
    assert a.start is not None
    update = update_of(a, tally, a.start, peak_memory_bytes(job.device))
    return Trained(replace(update, num_samples=0), None, None)


def _written(job: Job, tensors: dict[str, Tensor], tally: Tally) -> Trained:
    a = job.assignment
    digest = save_tensors(job.output, tensors, {"part": part_digest(a.part)}, durable=False)
    blob = Blob(digest, job.output.stat().st_size)
    update = update_of(a, tally, blob, peak_memory_bytes(job.device))
    return Trained(update, job.output, None)
