"""Training ahead: a node does not idle while its update travels and is merged.

It begins the part's next assignment from the weights that it has just sent. When that assignment
comes, its start may be another, for it holds what the other nodes did:

    w = start + (w_ahead - w_sent)

So the others' work arrives a round late, and nothing is done twice or in vain (eager and delayed
outer steps: Douillard et al. 2025, 2501.18512; Kale et al. 2025, 2502.12996). Where the start is
what was sent, as in mode block, this is training as if nothing had been between.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from partsum.node.trainer import Job, Trained, Training, train
from partsum.shared.messages import Assignment, Progress
from partsum.shared.task import Task
from partsum.shared.tensors import TensorFile

log = logging.getLogger(__name__)


class Ahead:
    """Trains assignments as `train` does, and goes ahead between them where they say so."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._training: Training | None = None  # of the assignment that is expected
        self._sent: TensorFile | None = None  # what it started from; no copy of it takes memory
        self._digest = ""  # of that

    def train(
        self,
        task: Task,
        job: Job,
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
    ) -> Trained:
        """Train a job, or what is left of it; raises as `partsum.node.trainer.train` does.

        What was done ahead counts where the job is the expected one. Else it is thrown away.
        """
        training = self._take_up(job)
        if training is None and not _leads_on(job.assignment):
            return train(task, job, on_progress, should_stop, self._clock)
        done = training.tally.samples_done if training else 0
        training = training or Training.begin(task, job, self._clock)
        trained = replace(training.finish(on_progress, should_stop), ahead=done)
        if _leads_on(job.assignment):
            self._expect_next(training, trained)
        return trained

    def go_on(self, should_stop: Callable[[], bool]) -> None:
        """Train ahead until ``should_stop`` says so, or the whole next assignment is done.

        Raises PartsumError, or what the task raises; nothing is left of the work then.
        """
        if self._training is None:
            return
        try:
            self._training.go_on(lambda progress: None, should_stop)
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Throw away what was done ahead, and the memory that it takes."""
        self._training = None
        if self._sent is not None:
            self._sent.close()
            self._sent.path.unlink(missing_ok=True)
            self._sent = None

    def _expect_next(self, training: Training, trained: Trained) -> None:
        assert trained.path is not None
        # The daemon may let the update go before we need it, and what is written over a file that
        # nobody needs is another blob: one with a second name is left alone.
        path = trained.path.with_name("sent")
        try:
            path.unlink(missing_ok=True)  # of a worker that was killed
            os.link(trained.path, path)
        except OSError as error:
            log.warning("nothing can be trained ahead: %s", error)
            return
        self._sent, self._digest = TensorFile(path), trained.update.blob.digest
        job = replace(training.job, assignment=following(training.job.assignment))
        self._training = Training(
            training.task, job, training.model, training.optimizer, self._clock
        )

    def _take_up(self, job: Job) -> Training | None:
        """The training of this job, begun ahead and put right; None where there is none."""
        training, a = self._training, job.assignment
        try:
            if training is None or not self._is_expected(a, training.job.assignment):
                return None
            assert job.start is not None
            assert self._sent is not None
            with TensorFile(job.start) as start:
                put_right(training.model.module, start, self._sent)
        finally:
            self.drop()  # where that failed, half of it is put right: nobody may go on from it
        training.job, training.tally.assignment_id = job, a.id
        return training

    def _is_expected(self, a: Assignment, expected: Assignment) -> bool:
        if a.start is None or _unnamed(a) != expected:
            return False
        # How far ahead a node gets depends on time: only from the same start does it not matter.
        return not a.settings.deterministic or a.start.digest == self._digest


def following(assignment: Assignment) -> Assignment:
    """The part's next assignment, but for its name, its start, and what follows it."""
    a = assignment
    return replace(
        _unnamed(a),
        round=a.round + 1,
        first_sample=a.first_sample + a.num_samples,
        progress=(a.progress[1], a.ahead_to),
    )


def _unnamed(a: Assignment) -> Assignment:
    return replace(a, id="", start=None, start_delta=None, masking=None, ahead_to=0.0)


def _leads_on(a: Assignment) -> bool:
    return a.ahead_to > 0 and a.num_samples > 0 and a.settings.aggregate == "weights"


@torch.no_grad()
def put_right(module: nn.Module, start: TensorFile, sent: TensorFile) -> None:
    """Let a module that went on from ``sent`` have gone on from ``start``: w + (start - sent).

    Statistics, which are floating-point buffers, are left: they follow the data within some steps,
    and a variance could become negative. Raises WireError where a file is damaged.
    """
    for name, tensor in _moved(module):
        if name in sent.tensors:
            new, old = start.read(name), sent.read(name)
            if not torch.equal(new, old):  # equal ones leave every bit as it is, -0.0 too
                tensor.add_((new - old).to(tensor.device))


def _moved(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and counters; tied ones once."""
    yield from module.named_parameters()
    for name, buffer in module.named_buffers():
        if not buffer.is_floating_point():
            yield name, buffer
