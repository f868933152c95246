"""One model in training: a part, or the whole, on its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from benchmarks.accuracy.workload import CPU, Workload
from torch import Tensor

from partsum.node.model import PartModel
from partsum.node.optimizer import make_optimizer, set_rate
from partsum.shared.messages import TrainSettings
from partsum.shared.task import gather, walk

State = dict[str, Tensor]

MOMENTS = ("exp_avg", "exp_avg_sq")


class Learner:
    """A module with its optimizer and its walk over its samples."""

    def __init__(
        self, load: Workload, model: PartModel, settings: TrainSettings, cluster: Tensor, seed: int
    ) -> None:
        self.load, self.settings, self.cluster, self.seed = load, settings, cluster, seed
        self.module = model.module.train()
        self.optimizer = make_optimizer(model, settings, CPU)

    def train(self, first: int, end: int, factor: Callable[[int], float]) -> None:
        """Go on from the ``first`` sample of the walk up to ``end``.

        ``factor`` says, for a number of samples since the walk began, what the learning rate is
        multiplied by.
        """
        samples, batch, done = self.load.train, self.settings.batch_size, first
        for indices in walk(self.seed, self.cluster, first, end - first, batch):
            set_rate(self.optimizer, factor(done))
            inputs, targets = gather(samples, indices)
            loss = self.load.task.loss(self.module(inputs), targets)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimizer.step()
            done += len(indices)

    @property
    def state(self) -> State:
        """The weights; not a copy."""
        return {name: tensor.detach() for name, tensor in self.module.state_dict().items()}

    def moments(self, key: str) -> State:
        """AdamW's moments of that key by parameter; not copies."""
        return {
            name: self.optimizer.state[parameter][key]
            for name, parameter in self.module.named_parameters()
        }

    @property
    def steps(self) -> Tensor:
        """How many steps the optimizer has taken, float32 and 0-dim."""
        found: Tensor = next(iter(self.optimizer.state.values()))["step"]
        return found

    def take_moments(self, moments: Mapping[str, State], steps: Tensor) -> None:
        """Go on with moments by key and parameter."""
        for name, parameter in self.module.named_parameters():
            kept = {key: moments[key][name].clone() for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": steps.clone(), **kept}
