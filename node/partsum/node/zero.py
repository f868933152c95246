"""Train a stretch of the hand-off under DeepSpeed: the whole base, on this node's own samples.

A node by itself makes a new engine for each stretch, in a group of one that stays. A gang's group
and DeepSpeed's idea of it belong to the process, so its stretch is the last that a worker carries
out (see `process`); the next worker loads while the round ends.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # it is public

from partsum.node.model import build_part
from partsum.node.tally import Tally
from partsum.node.trainer import Job, StoppedError, Trained, update_of
from partsum.node.zero_moments import ZeroMoments
from partsum.shared.errors import HandoffError
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
    _check_installed()
    place = _alone(job.device)
    torch.manual_seed(a.seed)
    model = _model(task, job, work)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    elements = sum(parameter.numel() for parameter in model.parameters())
    settings = zero_settings(_terms(a, work, place), elements, place.on_gpu)
    with _engine(model, settings, place) as engine:
        moments = ZeroMoments(folder, a, place)
        moments.go_on(engine)
        tally = _steps(task, job, work, engine, settings, place, on_progress, should_stop, clock)
        moments.keep(engine)
        return _written(job, whole_tensors(engine.module, dtypes), tally)


@contextmanager
def _engine(model: nn.Module, settings: DeepSpeedSettings, place: Place) -> Iterator[Engine]:
    """DeepSpeed's engine around the model; afterwards its memory is free for the next."""
    engine = start_engine(model, settings, place)
    try:
        yield engine
    finally:
        engine.destroy()
        del engine
        gc.collect()  # it holds itself, by its hooks


def _check_installed() -> None:
    if find_spec("deepspeed") is None:
        raise HandoffError(
            "this node has no DeepSpeed, which the hand-off over nodes needs: install "
            "partsum[handoff] on it (scripts/build_deepspeed.sh builds its ops), or set "
            'handoff.over = "host" in run.toml'
        )


def _alone(device: torch.device) -> Place:
    """A group of this node alone, since DeepSpeed wants one; nothing of it leaves the host."""
    if torch.distributed.is_initialized():
        return Place(0, 1, device)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": str(device.index or 0)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=HashStore(), rank=0, world_size=1
    )
    return Place(0, 1, device)


def _model(task: Task, job: Job, work: ZeroWork) -> nn.Module:
    """The base, or the structure, with the weights of the start."""
    a = job.assignment
    built = build_part(task.model, a.part, a.seed, job.start)
    model = group_norms(built.module, built.whole, work.norm_parts)
    regularise(model, a.settings.regularisation, built.whole)
    return model.to(job.device)


def _terms(a: Assignment, work: ZeroWork, place: Place) -> ZeroTerms:
    s = a.settings
    return ZeroTerms(
        ranks=place.world_size,
        micro_batch=s.batch_size,
        learning_rate=s.learning_rate,
        weight_decay=s.weight_decay,
        betas=s.betas,
        gradient_clip=s.gradient_clip,
        stage=work.stage,
        offload=work.offload,
        precision=s.precision,
    )


def _steps(
    task: Task,
    job: Job,
    work: ZeroWork,
    engine: Engine,
    settings: DeepSpeedSettings,
    place: Place,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    clock: Callable[[], float],
) -> Tally:
    """All steps of the assignment. Raises StoppedError once a rank is to stop."""
    a = job.assignment
    course = Course(work.total_steps, work.share, a.settings.warmup, a.seed)
    stepper = ZeroStepper(engine, task, job.samples, settings, place, course, should_stop)
    batches = walk(a.seed, job.cluster, a.first_sample, a.num_samples, a.settings.batch_size)
    engine.train()
    tally = Tally(a.id, clock)
    with tally.running():
        for step, indices in enumerate(batches, work.first_step + 1):
            loss, stopping = stepper.step(step, indices)
            if stopping:
                raise StoppedError(f"assignment {a.id} was stopped")
            if tally.add(torch.tensor(loss), len(indices)):
                on_progress(tally.progress())
    return tally


def _written(job: Job, tensors: dict[str, Tensor], tally: Tally) -> Trained:
    a = job.assignment
    digest = save_tensors(job.output, tensors, {"part": part_digest(a.part)}, durable=False)
    blob = Blob(digest, job.output.stat().st_size)
    update = update_of(a, tally, blob, peak_memory_bytes(job.device))
    return Trained(update, job.output, None)
