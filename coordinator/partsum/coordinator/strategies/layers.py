"""How far each layer goes along a round's change: task arithmetic's coefficient, LiNeS's depth.

Task arithmetic (Ilharco et al. 2023, 2212.04089) adds lambda times the sum of all changes to the
base. The merge is their mean, so a step of ``rate`` along it has lambda = rate / K for K updates
that count alike. LiNeS (Wang et al. 2024, 2410.17146) scales a change linearly with depth, since
shallow layers hold what all tasks share and deep ones what is their own: layer l of L goes
alpha + beta (l - 1) / (L - 1) times as far. Here alpha is the first layer's factor, and
alpha + beta the last one's.
"""

from __future__ import annotations

from torch import nn

from partsum.shared.config import OuterConfig
from partsum.shared.errors import WidthError


def step_factors(outer: OuterConfig, model: nn.Module) -> dict[str, float]:
    """By name of each trained parameter, how many times as far it goes as it would by itself.

    Of an optimizer the rate is in its own step already; the average has none.

    Raises:
        WidthError: scaling by layer is asked for, and the model has but one layer.
    """
    rate = outer.learning_rate if outer.optimizer == "average" and outer.learning_rate else 1.0
    trained = [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    if outer.layer_scaling is None:
        return dict.fromkeys(trained, rate)
    depths = layer_depths(model)
    deepest = max(depths.values())
    if deepest == 1:
        raise WidthError(
            f"outer.layer_scaling: {type(model).__name__} has one layer only, so there is no depth "
            "to scale by. A layer is a child with trained parameters of an nn.ModuleList or "
            "nn.Sequential (docs/optimizers.md); remove the key, or build the model of such"
        )
    first, last = outer.layer_scaling
    step = (last - first) / (deepest - 1)
    return {name: rate * (first + step * (depths[name] - 1)) for name in trained}


def layer_depths(model: nn.Module) -> dict[str, int]:
    """By name of each parameter, its layer: 1 for the first, in the order of the model's modules.

    A layer is a child, with trained parameters, of an ``nn.ModuleList`` or ``nn.Sequential`` that
    lies in no other layer: a block of a transformer, a layer of a plain chain. What lies in none
    belongs to the layer before it (a last norm, a head), or to the first one (an embedding, a
    stem). A parameter that is used in two places has its first one's depth under both names.
    """
    layers = _layers(model)
    depths: dict[str, int] = {}
    known: dict[int, int] = {}
    depth = 0
    seen: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        layer = _layer_of(path, layers)
        if layer is not None and layer not in seen:
            seen.add(layer)
            depth += 1
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            depths[full] = known.setdefault(id(parameter), max(1, depth))
    return depths


def _layers(model: nn.Module) -> set[str]:
    """The paths of all layers."""
    found: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.ModuleList | nn.Sequential) or _layer_of(path, found):
            continue
        for name, child in module.named_children():
            if any(parameter.requires_grad for parameter in child.parameters()):
                found.add(f"{path}.{name}" if path else name)
    return found


def _layer_of(path: str, layers: set[str]) -> str | None:
    """The layer that a module's path lies in, or is."""
    names = path.split(".")
    paths = (".".join(names[: count + 1]) for count in range(len(names)))
    return next((path for path in paths if path in layers), None)
