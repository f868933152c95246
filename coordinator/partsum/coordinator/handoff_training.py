"""The hand-off's training: the whole base on all of the data, under DeepSpeed, on one rank."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, distributed

from partsum.coordinator.handoff import HandoffJob
from partsum.coordinator.handoff_checkpoint import Checkpoints, Mark
from partsum.coordinator.handoff_config import REPLACED, deepspeed_settings
from partsum.coordinator.handoff_engine import (
    Place,
    build_model,
    log,
    peak_memory_bytes,
    start_engine,
    whole_tensors,
)
from partsum.shared.errors import HandoffError
from partsum.shared.messages import TaskSpec
from partsum.shared.schedule import handoff_rate
from partsum.shared.task import (
    Scores,
    evaluate,
    gather,
    load_samples,
    load_task,
    num_samples,
    walk,
)
from partsum.shared.tensors import save_tensors

_REPORT_SECONDS = 0.5
_HALVES = (torch.float16, torch.bfloat16)


class Say(Protocol):
    """Where reports go: a kind and its values, which JSON can hold."""

    def __call__(self, kind: str, **values: object) -> None:
        """Send one report."""
        ...


class HandoffTraining:
    """One rank's share of the training. All ranks do the same, on their own slice of each batch.

    ``stop`` ends it at the next step, on all ranks and after a checkpoint, once any rank's is set.
    """

    def __init__(self, job: HandoffJob, place: Place, say: Say, stop: threading.Event) -> None:
        if job.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Else each of DeepSpeed's buckets is filled first: 1 s and 1 GB a step (measured).
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.manual_seed(job.seed)
        self.job, self.place, self.say, self.stop = job, place, say, stop
        self.task = load_task(TaskSpec(job.task.name, job.task.options))
        self.train_samples = load_samples(self.task.train, "training")
        self.validation_samples = load_samples(self.task.validation, "validation")
        model = build_model(job, self.task)
        self.dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        elements = sum(parameter.numel() for parameter in model.parameters())
        self.settings = deepspeed_settings(job.handoff, job.training, elements, place.on_gpu)
        if job.handoff.deepspeed_config:
            log(f"{job.handoff.deepspeed_config} is taken as it is; ignored: {REPLACED}")
        self.engine = start_engine(model, self.settings, place)
        self.peaks = [group["lr"] for group in self.engine.optimizer.param_groups]
        batches = num_samples(self.train_samples) / self.settings.batch_size
        self.steps = max(1, round(job.handoff.epochs * batches))
        self.checkpoints = Checkpoints(
            job.folder / "checkpoints", self._identity(), place.rank, self._note
        )

    def run(self) -> None:
        """Train from the newest checkpoint, or the base, to the end; rank 0 reports and saves.

        Raises:
            HandoffError: the loss was not finite, or `stop` was set before the last step.
        """
        mark = self.checkpoints.resume(self.engine, self.place.device)
        if mark is None:
            scores = self.evaluate()
            mark = Mark(0, scores.loss, scores.loss, scores.accuracy)
        start = Scores(mark.start_loss, mark.start_accuracy)
        self._report(mark.step, mark.loss, 0.0, start if mark.step == 0 else None)
        scores = self._train(mark)
        self.say(
            "result",
            final=self._save_final(),
            scores=asdict(scores),
            start_scores=asdict(start),
            peak_memory_bytes=self._highest(peak_memory_bytes(self.place.device)),
        )

    def _train(self, mark: Mark) -> Scores:
        """All the steps after the mark; returns the scores after the last."""
        batch, every = self.settings.batch_size, self.job.handoff.checkpoint_every_steps
        everything = torch.arange(num_samples(self.train_samples))
        count = (self.steps - mark.step) * batch
        ways = self.job.handoff.evaluations + 1
        evaluations = {round(self.steps * i / ways) for i in range(1, ways + 1)}
        meter = _Meter()
        walked = walk(self.job.seed, everything, mark.step * batch, count, batch)
        for step, indices in enumerate(walked, mark.step + 1):
            begun = time.monotonic()
            loss, stopping = self._step(step, indices)
            meter.add(loss, len(indices), time.monotonic() - begun)
            mark = replace(mark, step=step, loss=meter.loss)
            scores = self.evaluate() if step in evaluations else None
            if scores is not None or meter.seconds > _REPORT_SECONDS:
                self._report(step, meter.loss, meter.samples_per_second, scores)
                meter = _Meter()
            if step == self.steps:
                break
            if stopping or step % every == 0:
                self.checkpoints.save(self.engine, mark)
            if stopping:
                raise HandoffError(
                    f"stopped at step {step} of {self.steps}, after a checkpoint; "
                    "start the coordinator again to go on"
                )
        assert scores is not None, "the last step is always evaluated"
        return scores

    def _step(self, step: int, indices: Tensor) -> tuple[float, bool]:
        """One optimizer step on a global batch: its mean loss, and whether a rank has to stop."""
        place, accumulation = self.place, self.settings.accumulation
        # Drawn from the step, so that dropout goes on after a resume as if nothing had happened.
        torch.manual_seed(self.job.seed * 1_000_003 + step * place.world_size + place.rank)
        self._set_rate(step)
        losses = torch.zeros((), device=place.device)
        mine = indices[place.rank :: place.world_size]
        for number, piece in enumerate(torch.split(mine, self.settings.micro_batch), 1):
            inputs, targets = (self._move(t) for t in gather(self.train_samples, piece))
            loss = self.task.loss(self._forward(inputs), targets)
            self.engine.backward(loss)
            losses += loss.detach() / accumulation
            if number == accumulation:  # before the step that this loss would spoil
                mean, stopping = self._agree(losses, step)
            self.engine.step()
        return mean, stopping

    def _set_rate(self, step: int) -> None:
        """The rate of this step, unless the user's JSON brings a scheduler of its own."""
        if self.engine.lr_scheduler is None:
            share = self.job.share
            progress = share + (1 - share) * (step - 1) / self.steps
            factor = handoff_rate(progress, share, self.job.training.warmup)
            for group, peak in zip(self.engine.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor

    def _agree(self, loss: Tensor, step: int) -> tuple[float, bool]:
        """The ranks' mean loss, and whether any of them has to stop; the same on all."""
        both = torch.stack([loss.float(), loss.new_tensor(float(self.stop.is_set())).float()])
        distributed.all_reduce(both)
        mean, stopping = (both / self.place.world_size).tolist()
        if not math.isfinite(mean):
            raise HandoffError(
                f"the loss became {mean} at step {step} of {self.steps}; that step was not taken. "
                "Lower handoff.learning_rate, or clip with training.gradient_clip, remove "
                f"{self.checkpoints.folder} and start again"
            )
        return mean, stopping > 0

    def _forward(self, inputs: Tensor) -> Tensor:
        """The model's outputs in float32, whatever it computes in."""
        if inputs.is_floating_point():
            inputs = inputs.to(next(self.engine.module.parameters()).dtype)
        outputs: Tensor = self.engine(inputs)
        return outputs.float() if outputs.dtype in _HALVES else outputs

    def _move(self, tensor: Tensor) -> Tensor:
        if not self.place.on_gpu:
            return tensor
        return tensor.pin_memory().to(self.place.device, non_blocking=True)

    def evaluate(self) -> Scores:
        """The validation scores. Every rank sees all samples: ZeRO-3 needs them in step."""
        self.engine.eval()
        scores = evaluate(self._forward, self.task, self.validation_samples, self.place.device)
        self.engine.train()
        return scores

    def _note(self, text: str) -> None:
        """For the hand-off's log, and the run's."""
        log(text)
        self.say("note", text=text)

    def _report(self, step: int, loss: float, speed: float, scores: Scores | None) -> None:
        self.say(
            "progress",
            step=step,
            steps=self.steps,
            loss=loss,
            scores=scores and asdict(scores),
            samples_per_second=speed,
            peak_memory_bytes=peak_memory_bytes(self.place.device),
        )

    def _highest(self, value: int) -> int:
        """The largest of the ranks' values."""
        tensor = torch.tensor([value], device=self.place.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    def _save_final(self) -> str:
        """The whole model as one file, with the names and dtypes of the task's own state dict."""
        path = self.job.folder / "final.safetensors"
        tensors = whole_tensors(self.engine.module, self.dtypes)
        metadata = {
            "task": self.job.task.name,
            "seed": str(self.job.seed),
            "norms": self.job.handoff.norms,
        }
        if self.job.norm_parts:
            metadata["norm_parts"] = json.dumps(self.job.norm_parts, separators=(",", ":"))
        if self.job.off:
            metadata["gates_off"] = json.dumps(self.job.off, separators=(",", ":"))
        if self.place.rank == 0:
            save_tensors(path, tensors, metadata)
        return str(path)

    def _identity(self) -> dict[str, object]:
        """What a checkpoint has to share with this job to be resumed from."""
        return {
            "task": self.job.task.name,
            "seed": self.job.seed,
            "ranks": self.place.world_size,
            "ZeRO stage": self.settings.values.get("zero_optimization", {}).get("stage", 0),
            "batch size": self.settings.batch_size,
            "steps": self.steps,
        }


@dataclass
class _Meter:
    """Loss and speed since the last report."""

    losses: float = 0.0
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0

    def add(self, loss: float, samples: int, seconds: float) -> None:
        self.losses += loss
        self.steps += 1
        self.samples += samples
        self.seconds += seconds

    @property
    def loss(self) -> float:
        return self.losses / self.steps

    @property
    def samples_per_second(self) -> float:
        return self.samples / max(self.seconds, 1e-9)
