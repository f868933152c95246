"""One optimizer step of an assignment: its learning rate, its gradient, its pull to the start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from partsum.node.optimizer import set_rate
from partsum.node.shared_weights import SharedWeights
from partsum.shared.messages import Assignment
from partsum.shared.schedule import rate


class Stepper:
    """Steps a module that holds what its assignment starts from.

    ``shared`` are the weights that a gang's members take their steps with alike.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        assignment: Assignment,
        shared: SharedWeights | None = None,
    ) -> None:
        self._shared = shared
        self._module = module
        self._optimizer = optimizer
        self._assignment = assignment
        self._proximal = Proximal(module, assignment.settings.proximal)

    def step(self, loss: Tensor, samples_done: int) -> None:
        """Go down the gradient of ``loss``; so many samples were seen before it."""
        begin, end = self._assignment.progress
        settings = self._assignment.settings
        progress = begin + (end - begin) * samples_done / self._assignment.num_samples
        set_rate(self._optimizer, rate(progress, settings.warmup))
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._proximal.pull()
        if self._shared is not None:
            self._shared.average_gradients()
        if settings.gradient_clip:
            self._clip(settings.gradient_clip)
        self._optimizer.step()

    def _clip(self, norm: float) -> None:
        if self._shared is not None:
            self._shared.clip_gradients(norm)
        else:
            nn.utils.clip_grad_norm_(self._module.parameters(), norm)


class Proximal:
    """FedProx: the gradient of mu / 2 * ||w - start||^2 over all trained parameters.

    Li et al. 2018 (1812.06127): nodes that see different data do not drift far apart. ``start`` is
    what the module holds at first; of it a copy is kept, unless mu is 0.
    """

    def __init__(self, module: nn.Module, mu: float) -> None:
        self._mu = mu
        trained = [p for p in module.parameters() if p.requires_grad and mu]
        self._starts = [(parameter, parameter.detach().clone()) for parameter in trained]

    @torch.no_grad()
    def pull(self) -> None:
        """Add mu * (w - start) to the gradients; a parameter without one was not used: it stays."""
        for parameter, start in self._starts:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self._mu)
