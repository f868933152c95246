"""Train one assignment on one device, and write its update."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.node.gang import Gang
from partsum.node.model import PartModel, build_part
from partsum.node.optimizer import load_moments, make_optimizer, moments, save_moments
from partsum.node.settled import Settled
from partsum.node.shared_weights import SharedWeights, carriers_of
from partsum.node.step import Stepper
from partsum.node.tally import Tally
from partsum.shared.errors import PartsumError
from partsum.shared.memory import peak_memory_bytes
from partsum.shared.messages import Assignment, Blob, Progress, Update
from partsum.shared.moments import part_digest
from partsum.shared.regularisation import regularise
from partsum.shared.task import Samples, Task, gather, walk
from partsum.shared.tensors import TensorFile, save_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An assignment with all that it needs.

    Args:
        assignment: what to train.
        start: weights to start from; None initialises from the assignment's seed.
        optimizer: the moments that belong to ``start``; None starts with none.
        cluster: int64 indices into ``samples``.
        samples: the data set, or the cluster's samples alone.
        output: the file to write the update to; the moments go beside it, as ``.optimizer``.
        device: where to train.
        residual: what the encoding of the part's last update lost, if there is a record of it.
        gang: the others that train in step with this, where there are any.
    """

    assignment: Assignment
    start: Path | None
    optimizer: Path | None
    cluster: Tensor
    samples: Samples
    output: Path
    device: torch.device
    residual: Path | None = None
    gang: Gang | None = None


@dataclass(frozen=True)
class Trained:
    """What came of a job. ``path`` is None where the update is the start itself.

    ``ahead`` counts the samples that were done before the assignment came.
    """

    update: Update
    path: Path | None
    optimizer: Path | None
    ahead: int = 0
    encoded: Path | None = None
    residual: Path | None = None


class StoppedError(PartsumError):
    """The job was stopped on request."""


