"""A transformer's MLP whose experts are the structures of its own first layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partsum.shared.structural.mixture import Blend, mix, sorted_rows, unsorted_rows
from partsum.shared.structural.routers import Router
from partsum.shared.width.layers import is_hugging_face_conv1d, is_linear

Act = Callable[[Tensor], Tensor]


def structural_mlp(
    inputs: Tensor,
    makers: Sequence[nn.Module],
    act: Act,
    down: nn.Module,
    router: Router,
    recompute: bool = False,
) -> Tensor:
    """An MLP by what ``router`` chooses for each token, (..., d) -> (..., d).

    All experts share the layers' weights: each is one Parameter, with one gradient and one
    optimizer state. One down projection serves all experts of a token, so its bias counts once.

    Args:
        inputs: floating-point (..., d).
        makers: the layer that makes the hidden units; or the gate and the layer that it gates, of
            which ``act(gate) * other`` is then the non-linearity: a segment of slices is a small
            gated layer of its own, which sees nothing of the other segments.
        act: element by element.
        down: (..., hidden) -> (..., d).
        router: which structures.
        recompute: see `mix`.
    """
    tokens = inputs.flatten(0, -2)
    blend = Blend.of(router(tokens), router.structures)
    mixed = _mixed(sorted_rows(tokens, blend), makers, act, blend, recompute)
    output = unsorted_rows(down(mixed), blend)
    return output.view(*inputs.shape[:-1], output.shape[-1])


def _mixed(
    tokens: Tensor, makers: Sequence[nn.Module], act: Act, blend: Blend, recompute: bool
) -> Tensor:
    weight = torch.cat([_weight(maker) for maker in makers])
    biases = [bias for maker in makers if isinstance(bias := getattr(maker, "bias", None), Tensor)]
    bias = torch.cat(biases) if biases else None
    kind = tokens.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        tokens, weight = tokens.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if len(makers) > 1:
        act = _gated(act)
    with torch.autocast(kind, enabled=False):
        return mix(tokens, weight, bias, blend, act, recompute)


def _weight(maker: nn.Module) -> Tensor:
    """(outputs, inputs), whichever way round the layer keeps it."""
    weight = maker.weight
    assert isinstance(weight, Tensor)
    return weight.t() if is_hugging_face_conv1d(maker) else weight


def _gated(act: Act) -> Act:
    def gated(both: Tensor) -> Tensor:
        gate, other = both.chunk(2, dim=-1)
        return act(gate) * other

    return gated


@dataclass(frozen=True)
class Layout:
    """Where an MLP module has its layers: their names, and what may be beside them."""

    makers: tuple[str, ...]
    down: str
    act: tuple[str, ...]
    after: tuple[str, ...] = ()


LAYOUTS = (
    Layout(("c_fc",), "c_proj", ("act",), ("dropout",)),  # GPT-2
    Layout(("gate_proj", "up_proj"), "down_proj", ("act_fn",)),  # Llama, DeepSeek-V2, Qwen
    Layout(("up_proj",), "down_proj", ("act_fn",)),
    Layout(("fc1",), "fc2", ("activation_fn", "act"), ("dropout",)),  # CLIP, Phi, ViTs
)


def layout_of(module: nn.Module) -> Layout | None:
    """How an MLP module is laid out; None where it is not one, or has more to it than we know."""
    names = {name for name, _ in module.named_children()}
    for layout in LAYOUTS:
        layers = (*layout.makers, layout.down)
        known = {*layers, *layout.act, *layout.after}
        has_act = any(callable(getattr(module, name, None)) for name in layout.act)
        if has_act and names <= known and set(layers) <= names:
            return layout if all(is_linear(module.get_submodule(n)) for n in layers) else None
    return None


class StructuralMoE(nn.Module):
    """Stands in for an MLP module, with its layers under their own names, and ``router`` beside.

    (..., d) -> (..., d). With all gates on it is the MLP itself. ``recompute``: see `mix`.

    Raises:
        ValueError: the module is not an MLP of a layout that is known.
    """

    def __init__(self, mlp: nn.Module, router: Router, recompute: bool = False) -> None:
        super().__init__()
        layout = layout_of(mlp)
        if layout is None:
            names = ", ".join(name for name, _ in mlp.named_children())
            raise ValueError(
                f"{type(mlp).__name__} (of {names}) is not an MLP of a known layout; they are "
                f"{'; '.join(', '.join((*known.makers, known.down)) for known in LAYOUTS)}"
            )
        self.layout, self.recompute = layout, recompute
        for name, child in mlp.named_children():
            self.add_module(name, child)
        act = next(name for name in layout.act if hasattr(mlp, name))
        if not hasattr(self, act):
            setattr(self, act, getattr(mlp, act))  # a function
        self._act = act
        self.router = router

    def forward(self, inputs: Tensor) -> Tensor:
        """The MLP of each token's experts."""
        makers = [self.get_submodule(name) for name in self.layout.makers]
        down = self.get_submodule(self.layout.down)
        act = getattr(self, self._act)
        output = structural_mlp(inputs, makers, act, down, self.router, self.recompute)
        for name in self.layout.after:
            if name in self._modules:
                output = self.get_submodule(name)(output)
        return output
