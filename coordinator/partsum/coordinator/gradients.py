"""Aggregation of gradients: nodes send mean gradients, the coordinator steps its own AdamW.

Decoupled weight decay, Loshchilov & Hutter (1711.05101). The moments lie beside the base that they
belong to, so a restarted coordinator steps on as if nothing had happened.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.coordinator.merge import Merging
from partsum.shared.config import TrainingConfig
from partsum.shared.schedule import rate
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors


def moments_path(folder: Path, round: int) -> Path:
    """Where the moments lie with which a round's step begins."""
    return folder / f"moments-{round:05d}.safetensors"


class GradientStep:
    """One step of AdamW on a base, from the merged gradients of a round.

    An update holds gradients in place of the model's parameters; its buffers are values.
    """

    def __init__(
        self, training: TrainingConfig, model: nn.Module, folder: Path, progress: float
    ) -> None:
        self._training = training
        parameters = model.named_parameters(remove_duplicate=False)
        self._trained = {name: parameter.requires_grad for name, parameter in parameters}
        self._folder = folder
        self._rate = training.learning_rate * rate(progress, training.warmup)

    def apply(self, old: Path, merger: Merging, out: Path, round: int) -> str:
        """Write the stepped base, and its moments; returns the base's digest.

        ``merger`` merges the round's gradients, and the values of buffers. Elements that no part
        holds keep their value and their moments.
        """
        before = moments_path(self._folder, round)
        moments = load_tensors(before) if before.exists() else {}
        stepped: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        with TensorFile(old) as base:
            for name in base.tensors:
                value = base.read(name)
                if name not in self._trained:
                    stepped[name] = merger.merge(name, value)
                    continue
                if not self._trained[name]:
                    stepped[name] = value
                    continue
                # What no part covers stays nan, which tells it from a gradient of zero.
                gradient = merger.merge(name, torch.full_like(value, torch.nan))
                stepped[name] = self._step(name, value, gradient, moments, kept, round)
        save_tensors(moments_path(self._folder, round + 1), kept)
        return save_tensors(out, stepped, {"partsum.base": str(round + 1)})

    def _step(
        self,
        name: str,
        value: Tensor,
        gradient: Tensor,
        moments: dict[str, Tensor],
        kept: dict[str, Tensor],
        round: int,
    ) -> Tensor:
        beta1, beta2 = self._training.betas
        covered = ~torch.isnan(gradient)
        gradient = gradient.nan_to_num(0.0)
        first = moments.get(f"{name}.first", torch.zeros_like(value))
        second = moments.get(f"{name}.second", torch.zeros_like(value))
        first = torch.where(covered, beta1 * first + (1 - beta1) * gradient, first)
        second = torch.where(covered, beta2 * second + (1 - beta2) * gradient**2, second)
        kept[f"{name}.first"], kept[f"{name}.second"] = first, second
        mean = first / (1 - beta1 ** (round + 1))
        spread = (second / (1 - beta2 ** (round + 1))).sqrt()
        decay = self._training.weight_decay if value.dim() > 1 else 0.0
        new = value * (1 - self._rate * decay) - self._rate * mean / (spread + 1e-8)
        return torch.where(covered, new, value)
