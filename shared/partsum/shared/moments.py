"""AdamW's moments as tensors that travel in an update's file, beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
import xxhash
from torch import nn

from partsum.shared.messages import Part

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def is_moment(name: str) -> bool:
    """Whether a tensor's name is that of a moment: PARAMETER/KEY."""
    return name.rpartition("/")[2] in MOMENTS and "/" in name


def moment_shapes(module: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Names, dtypes and shapes of the moments of a module's parameters."""
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            shapes[f"{name}/step"] = (torch.float32, ())
            for key in MOMENTS[1:]:
                shapes[f"{name}/{key}"] = (parameter.dtype, tuple(parameter.shape))
    return shapes


def part_digest(part: Part) -> str:
    """A name for the part's units, and the gates that are off in it."""
    units: Mapping[str, object] = {name: list(kept) for name, kept in part.units.items()}
    said: object = [units, part.off] if part.off else units
    return xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())
