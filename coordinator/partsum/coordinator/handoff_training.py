"""The hand-off's training: the whole base on all of the data, under DeepSpeed, on one rank."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, distributed

from partsum.coordinator.handoff import HandoffJob
from partsum.coordinator.handoff_checkpoint import Checkpoints, Mark
from partsum.coordinator.handoff_config import REPLACED, deepspeed_settings
from partsum.coordinator.handoff_model import build_model, final_metadata, log
from partsum.shared.errors import HandoffError
from partsum.shared.memory import peak_memory_bytes
from partsum.shared.messages import TaskSpec
from partsum.shared.task import (
    Scores,
    evaluate,
    load_samples,
    load_task,
    num_samples,
    walk,
)
from partsum.shared.tensors import save_tensors
from partsum.shared.zero.engine import Place, start_engine, whole_tensors
from partsum.shared.zero.stepper import Course, ZeroStepper

_REPORT_SECONDS = 0.5


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
        batches = num_samples(self.train_samples) / self.settings.batch_size
        self.steps = max(1, round(job.handoff.epochs * batches))
        self.stepper = ZeroStepper(
            self.engine,
            self.task,
            self.train_samples,
            self.settings,
            place,
            Course(self.steps, job.share, job.training.warmup, job.seed),
            stop.is_set,
        )
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
            loss, stopping = self._step(step, indices[self.place.rank :: self.place.world_size])
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

    def _step(self, step: int, mine: Tensor) -> tuple[float, bool]:
        """One optimizer step on this rank's samples: the mean loss, and whether to stop."""
        try:
            return self.stepper.step(step, mine)
        except HandoffError as error:
            raise HandoffError(
                f"{error}; remove {self.checkpoints.folder} and start again"
            ) from error

    def evaluate(self) -> Scores:
        """The validation scores. Every rank sees all samples: ZeRO-3 needs them in step."""
        self.engine.eval()
        scores = evaluate(
            self.stepper.forward, self.task, self.validation_samples, self.place.device
        )
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
        if self.place.rank == 0:
            job, norms = self.job, self.job.handoff.norms
            metadata = final_metadata(job.task.name, job.seed, norms, job.norm_parts, job.off)
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
