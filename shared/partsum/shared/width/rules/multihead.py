"""torch's own attention: a head is a unit."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from partsum.shared.width.axis import Axis
from partsum.shared.width.groups import LeftOut, WidthGroup
from partsum.shared.width.layers import joined
from partsum.shared.width.multihead import SlicedAttention
from partsum.shared.width.registry import register


@register(lambda module: isinstance(module, nn.MultiheadAttention | SlicedAttention))
def multihead(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup | LeftOut]:
    """The heads of an ``nn.MultiheadAttention``; a part of it is a `SlicedAttention`."""
    assert isinstance(module, nn.MultiheadAttention | SlicedAttention)
    if isinstance(module, nn.MultiheadAttention) and (
        module.bias_k is not None or module.add_zero_attn
    ):
        for name, _ in module.named_parameters():
            yield LeftOut(joined(path, name), "nn.MultiheadAttention with a key of no position")
        return
    width, size = module.num_heads * module.head_dim, module.head_dim
    axis = Axis(model, joined(path, "heads"), module.num_heads, "hidden")
    thirds = (0, width, 2 * width)
    for name, offsets in (
        ("in_proj_weight", thirds),
        ("in_proj_bias", thirds),
        ("q_proj_weight", (0,)),
        ("k_proj_weight", (0,)),
        ("v_proj_weight", (0,)),
    ):
        if getattr(module, name) is not None:
            axis.held_by(joined(path, name), 0, size, offsets)
    axis.read_by(joined(path, "out_proj"), size)
    yield axis.counted_by(path, "num_heads").done()
