"""A stage of a pipeline: this node's layers of the base, under DeepSpeed's PipelineEngine.

Activations go from stage to stage and gradients back, for each piece of a batch; a node holds its
own layers' weights, gradients and moments. All stages load the whole base to begin with, and let go
of what is not theirs.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from partsum.node.trainer import Job
from partsum.shared.errors import HandoffError
from partsum.shared.task import Task, gather
from partsum.shared.zero.ends import Front
from partsum.shared.zero.engine import Place, start_engine
from partsum.shared.zero.settings import DeepSpeedSettings
from partsum.shared.zero.stages import Layer, check_stages, cut_layers
from partsum.shared.zero.stepper import Course

_PROBE_SAMPLES = 2


class Pipeline:
    """One stage. All stages make every call, in the same order."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        job: Job,
        settings: DeepSpeedSettings,
        place: Place,
        course: Course,
    ) -> None:
        self._task, self._job, self._settings, self._place = task, job, settings, place
        self._course = course
        probe, _ = gather(job.samples, job.cluster[:_PROBE_SAMPLES])
        self._layers = cut_layers(model, probe.to(place.device))
        check_stages(self._layers, place.world_size)
        module = _module(self._layers, self._loss, place)
        self._bounds: Sequence[int] = module.parts  # of stages, by layer
        self._check_dealt()
        for k, layer in enumerate(self._layers):
            if self._owner(k) != place.rank:
                self._let_go(layer)
        self.engine: Any = start_engine(module, settings, place)
        self._peaks = [group["lr"] for group in self.engine.optimizer.param_groups]

    def _check_dealt(self) -> None:
        """All stages see alike whether one of them got nothing to train. Raises HandoffError."""
        dealt = {self._owner(k) for k, layer in enumerate(self._layers) if layer.is_trained}
        if len(dealt) < self._place.world_size:
            raise HandoffError(
                f"dealt by weights, the model's layers leave {self._place.world_size - len(dealt)} "
                f"of {self._place.world_size} nodes without any; a pipeline needs fewer nodes "
                '(parts.count), or take handoff.how = "together" or "apart"'
            )

    def _let_go(self, layer: Layer) -> None:
        """Free another stage's weights.

        The last stage keeps the front's: what comes after the blocks is run through the model's
        own code, which begins with what comes before them.
        """
        held = list(layer.module.parameters())
        layer.module.to("meta")
        is_last = self._owner(len(self._layers) - 1) == self._place.rank
        if not (is_last and isinstance(layer.module, Front)):
            for parameter in held:  # which the model itself still names
                parameter.data = parameter.data.new_empty(0)

    def step(self, step: int, indices: Tensor) -> tuple[float, bool]:
        """Step ``step``, from 1, on these samples: the mean loss, and False.

        Raises HandoffError where the loss is not finite. The step is taken then, but nobody keeps
        what it made.
        """
        torch.manual_seed((self._course.seed * 1_000_003 + step) % 2**63)
        factor = self._course.factor(step)
        for group, peak in zip(self.engine.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        loss = float(self.engine.train_batch(self._pieces(indices)))
        if not math.isfinite(loss):
            raise HandoffError(
                f"the loss became {loss} at step {step} of {self._course.steps}. Lower "
                "handoff.learning_rate, or clip with training.gradient_clip"
            )
        return loss, False

    def tensors(self) -> dict[str, Tensor]:
        """The whole model's state on rank 0, and nothing on the others, which send theirs there."""
        whole: dict[str, Tensor] = {}
        for k, layer in enumerate(self._layers):
            owner = self._owner(k)
            for own, tensor in layer.module.state_dict().items():
                if owner == self._place.rank == 0:
                    whole[layer.names[own]] = tensor.detach().cpu()
                elif owner == self._place.rank:
                    distributed.send(tensor.detach().contiguous(), 0)
                elif self._place.rank == 0:
                    there = torch.empty_like(tensor, device=self._place.device)
                    distributed.recv(there, owner)
                    whole[layer.names[own]] = there.cpu()
        return whole

    def _owner(self, layer: int) -> int:
        """The stage that has the layer."""
        ends = self._bounds[1:]
        return next(stage for stage, end in enumerate(ends) if layer < end)

    def _pieces(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch in pieces; only the first and the last stage take any."""
        for piece in torch.split(indices, self._settings.micro_batch):
            inputs, targets = gather(self._job.samples, piece)
            yield inputs.to(self._place.device), targets.to(self._place.device)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss(outputs.float(), targets)


def _module(layers: Sequence[Layer], loss: Any, place: Place) -> Any:
    """DeepSpeed's module: layers are dealt to stages so that each has about as many parameters."""
    import deepspeed
    from deepspeed.pipe import PipelineModule

    deepspeed.init_distributed(dist_init_required=False)  # it takes torch's world
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it deals, on every node
        return PipelineModule(
            [layer.module for layer in layers],
            num_stages=place.world_size,
            loss_fn=loss,
            partition_method="parameters",
        )
