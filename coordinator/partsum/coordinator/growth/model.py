"""A trained model of the same task that is smaller than the base, as its file tells it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.coordinator.base import Base
from partsum.shared.errors import ConfigError, TaskError, WidthError
from partsum.shared.part import Part, cut_module
from partsum.shared.tensors import TensorFile
from partsum.shared.width import WidthGroup

_NAMED = 3  # tensors that an error lists


class TrainedModel:
    """An open file of trained weights, read as if its scales (see Widths) were the base's.

    ``part`` keeps as many units of each of the base's groups as the model has, the first ones; cut
    to it, the base has the model's shapes. A layer's weight takes what its scale gives up.
    """

    def __init__(self, file: TensorFile, part: Part, base: Base, scale: float) -> None:
        self.name = file.path.name
        self.part = part
        self._file = file
        self._scale = scale
        self._scales = set(base.widths.scales)
        self._factors = _factors(file, base, scale)

    def read(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self._folded(name, self._file.read(name))

    def read_rows(self, name: str, first: int, last: int, lead: int = 1) -> Tensor:
        """Rows of it, which its first ``lead`` dimensions count."""
        return self._folded(name, self._file.read_rows(name, first, last, lead))

    def tensors(self) -> dict[str, Tensor]:
        """All of it, in memory."""
        return {name: self.read(name) for name in self._file.tensors}

    def _folded(self, name: str, value: Tensor) -> Tensor:
        if name in self._scales:
            return torch.full_like(value, self._scale)
        return value * self._factors[name] if name in self._factors else value


def open_model(path: Path, base: Base, task: str, scale: float, files: ExitStack) -> TrainedModel:
    """Open a file and see how wide its model is; it stays open as long as ``files``.

    Args:
        path: safetensors, such as a run's ``final.safetensors``.
        base: of which the model is a narrower one.
        task: the run's task; a file that names another one is refused.
        scale: what the base's scales are to be.
        files: closes the file.

    Raises:
        ConfigError: the file cannot be read.
        WireError: it is damaged, or no safetensors file.
        TaskError: it was trained on another task, or with layer norms of its own.
        WidthError: its tensors are not those of a narrower base.
    """
    try:
        file = files.enter_context(TensorFile(path))
    except OSError as error:
        raise ConfigError(f"start.models: cannot read {path}: {error.strerror}") from error
    trained = file.metadata.get("task", task)
    if trained != task:
        raise TaskError(
            f"start.models: {path} was trained on the task {trained}, but this run's is {task}"
        )
    if file.metadata.get("norm_parts"):
        raise TaskError(
            f'start.models: {path} was trained with handoff.norms = "grouped", so it computes the '
            "right thing only with layer norms over slices, which a grown base does not have; "
            'train the smaller models with norms = "plain"'
        )
    shapes = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
    return TrainedModel(file, fit(shapes, base, str(path)), base, scale)


def fit(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], base: Base, what: str) -> Part:
    """The first units of each of the base's groups, as many as a model of these shapes has.

    ``what`` names the model in errors. Raises WidthError where the shapes are not a narrower
    base's.
    """
    whole = base.shape.state_dict()
    _check_names(set(shapes), set(whole), what)
    units = {
        group.name: tuple(range(_count(group, shapes, whole, what))) for group in base.widths.groups
    }
    part = Part(units)
    for name, tensor in cut_module(base.shape, base.widths, part).state_dict().items():
        dtype, shape = shapes[name]
        if shape != tuple(tensor.shape):
            raise WidthError(
                f"{what}: tensor {name!r} has the shape {list(shape)}; beside this model's other "
                f"tensors it would have to be {list(tensor.shape)} ({list(whole[name].shape)} in "
                "the base)"
            )
        if dtype != tensor.dtype:
            raise WidthError(
                f"{what}: tensor {name!r} is {dtype}, but the base's is {tensor.dtype}; convert it"
            )
    return part


def _check_names(found: set[str], wanted: set[str], what: str) -> None:
    for names, how in ((wanted - found, "lacks"), (found - wanted, "has, beside the base's,")):
        if names:
            listed = ", ".join(map(repr, sorted(names)[:_NAMED]))
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise WidthError(
                f"{what} is no narrower model of this run's task: it {how} {listed}{more}"
            )


def _count(
    group: WidthGroup,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    whole: Mapping[str, Tensor],
    what: str,
) -> int:
    """How many units of a group a model has, by the first tensor that holds them."""
    slot, one = group.slots[0], torch.zeros(1, dtype=torch.int64)
    beside = (s for s in group.slots if (s.tensor, s.dim) == (slot.tensor, slot.dim))
    own = sum(len(s.index(one)) for s in beside)
    shape = shapes[slot.tensor][1]
    shared = whole[slot.tensor].shape[slot.dim] - group.units * own  # what no unit owns
    size = (shape[slot.dim] if slot.dim < len(shape) else 0) - shared
    if size < own or size % own:
        raise WidthError(
            f"{what}: tensor {slot.tensor!r} has the shape {list(shape)}; its dimension {slot.dim} "
            f"has to be a multiple of {own}, which is what one unit of width group {group.name!r} "
            "takes in the base (a head's size, for one, must be the base's)"
        )
    if size // own > group.units:
        raise WidthError(
            f"{what} is wider than the base: tensor {slot.tensor!r} has the shape {list(shape)}, "
            f"and {list(whole[slot.tensor].shape)} in the base"
        )
    return size // own


def _factors(file: TensorFile, base: Base, scale: float) -> dict[str, float]:
    """What weights are multiplied by where the file's scales are not the base's."""
    factors = {}
    for name in base.widths.scales:
        factor = float(file.read(name)) / scale
        if factor == 1:
            continue
        path = name.rpartition(".")[0]
        module: nn.Module = base.shape.get_submodule(path)
        if "weight" not in module._parameters:  # a layer of experts
            raise WidthError(
                f"{file.path}: {name!r} is {float(file.read(name)):g}, but {scale:g} in the base, "
                f"and {path} has no weight that could make up for it"
            )
        factors[f"{path}.weight"] = factor
    return factors
