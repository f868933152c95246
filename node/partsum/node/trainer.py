"""Train one assignment on one device, and write its update."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.node.model import PartModel, build_part
from partsum.node.optimizer import (
    load_moments,
    make_optimizer,
    moments,
    save_moments,
    set_rate,
)
from partsum.shared.errors import PartsumError
from partsum.shared.messages import Assignment, Blob, Progress, Update
from partsum.shared.moments import part_digest
from partsum.shared.schedule import rate
from partsum.shared.task import Samples, Task, gather, walk
from partsum.shared.tensors import TensorFile, save_tensors

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.25


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
    """

    assignment: Assignment
    start: Path | None
    optimizer: Path | None
    cluster: Tensor
    samples: Samples
    output: Path
    device: torch.device


@dataclass(frozen=True)
class Trained:
    """What came of a job. ``path`` is None where the update is the start itself."""

    update: Update
    path: Path | None
    optimizer: Path | None


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
    """
    a = job.assignment
    if a.num_samples == 0 and job.start is not None and a.settings.aggregate == "weights":
        assert a.start is not None
        return Trained(_update(a, Tally(a, clock), a.start, _peak_memory(job.device)), None, None)
    if a.num_samples and not len(job.cluster):
        raise PartsumError(f"the cluster of assignment {a.id} has no samples to train on")
    with _settled(a, job.device):
        model = build_part(task.model, a.part, a.seed, job.start)
        model.module.to(job.device).train()
        optimizer = make_optimizer(model, a.settings, job.device)
        if a.settings.aggregate == "weights":
            _go_on(job, model, optimizer)
        tally = Tally(a, clock)
        for indices in walk(
            a.seed, job.cluster, a.first_sample, a.num_samples, a.settings.batch_size
        ):
            if should_stop():
                raise StoppedError(f"assignment {a.id} was stopped")
            loss = _forward(task, job, model.module, indices)
            if a.settings.aggregate == "weights":
                _step(model.module, optimizer, loss, a, tally.samples_done)
            else:
                torch.autograd.backward(loss * (len(indices) / a.num_samples))
            if tally.add(loss, len(indices)):
                on_progress(tally.progress())
        tally.settle()
        return _write(job, model, optimizer, tally)


def _go_on(job: Job, model: PartModel, optimizer: torch.optim.Optimizer) -> None:
    """Take over the moments of the part's last training; said where they are missing."""
    a = job.assignment
    source = job.start if a.settings.carry_moments else job.optimizer
    if source is not None and load_moments(source, model.module, optimizer, a.part):
        return
    if job.start is not None and _trained_part(job.start) == part_digest(a.part):
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


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    assignment: Assignment,
    samples_done: int,
) -> None:
    begin, end = assignment.progress
    settings = assignment.settings
    progress = begin + (end - begin) * samples_done / assignment.num_samples
    set_rate(optimizer, rate(progress, settings.warmup))
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if settings.gradient_clip:
        nn.utils.clip_grad_norm_(module.parameters(), settings.gradient_clip)
    optimizer.step()


@dataclass
class Tally:
    """Counts samples and adds up losses; the device is asked for them only now and then."""

    assignment: Assignment
    clock: Callable[[], float]
    samples_done: int = 0
    loss_sum: float = 0.0
    _steps_read: int = 0
    _unread: list[tuple[Tensor, int]] = field(default_factory=list)
    _start: float = field(init=False)
    _last_read: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self._last_read = self.clock()

    def add(self, loss: Tensor, samples: int) -> bool:
        """Count one step; True when it is time to report."""
        self._unread.append((loss.detach(), samples))
        self.samples_done += samples
        due = self.clock() - self._last_read >= PROGRESS_SECONDS
        if due:
            self.settle()
        return due

    def settle(self) -> None:
        """Read all losses so far. Raises PartsumError where one is not finite."""
        self._last_read = self.clock()
        if not self._unread:
            return
        losses = torch.stack([loss.float() for loss, _ in self._unread]).tolist()
        for loss, (_, samples) in zip(losses, self._unread, strict=True):
            self._steps_read += 1
            if not math.isfinite(loss):
                raise PartsumError(
                    f"the loss became {loss} at step {self._steps_read} of assignment "
                    f"{self.assignment.id}; a lower training.learning_rate or a "
                    "training.gradient_clip may help, and bad samples are worth a look"
                )
            self.loss_sum += loss * samples
        self._unread.clear()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self.clock() - self._start

    def progress(self) -> Progress:
        """How far the assignment is; the loss is its mean so far."""
        done = self.samples_done
        speed = done / max(self.seconds, 1e-9)
        return Progress(self.assignment.id, done, self.loss_sum / max(done, 1), speed)


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
    seconds = tally.seconds  # reading the losses has waited for the device
    digest = save_tensors(job.output, tensors, metadata, durable=False)
    blob = Blob(digest, job.output.stat().st_size)
    update = _update(a, tally, blob, _peak_memory(job.device), seconds)
    return Trained(update, job.output, beside)


def _update(
    a: Assignment, tally: Tally, blob: Blob, peak_memory_bytes: int, seconds: float = 0.0
) -> Update:
    return Update(
        assignment_id=a.id,
        round=a.round,
        part_index=a.part_index,
        start_digest=a.start.digest if a.start else "",
        num_samples=a.num_samples,
        loss=tally.loss_sum / max(a.num_samples, 1),
        train_seconds=seconds,
        samples_per_second=a.num_samples / seconds if seconds else 0.0,
        peak_memory_bytes=peak_memory_bytes,
        blob=blob,
    )


@contextmanager
def _settled(a: Assignment, device: torch.device) -> Iterator[None]:
    """Random numbers from (seed, round), and deterministic algorithms where asked for."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((a.seed * 1_000_003 + a.round) % 2**63)
        # On CUDA some operations have no deterministic form: there they warn, not end the training.
        cuda = device.type == "cuda"
        torch.use_deterministic_algorithms(a.settings.deterministic, warn_only=cuda)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _peak_memory(device: torch.device) -> int:
    """The most that training took: of the GPU's memory, or of this whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
