"""One rank's optimizer steps under DeepSpeed. All ranks step together, each on its own samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from partsum.shared.errors import HandoffError
from partsum.shared.schedule import handoff_rate
from partsum.shared.task import Samples, Task, gather
from partsum.shared.zero.engine import Engine, Place
from partsum.shared.zero.settings import DeepSpeedSettings

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Course:
    """A hand-off's steps on the run's learning-rate schedule, which it enters at ``share``."""

    steps: int
    share: float
    warmup: float
    seed: int

    def factor(self, step: int) -> float:
        """On the peak rate, at this step, from 1."""
        progress = self.share + (1 - self.share) * (step - 1) / self.steps
        return handoff_rate(progress, self.share, self.warmup)


class ZeroStepper:
    """Steps an engine. ``stopped`` is asked at each step, and any rank's yes is all ranks'."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        samples: Samples,
        settings: DeepSpeedSettings,
        place: Place,
        course: Course,
        stopped: Callable[[], bool],
    ) -> None:
        self.engine = engine
        self._task = task
        self._samples = samples
        self._settings = settings
        self._place = place
        self._course = course
        self._stopped = stopped
        self._peaks = [group["lr"] for group in engine.optimizer.param_groups]

    def step(self, step: int, mine: Tensor) -> tuple[float, bool]:
        """Step ``step``, from 1, on this rank's samples ``mine``.

        Returns the ranks' mean loss, and whether a rank has to stop. Raises HandoffError where the
        loss is not finite; nothing was stepped then.
        """
        place, accumulation = self._place, self._settings.accumulation
        # Drawn from the step, so that dropout goes on after a resume as if nothing had happened.
        drawn = self._course.seed * 1_000_003 + step * place.world_size + place.rank
        torch.manual_seed(drawn % 2**63)
        self._set_rate(step)
        losses = torch.zeros((), device=place.device)
        for number, piece in enumerate(torch.split(mine, self._settings.micro_batch), 1):
            inputs, targets = (self._move(t) for t in gather(self._samples, piece))
            loss = self._task.loss(self.forward(inputs), targets)
            self.engine.backward(loss)
            losses += loss.detach() / accumulation
            if number == accumulation:  # before the step that this loss would spoil
                mean, stopping = self._agree(losses, step)
            self.engine.step()
        return mean, stopping

    def _set_rate(self, step: int) -> None:
        """The rate of this step, unless the user's JSON brings a scheduler of its own."""
        if self.engine.lr_scheduler is None:
            factor = self._course.factor(step)
            for group, peak in zip(self.engine.optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor

    def _agree(self, loss: Tensor, step: int) -> tuple[float, bool]:
        """The ranks' mean loss, and whether any of them has to stop; the same on all."""
        both = torch.stack([loss.float(), loss.new_tensor(float(self._stopped())).float()])
        distributed.all_reduce(both)
        mean, stopping = (both / self._place.world_size).tolist()
        if not math.isfinite(mean):
            raise HandoffError(
                f"the loss became {mean} at step {step} of {self._course.steps}; that step was not "
                "taken. Lower handoff.learning_rate, or clip with training.gradient_clip"
            )
        return mean, stopping > 0

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's outputs in float32, whatever it computes in."""
        if inputs.is_floating_point():
            inputs = inputs.to(next(self.engine.module.parameters()).dtype)
        outputs: Tensor = self.engine(inputs)
        return outputs.float() if outputs.dtype in _HALVES else outputs

    def _move(self, tensor: Tensor) -> Tensor:
        if not self._place.on_gpu:
            return tensor
        return tensor.pin_memory().to(self._place.device, non_blocking=True)
