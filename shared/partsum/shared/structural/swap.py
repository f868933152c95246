"""Structural experts in place of a model's MLPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

from torch import nn

from partsum.shared.errors import PartsumError
from partsum.shared.structural.layer import LAYOUTS, StructuralMoE, layout_of
from partsum.shared.structural.routers import (
    Choice,
    ExpertChoiceRouter,
    Router,
    TopKRouter,
)
from partsum.shared.structural.structures import Structures
from partsum.shared.width.layers import inputs_of

Make = Callable[[int], Router]
"""(inputs of an MLP) -> what chooses its structures."""


@runtime_checkable
class HasMlp(Protocol):
    """A block whose ``forward`` has an MLP among other things, and asks ``router`` if it is set."""

    router: nn.Module | None

    def mlp_inputs(self) -> int:
        """How many numbers the MLP reads."""
        ...


def with_structural_experts(
    model: nn.Module,
    experts: int = 64,
    top_k: int = 1,
    balance: float = 0.01,
    z: float = 0.0,
    choice: Choice = "tokens",
    capacity: float = 1.0,
    paths: str = "*",
    recompute: bool = False,
) -> nn.Module:
    """Let a model's MLPs be mixtures of their own structures; in place, returned.

    The dense layers' parameters keep their names, so a dense checkpoint loads with
    ``strict=False``; each MLP gets ``router.weight`` (experts, width) beside. Call it in the task's
    ``model()``. Experts that a model has already (DeepSeek-V2's routed ones) are left as they are;
    its dense and shared MLPs are swapped.

    Args:
        model: any with MLPs of a layout in `LAYOUTS`, or partsum's own transformers.
        experts: how many structures, 2 ** gates.
        top_k: with ``choice="tokens"``: experts of each token.
        balance: weight of the load-balancing loss (0.01 is Switch's; not studied here).
        z: weight of the router's z-loss.
        choice: tokens choose their experts, or experts their tokens.
        capacity: with ``choice="experts"``: mean number of experts of a token.
        paths: which MLPs, by their path in the model, with ``*`` and ``?``.
        recompute: less memory, a tenth slower; see `mixture.mix`.

    Raises:
        ValueError: a number that does not fit.
        PartsumError: there is no MLP that it could stand in for.
    """
    structures = Structures.of(experts)

    def make(width: int) -> Router:
        if choice == "experts":
            return ExpertChoiceRouter(width, structures, capacity)
        return TopKRouter(width, structures, top_k, balance, z)

    return _swap(model, make, paths, recompute)


def _swap(model: nn.Module, make: Make, paths: str, recompute: bool) -> nn.Module:
    found = list(_mlps(model, paths))
    if not found:
        known = "; ".join(", ".join((*layout.makers, layout.down)) for layout in LAYOUTS)
        raise PartsumError(
            f"{type(model).__name__} has no MLP at {paths!r} that could have structural "
            f"experts; known are partsum's own transformers, and MLP modules of {known}"
        )
    for path, module in found:
        device = next(module.parameters()).device
        if isinstance(module, HasMlp):
            module.router = make(module.mlp_inputs()).to(device)
            continue
        layout = layout_of(module)
        assert layout is not None
        router = make(inputs_of(module.get_submodule(layout.makers[0])))
        swapped = StructuralMoE(module, router.to(device), recompute)
        swapped.train(module.training)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, swapped)
    return model


def _mlps(model: nn.Module, paths: str) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        is_mlp = isinstance(module, HasMlp) or (path and layout_of(module) is not None)
        if is_mlp and fnmatchcase(path, paths) and not isinstance(module, StructuralMoE):
            yield path, module
