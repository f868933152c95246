"""The axis that connects the layers: found as what the hidden groups' layers read and write.

In mode block every part has a slice of it, and between the slices there is nothing. So whatever
reads or writes the stream must be cut with it; one layer that is not mixes the parts, and the
merged model would no longer be their mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from partsum.shared.width.axis import Axis
from partsum.shared.width.groups import LeftOut, WidthGroup, tied_names
from partsum.shared.width.layers import (
    inputs_of,
    is_linear,
    is_norm,
    joined,
    output_dim,
    outputs_of,
)
from partsum.shared.width.multihead import SlicedAttention

NAME = "stream"
_ATTENTION = nn.MultiheadAttention | SlicedAttention


@dataclass(frozen=True)
class Stream:
    """The stream's group and the readouts; or none, and why mode block cannot cut the model.

    ``tensors`` names those that the stream runs through, cut or not.
    """

    group: WidthGroup | None
    readouts: tuple[str, ...]
    tensors: frozenset[str]
    refusal: str = ""


def find_stream(
    model: nn.Module, hidden: Iterable[WidthGroup], left_out: Sequence[LeftOut]
) -> Stream:
    """The stream between these hidden groups."""
    claimed = {(slot.tensor, slot.dim) for group in hidden for slot in group.slots}
    sizes = Counter(_open_sizes(model, claimed))
    width = sizes.most_common(1)[0][0] if sizes else 0
    axis = Axis(model, NAME, width, "stream")
    heads = []
    for path, module in model.named_modules(remove_duplicate=False):
        for name, dim in _ends(module, path, width, claimed):
            axis.held_by(name, dim)
        if _is_readout(module, path, width, claimed):
            heads.append(path)
        if isinstance(module, nn.Transformer):
            axis.counted_by(path, "d_model")  # compared with the inputs
    tensors = frozenset(slot.tensor for slot in axis.slots)
    outputs = {name for path in heads for name in _same(model, f"{path}.bias")}
    whole = _whole(model, tensors | outputs | {name for name, _ in claimed})
    refusal = _refusal(sizes, heads, left_out, whole)
    if refusal:
        return Stream(None, (), tensors, refusal)
    return Stream(axis.done(), _readouts(model, heads[0]), tensors)


def _refusal(
    sizes: Mapping[int, int], heads: list[str], left_out: Sequence[LeftOut], whole: frozenset[str]
) -> str:
    """Why mode block cannot cut the model, in words; empty where it can."""
    if left_out:
        return f"{left_out[0].tensor} stays whole: {left_out[0].reason}"
    if len(sizes) != 1:
        read = " and ".join(map(str, sorted(sizes)))
        return f"its layers read and write axes of different widths ({read})"
    if not heads:
        return "no layer reads the stream out: the model's output is the stream itself"
    if len(heads) > 1:
        several = ", ".join(heads[:3]) + (f" and {len(heads) - 3} more" if heads[3:] else "")
        return f"several layers read the stream, of which no rule knows the output: {several}"
    if whole:
        return f"{min(whole)} stays whole, and every part reads and trains all of it"
    return ""


def _open_sizes(model: nn.Module, claimed: set[tuple[str, int]]) -> Iterator[int]:
    """The other dimension's size of every matrix that a hidden group cuts on one side."""
    for path, module in model.named_modules():
        if not is_linear(module) and not isinstance(module, _ATTENTION):
            continue
        for name, matrix in module.named_parameters(recurse=False):
            cut = [(joined(path, name), dim) in claimed for dim in range(matrix.dim())]
            if matrix.dim() == 2 and sum(cut) == 1:
                yield matrix.shape[cut.index(False)]


def _ends(
    module: nn.Module, path: str, width: int, claimed: set[tuple[str, int]]
) -> Iterator[tuple[str, int]]:
    """The dimensions of the module's own tensors that are the stream, and not yet claimed."""
    for name, tensor in _own(module):
        full = joined(path, name)
        for dim in _stream_dims(module, name, tensor):
            if tensor.shape[dim] == width and (full, dim) not in claimed:
                yield full, dim


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    if is_norm(module):
        yield from module.named_buffers(recurse=False)


def _stream_dims(module: nn.Module, name: str, tensor: Tensor) -> tuple[int, ...]:
    """Which dimensions of a tensor could be the stream, by the kind of module that holds it."""
    if tensor.dim() == 1:
        return (0,)
    if is_linear(module):
        return (0, 1)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return (0,)  # a stem: it makes patches or frames
    return (tensor.dim() - 1,)  # embeddings, positions, class tokens, fused projections


def _is_readout(module: nn.Module, path: str, width: int, claimed: set[tuple[str, int]]) -> bool:
    """Whether it reads the stream, and what it makes is neither the stream nor a hidden group."""
    if not is_linear(module):
        return False
    name, out = f"{path}.weight", output_dim(module)
    reads = inputs_of(module) == width and (name, 1 - out) not in claimed
    return reads and outputs_of(module) != width and (name, out) not in claimed


def _whole(model: nn.Module, cut: frozenset[str]) -> frozenset[str]:
    parameters = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, _ in parameters) - cut


def _readouts(model: nn.Module, head: str) -> tuple[str, ...]:
    """What the merge weighs: the head; or, where that is an embedding too, the norm before it.

    To weigh what a linear head reads is to weigh what it says. The norm before it is the last one
    outside of the numbered blocks.
    """
    same = _same(model, f"{head}.weight")
    if len(same) == 1:
        return same
    norms = [
        (path, module)
        for path, module in model.named_modules()
        if is_norm(module) and not any(part.isdigit() for part in path.split("."))
    ]
    if not norms:
        return same
    path, norm = norms[-1]
    return tuple(f"{path}.{name}" for name, _ in norm.named_parameters(recurse=False))


def _same(model: nn.Module, name: str) -> tuple[str, ...]:
    """All names of a tensor."""
    return next((names for names in tied_names(model) if name in names), (name,))
