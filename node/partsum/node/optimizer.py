"""AdamW for a part: learning rates by width, and moments that outlive the process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.node.model import PartModel
from partsum.shared.messages import Part, TrainSettings
from partsum.shared.moments import MOMENTS, is_moment, moment_shapes, part_digest
from partsum.shared.tensors import TensorFile, save_tensors


def make_optimizer(
    model: PartModel, settings: TrainSettings, device: torch.device
) -> torch.optim.AdamW:
    """AdamW whose groups carry ``peak``, their highest learning rate.

    A tensor that is cut on two or more dimensions to a share f of each (their geometric mean)
    trains at learning_rate / f ** width_lr_power, any other at learning_rate. Weight decay is for
    tensors of two or more dimensions only.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad:
            share = model.shares.get(name, 1.0)
            peak = settings.learning_rate / share**settings.width_lr_power
            decay = settings.weight_decay if parameter.dim() >= 2 else 0.0
            groups.setdefault((peak, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
            for (peak, decay), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=device.type in {"cpu", "cuda"},
    )


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Let every group train at ``factor`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def save_moments(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, part: Part
) -> None:
    """Write `moments` to a file of their own, atomically; a power cut after this does no harm."""
    tensors = moments(module, optimizer)
    save_tensors(path, tensors, {"part": part_digest(part)})


def moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts of all parameters, named as in `moment_shapes`."""
    found = {name: torch.zeros(s, dtype=d) for name, (d, s) in moment_shapes(module).items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}/{key}"] = value
    return found


def load_moments(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, part: Part
) -> bool:
    """Let the optimizer go on where `save_moments` left it; the module is on its device already.

    Returns False, and changes nothing, where the file belongs to another part or other tensors.
    """
    parameters = {
        f"{name}/{key}": (parameter, key)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        for key in MOMENTS
    }
    with TensorFile(path) as file:
        found = [name for name in file.tensors if is_moment(name)]
        if file.metadata.get("part") != part_digest(part) or set(found) - set(parameters):
            return False
        for name in found:
            parameter, key = parameters[name]
            optimizer.state[parameter][key] = file.read(name).to(parameter.device)
    return True
