"""What a layer of structural experts must keep whole."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from partsum.shared.structural.layer import StructuralMoE
from partsum.shared.width import LeftOut, register
from partsum.shared.width.layers import joined

REASON = "structural experts are made of all of their layer, and their router reads all of it"


@register(StructuralMoE)
def whole(model: nn.Module, path: str, module: nn.Module) -> Iterator[LeftOut]:
    """All tensors of the layer: its slices are of the whole input, and a part's would be others."""
    for name, _ in module.named_parameters():
        yield LeftOut(joined(path, name), f"{type(module).__name__}: {REASON}")
