"""Attention: the unit is a key-value head with all the query heads that read it.

Found by the names that libraries give to the projections. A head's size is what the module says it
is, and stays; what counts heads is mended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from partsum.shared.width.axis import Axis
from partsum.shared.width.groups import LeftOut, WidthGroup, count_of
from partsum.shared.width.layers import (
    child,
    inputs_of,
    is_norm,
    joined,
    linears,
    outputs_of,
    weight_of,
)
from partsum.shared.width.registry import register

SEPARATE = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Qwen, Gemma
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, BART, CLIP
    ("q", "k", "v", "o"),  # T5
    ("self.query", "self.key", "self.value", "output.dense"),  # BERT
    ("attention.query", "attention.key", "attention.value", "output.dense"),  # ViT
    ("q_lin", "k_lin", "v_lin", "out_lin"),  # DistilBERT
)
FUSED = (
    ("c_attn", "c_proj"),  # GPT-2
    ("qkv_proj", "o_proj"),  # Phi-3
    ("qkv", "proj"),  # the usual ViT
)
_HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim")
_HEAD_COUNTS = ("num_heads", "n_heads", "num_attention_heads")


@dataclass(frozen=True)
class Heads:
    """How an attention layer's heads lie in its projections; all sizes are of one unit."""

    units: int  # key-value heads
    queries: int  # numbers: all query heads of one key-value head
    keys: int
    values: int
    outputs: int  # what the output projection reads
    query_heads: int


@register(lambda module: any(linears(module, names) for names in SEPARATE))
def separate_heads(
    model: nn.Module, path: str, module: nn.Module
) -> Iterator[WidthGroup | LeftOut]:
    """Heads whose queries, keys and values have a projection each."""
    names, found = next((n, f) for n in SEPARATE if (f := linears(module, n)))
    queries, keys, values = map(outputs_of, found[:3])
    heads = heads_of(module, queries, keys, values, inputs_of(found[3]))
    yield from _left_out(path, module, names, heads, queries)
    if heads is None or _norms_all_heads(module, queries, heads):
        return
    axis = Axis(model, joined(path, "heads"), heads.units, "hidden")
    project(axis, path, names, heads)
    yield count_heads(axis, path, module, heads).done()


@register(lambda module: any(linears(module, names) for names in FUSED))
def fused_heads(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup | LeftOut]:
    """Heads of one projection: all queries, then all keys, then all values."""
    names, found = next((n, f) for n in FUSED if (f := linears(module, n)))
    made, queries = outputs_of(found[0]), inputs_of(found[1])
    keys, odd = divmod(made - queries, 2)
    heads = heads_of(module, queries, keys, keys, queries) if keys > 0 and not odd else None
    yield from _left_out(path, module, names, heads, queries)
    if heads is None or _norms_all_heads(module, queries, heads):
        return
    axis = Axis(model, joined(path, "heads"), heads.units, "hidden")
    fused, out = (joined(path, name) for name in names)
    if heads.queries == heads.keys:
        axis.made_by(fused, heads.keys, (0, queries, queries + keys))
    else:
        axis.made_by(fused, heads.queries)
        axis.made_by(fused, heads.keys, (queries, queries + keys))
    axis.read_by(out, heads.outputs)
    count_heads(axis, path, module, heads)
    if count_of(module, "config.num_attention_heads") == heads.units * heads.query_heads:
        axis.counted_by(path, "config.num_attention_heads", heads.query_heads)
    yield axis.done()


def heads_of(module: nn.Module, queries: int, keys: int, values: int, outputs: int) -> Heads | None:
    """The heads' sizes, by what the module says of them; None where it does not, or they differ."""
    size = _head_size(module, queries)
    if size is None or keys % size or queries % keys:
        return None
    units = keys // size
    if values % units or outputs % units or queries // keys * values != outputs:
        return None
    return Heads(units, queries // units, size, values // units, outputs // units, queries // keys)


def _head_size(module: nn.Module, queries: int) -> int | None:
    holders = [module, *module.children()]
    for name in _HEAD_SIZES:
        for holder in holders:
            if isinstance(size := getattr(holder, name, None), int) and size > 0:
                return size
    for name in _HEAD_COUNTS:
        for holder in holders:
            if isinstance(count := getattr(holder, name, None), int) and count > 0:
                return queries // count if queries % count == 0 else None
    return None


def project(axis: Axis, path: str, names: tuple[str, ...], heads: Heads) -> Axis:
    """Let the axis run through separate projections."""
    queries, keys, values, out = (joined(path, name) for name in names)
    axis.made_by(queries, heads.queries).made_by(keys, heads.keys).made_by(values, heads.values)
    return axis.read_by(out, heads.outputs)


def count_heads(axis: Axis, path: str, module: nn.Module, heads: Heads) -> Axis:
    """Mend what counts heads or their numbers, and cut what the module holds one of a head."""
    per_unit = dict.fromkeys(_HEAD_COUNTS, heads.query_heads)
    per_unit |= {"num_key_value_heads": 1, "num_kv_heads": 1}
    per_unit |= dict.fromkeys(("all_head_size", "inner_dim", "split_size"), heads.queries)
    for name in ("", *(name for name, _ in module.named_children())):
        holder = module.get_submodule(name)
        for attribute, amount in per_unit.items():
            if getattr(holder, attribute, None) == amount * heads.units:
                axis.counted_by(joined(path, name).rstrip("."), attribute, amount)
    for name, parameter in module.named_parameters(recurse=False):
        if tuple(parameter.shape) == (heads.units * heads.query_heads,):  # attention sinks
            axis.held_by(joined(path, name), 0, heads.query_heads)
    return axis


def _norms_all_heads(module: nn.Module, queries: int, heads: Heads) -> bool:
    """Whether a norm runs over all heads at once, as OLMo 2's does: then none can be left out."""
    sizes = (heads.units * heads.keys, queries)
    norms = (weight_of(inner) for inner in module.children() if is_norm(inner))
    return heads.units > 1 and any(weight.numel() in sizes for weight in norms)


def _left_out(
    path: str, module: nn.Module, names: tuple[str, ...], heads: Heads | None, queries: int
) -> Iterator[LeftOut]:
    """Why the heads stay whole, if they do."""
    kind = type(module).__name__
    if heads is None:
        reason = f"{kind} does not say how its projections are made of heads"
    elif _norms_all_heads(module, queries, heads):
        reason = f"{kind} norms its queries or keys over all heads at once"
    else:
        return
    for name in names:
        for tensor in ("weight", "bias"):
            if isinstance(getattr(child(module, name), tensor, None), Tensor):
                yield LeftOut(joined(path, f"{name}.{tensor}"), reason)
