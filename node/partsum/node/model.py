"""The part as a module: cut from the task's model, fresh from a seed or from given weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.shared.errors import WidthError, WireError
from partsum.shared.gates import check_gates, find_structure
from partsum.shared.messages import Part
from partsum.shared.moments import is_moment
from partsum.shared.part import cut_module, emptied, fresh_module, index_map
from partsum.shared.tensors import TensorFile
from partsum.shared.width import Widths


@dataclass(frozen=True)
class PartModel:
    """A part's module, and how narrow its tensors are.

    ``shares`` names the tensors that are cut on two or more dimensions, with the geometric mean of
    the kept shares of those dimensions, in (0, 1]. ``whole`` is the base's structure.
    """

    module: nn.Module
    shares: dict[str, float]
    whole: Widths


def build_part(
    make_model: Callable[[], nn.Module], part: Part, seed: int, start: Path | None
) -> PartModel:
    """The part's module on the CPU, with the weights of ``start`` or fresh ones from ``seed``.

    The base costs no memory wherever that is possible: it is built on the meta device, unless a
    module keeps tensors that only building it for real can fill.

    Raises:
        WireError: the part is of another model, or ``start`` does not hold its tensors.
    """
    base = _on_meta(make_model)
    if base is not None:
        widths = find_structure(base)
        _check_fits(part, base, widths)
        narrow = cut_module(base, widths, part)
        if start is not None and _is_all_state(narrow):
            narrow = emptied(narrow, "cpu")
        elif _can_fill(narrow):
            narrow = fresh_module(emptied(narrow, "cpu"), seed)
        else:
            base = None
    if base is None:
        base = _for_real(make_model, seed)
        widths = find_structure(base)
        _check_fits(part, base, widths)
        narrow = fresh_module(cut_module(base, widths, part), seed)
    if start is not None:
        _load(narrow, start)
    return PartModel(narrow, _shares(base, widths, part), widths)


def base_of(make_model: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, Widths]:
    """The base, on the meta device where it can be built there, and its structure."""
    base = _on_meta(make_model)
    if base is None:
        base = _for_real(make_model, seed)
    return base, find_structure(base)


def _check_fits(part: Part, base: nn.Module, widths: Widths) -> None:
    """Nothing else would notice: on the meta device no index is out of range."""
    known = {group.name: group.units for group in widths.groups}
    for name, units in part.units.items():
        if units[-1] >= known.get(name, 0):
            raise WireError(
                f"the part keeps unit {units[-1]} of width group {name!r}, of which this model has "
                f"{known.get(name, 0)}. Coordinator and node must run the same task"
            )
    try:
        check_gates(base, widths, part.off)
    except WidthError as error:
        raise WireError(f"{error}. Coordinator and node must run the same task") from error


def _on_meta(make_model: Callable[[], nn.Module]) -> nn.Module | None:
    """The base without memory, or None where building it needs values."""
    try:
        with torch.device("meta"):
            return make_model()
    except (NotImplementedError, RuntimeError):
        return None


def _for_real(make_model: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return make_model()


def _can_fill(module: nn.Module) -> bool:
    """Whether `fresh_module` fills all tensors that the module and those in it keep.

    Hugging Face's ``init_weights`` fills everything below: their own loading builds on the meta
    device too, and has nothing else to fill what a checkpoint does not hold.
    """
    if any(isinstance(v, Tensor) for m in module.modules() for v in vars(m).values()):
        return False  # a tensor of neither kind: nothing but __init__ can fill it
    if hasattr(module, "init_weights") and hasattr(module, "_init_weights"):
        return True
    own = [*module._parameters.values(), *module._buffers.values()]
    resets = hasattr(module, "reset_parameters") or not any(t is not None for t in own)
    return resets and all(map(_can_fill, module.children()))


def _is_all_state(module: nn.Module) -> bool:
    """Whether the state dict holds every tensor of the module."""
    return not any(
        m._non_persistent_buffers_set or any(isinstance(v, Tensor) for v in vars(m).values())
        for m in module.modules()
    )


def _load(module: nn.Module, start: Path) -> None:
    try:
        with TensorFile(start) as file:
            weights = {name: file.read(name) for name in file.tensors if not is_moment(name)}
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise WireError(
            f"the weights to start from do not fit this part: {error}. Coordinator and node must "
            "run the same task"
        ) from error


def _shares(base: nn.Module, widths: Widths, part: Part) -> dict[str, float]:
    shapes = {name: t.shape for name, t in base.named_parameters(remove_duplicate=False)}
    shares: dict[str, float] = {}
    for name, dims in index_map(widths, part).items():
        if name in shapes and len(dims) >= 2:
            kept = math.prod(len(index) / shapes[name][dim] for dim, index in dims.items())
            shares[name] = kept ** (1 / len(dims))
    return shares