def train(
    task: Task,
    job: Job,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    clock: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Train the job's part on its samples; once this returns, the update is on disk.

    With ``deterministic`` settings the same job gives the same bytes, in any process on the same
    kind of host. With aggregate "gradients" nothing is stepped: the update holds the mean gradient
    of the samples in place of each floating-point parameter. No samples are a legal number: the
    update is the start.

    Args:
        task: whose model and loss to use.
        job: what to train, from where, on what.
        on_progress: called about four times a second.
        should_stop: asked before each step.
        clock: seconds, for speed and progress; no result depends on it.

    Raises:
        StoppedError: ``should_stop`` said so; nothing is left on disk.
        PartsumError: the loss is not finite, or the start does not fit.
        GangBrokeError: another member of its gang does not answer.
    """
    a = job.assignment
    if a.num_samples == 0 and job.start is not None and a.settings.aggregate == "weights":
        assert a.start is not None
        update = update_of(a, Tally(a.id, clock), a.start, peak_memory_bytes(job.device))
        return Trained(update, None, None)
    return Training.begin(task, job, clock).finish(on_progress, should_stop)


class Training:
    """An assignment under way: its model and optimizer in memory, and how far it is.

    ``job`` may be replaced by one that differs in names and files only.
    """

    def __init__(
        self,
        task: Task,
        job: Job,
        model: PartModel,
        optimizer: torch.optim.Optimizer,
        clock: Callable[[], float],
        shared: SharedWeights | None = None,
    ) -> None:
        a = job.assignment
        self.task = task
        self.job = job
        self.model = model
        self.optimizer = optimizer
        self.tally = Tally(a.id, clock)
        self._shared = shared
        self._stepper = Stepper(model.module, optimizer, a, shared)
        self._settled = Settled(a, job.device)
        self._batches = walk(
            a.seed, job.cluster, a.first_sample, a.num_samples, a.settings.batch_size
        )
        if job.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(job.device)

    @classmethod
    def begin(cls, task: Task, job: Job, clock: Callable[[], float]) -> Training:
        """Build the part and its optimizer. Raises PartsumError where the start does not fit."""
        a = job.assignment
        check_cluster(job)
        model = build_part(task.model, a.part, a.seed, job.start)
        regularise(model.module, a.settings.regularisation, model.whole)
        model.module.to(job.device).train()
        optimizer = make_optimizer(model, a.settings, job.device)
        if a.settings.aggregate == "weights":
            _go_on(job, model, optimizer)
        shared = None
        if job.gang is not None and a.gang is not None:
            carriers = carriers_of(task.model, a.gang.parts, a.seed)
            shared = SharedWeights(job.gang, model.module, carriers)
            shared.share_moments(optimizer)
        return cls(task, job, model, optimizer, clock, shared)

    def finish(
        self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> Trained:
        """Train what is left, and write the update. Raises as `train` does."""
        if not self.go_on(on_progress, should_stop):
            raise StoppedError(f"assignment {self.job.assignment.id} was stopped")
        if self._shared is not None:
            self._shared.check()
        return _write(self.job, self.model, self.optimizer, self.tally)

    def go_on(
        self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> bool:
        """Train until no samples are left, or until ``should_stop`` says so; are none left?"""
        total = self.job.assignment.num_samples
        with self._settled.stretch(), self.tally.running():
            while self.tally.samples_done < total:
                if should_stop():
                    return False
                if self._train_batch(next(self._batches)):
                    on_progress(self.tally.progress())
        return True

    def _train_batch(self, indices: Tensor) -> bool:
        """True when it is time to report."""
        a = self.job.assignment
        loss = _forward(self.task, self.job, self.model.module, indices)
        if a.settings.aggregate == "weights":
            self._stepper.step(loss, self.tally.samples_done)
        else:
            torch.autograd.backward(loss * (len(indices) / a.num_samples))
        return self.tally.add(loss, len(indices))


def check_cluster(job: Job) -> None:
    """Raise PartsumError where there is nothing to train on."""
    a = job.assignment
    if a.num_samples and not len(job.cluster):
        raise PartsumError(f"the cluster of assignment {a.id} has no samples to train on")


def _go_on(job: Job, model: PartModel, optimizer: torch.optim.Optimizer) -> None:
    """Take over the moments of the part's last training; said where they are missing."""
    a = job.assignment
    source = job.start if a.settings.carry_moments else job.optimizer
    if source is not None and load_moments(source, model.module, optimizer, a.part):
        return
    kept = a.settings.keep_moments and a.round > 0
    if job.start is not None and (kept or _trained_part(job.start) == part_digest(a.part)):
        outcome = "; the run's weights will not be those of an undisturbed run"
        log.warning(
            "assignment %s begins without the optimizer's moments: this node has not trained the "
            "part last, or has lost them (a larger --cache-gib keeps them)%s",
            a.id,
            outcome if a.settings.deterministic else "",
        )


def _trained_part(path: Path) -> str:
    """The digest of the part that the file is an update of; empty where it was cut from a base."""
    with TensorFile(path) as file:
        return file.metadata.get("part", "")


def _forward(task: Task, job: Job, module: nn.Module, indices: Tensor) -> Tensor:
    """The mean loss of one batch."""
    bfloat16 = job.assignment.settings.precision == "bfloat16"
    inputs, targets = (_move(t, job.device) for t in gather(job.samples, indices))
    with torch.autocast(job.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        return task.loss(module(inputs), targets)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def _write(job: Job, model: PartModel, optimizer: torch.optim.Optimizer, tally: Tally) -> Trained:
    a = job.assignment
    tensors = dict(model.module.state_dict())
    beside: Path | None = None
    metadata = {"part": part_digest(a.part)}
    if a.settings.aggregate == "gradients":
        for name, parameter in model.module.named_parameters(remove_duplicate=False):
            grad = parameter.grad
            tensors[name] = torch.zeros_like(parameter) if grad is None else grad
    elif a.settings.carry_moments:
        tensors |= moments(model.module, optimizer)
    elif a.num_samples:
        beside = job.output.with_name(f"{job.output.name}.optimizer")
        save_moments(beside, model.module, optimizer, a.part)
    digest = save_tensors(job.output, tensors, metadata, durable=False)
    blob = Blob(digest, job.output.stat().st_size)
    update = update_of(a, tally, blob, peak_memory_bytes(job.device))
    return Trained(update, job.output, beside)


def update_of(a: Assignment, tally: Tally, blob: Blob, peak_memory_bytes: int) -> Update:
    """What there is to say of an assignment that is trained, its tensors in ``blob``."""
    return Update(
        assignment_id=a.id,
        round=a.round,
        part_index=a.part_index,
        start_digest=a.start.digest if a.start else "",
        num_samples=a.num_samples,
        loss=tally.loss_sum / max(a.num_samples, 1),
        train_seconds=tally.seconds,
        samples_per_second=a.num_samples / tally.seconds if tally.seconds else 0.0,
        peak_memory_bytes=peak_memory_bytes,
        blob=blob,
    )
