"""Attention whose layers share one relative position bias, as T5's: one group for a stack."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from partsum.shared.width.axis import Axis
from partsum.shared.width.groups import WidthGroup
from partsum.shared.width.layers import inputs_of, joined, linears, outputs_of
from partsum.shared.width.registry import register
from partsum.shared.width.rules.attention import count_heads, heads_of, project

_NAMES = ("q", "k", "v", "o")


def _attentions(stack: nn.Module) -> list[tuple[str, nn.Module]]:
    """The attention layers below, of a module that holds blocks as ``block``; else none."""
    if not isinstance(getattr(stack, "block", None), nn.ModuleList):
        return []
    return [(path, module) for path, module in stack.named_modules() if linears(module, _NAMES)]


def _shares_a_bias(stack: nn.Module) -> bool:
    return any(hasattr(module, "relative_attention_bias") for _, module in _attentions(stack))


@register(_shares_a_bias)
def stack_heads(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup]:
    """A stack's heads, cut alike in every layer: the first layer's bias is added in all of them.

    Layers that read another stack have no bias, but hand one of zeros on in the same way.
    """
    attentions = _attentions(module)
    kinds = {"heads": "SelfAttention", "cross_heads": "EncDecAttention"}
    for name, kind in kinds.items():
        layers = [(p, m) for p, m in attentions if p.endswith(kind)]
        if layers:
            yield from _coupled(model, path, joined(path, name), layers)


def _coupled(
    model: nn.Module, path: str, name: str, layers: list[tuple[str, nn.Module]]
) -> Iterator[WidthGroup]:
    axis = None
    for inner, module in layers:
        queries, keys, values, out = (module.get_submodule(part) for part in _NAMES)
        sizes = (outputs_of(queries), outputs_of(keys), outputs_of(values), inputs_of(out))
        heads = heads_of(module, *sizes)
        if heads is None:
            return
        axis = axis or Axis(model, name, heads.units, "hidden")
        own = joined(path, inner)
        count_heads(project(axis, own, _NAMES, heads), own, module, heads)
        if hasattr(module, "relative_attention_bias"):
            axis.made_by(joined(own, "relative_attention_bias"))
    if axis is not None:
        yield axis.done()
