"""Mixture-of-experts and latent attention: what of them can be cut."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from partsum.shared.width.axis import Axis
from partsum.shared.width.groups import LeftOut, WidthGroup
from partsum.shared.width.layers import child, inputs_of, joined, linears, outputs_of
from partsum.shared.width.registry import register

_LATENT = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj")


def _are_experts(module: nn.Module) -> bool:
    up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    if not isinstance(up, Tensor) or not isinstance(down, Tensor) or up.dim() != 3:
        return False
    return up.shape == (down.shape[0], 2 * down.shape[2], down.shape[1])


@register(_are_experts)
def expert_width(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup]:
    """The hidden width of all experts, fused (experts, 2 x hidden, width): each keeps a share.

    All experts are in every part, since the router chooses among all.
    """
    down = module.down_proj
    assert isinstance(down, Tensor)
    units = down.shape[2]
    axis = Axis(model, joined(path, "hidden"), units, "hidden")
    axis.held_by(joined(path, "gate_up_proj"), 1, 1, (0, units))
    axis.held_by(joined(path, "down_proj"), 2)
    for name in ("intermediate_dim", "intermediate_size"):
        if getattr(module, name, None) == units:
            axis.counted_by(path, name)
    yield axis.done()


@register(lambda module: "experts" in dict(module.named_children()))
def router(model: nn.Module, path: str, module: nn.Module) -> Iterator[LeftOut]:
    """What chooses among the experts stays whole."""
    for name in ("gate", "router", "shared_expert_gate"):
        for tensor, _ in (child(module, name) or nn.Module()).named_parameters():
            yield LeftOut(
                joined(path, f"{name}.{tensor}"),
                f"the router of {type(module).__name__} chooses experts by the whole stream",
            )


@register(lambda module: bool(linears(module, _LATENT)))
def latent_heads(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup | LeftOut]:
    """Multi-head latent attention (DeepSeek-V2, 2405.04434): a head is a unit, the latents stay."""
    size, nope, values, rope = (
        getattr(module, name, None)
        for name in ("qk_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim")
    )
    queries = next((q for q in ("q_b_proj", "q_proj") if linears(module, (q,))), None)
    for name, kept in module.named_parameters():
        if name.startswith(("q_a_", "kv_a_")) and isinstance(kept, Tensor):
            reason = "its latent is normed as a whole and read by all heads"
            if name.startswith("kv_a_proj"):
                reason += f", as is the rotary key in its last {rope} rows"
            yield LeftOut(joined(path, name), f"{type(module).__name__}: {reason}")
    if queries is None or not size or not nope or not values:
        return
    units = outputs_of(module.get_submodule(queries)) // size
    if inputs_of(module.get_submodule("o_proj")) != units * values:
        return
    axis = Axis(model, joined(path, "heads"), units, "hidden")
    axis.made_by(joined(path, queries), size).made_by(joined(path, "kv_b_proj"), nope + values)
    axis.read_by(joined(path, "o_proj"), values)
    if getattr(module, "num_heads", None) == units:
        axis.counted_by(path, "num_heads")
    yield axis.done()
