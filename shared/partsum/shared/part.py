"""Parts, and how one is cut from a base: the same index map serves `cut` and the merge."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from partsum.shared.gates.closing import close_branches, sorted_partial
from partsum.shared.gates.partial import split_layers
from partsum.shared.messages import Part as Part
from partsum.shared.width import Widths
from partsum.shared.width.groups import all_units, named_tensors
from partsum.shared.width.layers import is_hugging_face_conv1d, weight_of
from partsum.shared.width.multihead import free_heads
from partsum.shared.width.scaled import reset_scales

IndexMap = Mapping[str, Mapping[int, Tensor]]
"""Tensor name -> dimension -> kept indices (int64). A tensor that is not named is kept whole."""


WHOLE = Part()
"""The part that keeps everything."""


def absent(widths: Widths, part: Part) -> frozenset[str]:
    """The names of the tensors that the part does not have: those of branches that are off."""
    gates = (gate for gate in widths.gates if not part.gates.get(gate.name, True))
    return frozenset(name for gate in gates for name in gate.tensors)


def index_map(widths: Widths, part: Part) -> dict[str, dict[int, Tensor]]:
    """Which indices of each tensor the part keeps, ascending."""
    kept: dict[tuple[str, int], list[Tensor]] = {}
    rest: dict[tuple[str, int], Tensor] = {}  # what no unit of these groups owns
    for group in widths.groups:
        if group.name not in part.units:
            continue
        units = torch.tensor(part.units[group.name], dtype=torch.int64)
        for slot in group.slots:
            key = (slot.tensor, slot.dim)
            kept.setdefault(key, []).append(slot.index(units))
            if slot.size is not None:
                unowned = rest.setdefault(key, torch.ones(slot.size, dtype=torch.bool))
                unowned[slot.index(all_units(group))] = False
    found: dict[str, dict[int, Tensor]] = {}
    for (name, dim), pieces in kept.items():
        if (name, dim) in rest:
            pieces.append(rest[name, dim].nonzero().flatten())
        index = torch.cat(pieces)
        found.setdefault(name, {})[dim] = index.sort().values if len(pieces) > 1 else index
    return found


def take(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """The kept slice of a tensor, contiguous; the tensor itself where nothing is cut.

    No more memory is taken than the slice has, but where two dimensions are scattered.
    """
    if not dims:
        return tensor
    scattered = {}
    slice_ = tensor
    for dim, index in dims.items():
        if (run := _run(index)) is None:
            scattered[dim] = index
        else:
            slice_ = slice_.narrow(dim, run.start, run.stop - run.start)
    if not scattered:
        return slice_.clone(memory_format=torch.contiguous_format)
    for dim, index in sorted(scattered.items(), key=lambda item: len(item[1])):
        slice_ = slice_.index_select(dim, index.to(tensor.device))
    return slice_.contiguous()


def _run(index: Tensor) -> slice | None:
    """The indices as a slice where they are consecutive; they ascend."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else None


def region(tensor: Tensor, dims: Mapping[int, Tensor]) -> tuple[slice | Tensor, ...]:
    """An index expression for the slice that `take` returns: ``tensor[region(...)]``.

    Consecutive indices become plain slices, which view instead of copying.
    """
    found: list[slice | Tensor] = []
    for dim in range(tensor.dim()):
        if dim not in dims:
            found.append(slice(None))
            continue
        run = _run(dims[dim])
        found.append(dims[dim] if run is None else run)
    if any(isinstance(index, Tensor) for index in found):
        return _open_mesh(tensor, dims)
    return tuple(found)


def _open_mesh(tensor: Tensor, dims: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """All dimensions as index tensors that broadcast to the slice's shape."""
    mesh = []
    for dim, size in enumerate(tensor.shape):
        index = dims.get(dim, torch.arange(size))
        mesh.append(index.view([-1 if d == dim else 1 for d in range(tensor.dim())]))
    return tuple(mesh)


def cut_tensors(tensors: Mapping[str, Tensor], widths: Widths, part: Part) -> dict[str, Tensor]:
    """The part's share of a state dict, under the same names. Shares storage where nothing is cut.

    Scales (see Widths) become 1 where the part is narrower than the base.
    """
    kept, gone = index_map(widths, part), absent(widths, part)
    held = {name: tensor for name, tensor in tensors.items() if name not in gone}
    cut = {name: take(tensor, kept.get(name, {})) for name, tensor in held.items()}
    if part.units:
        for name in cut.keys() & set(widths.scales):
            cut[name] = torch.ones_like(cut[name])
    return cut


def _own(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """The kept slice, with memory of its own."""
    return take(tensor, dims) if dims else tensor.clone()


def cut_module(model: nn.Module, widths: Widths, part: Part) -> nn.Module:
    """A smaller dense module that computes the part, with the base's parameter names.

    The base is not changed, and its big tensors are not copied whole; those of branches that are
    off are not copied at all. Works on the meta device, where it costs nothing.
    """
    kept, gone = index_map(widths, part), absent(widths, part)
    needed = {id(tensor) for name, tensor in named_tensors(model).items() if name not in gone}
    memo: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        value = _own(parameter.detach(), kept.get(name, {})) if id(parameter) in needed else _NONE
        memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    for name, buffer in model.named_buffers():
        value = _own(buffer, kept.get(name, {})) if id(buffer) in needed else _NONE
        memo[id(buffer)] = torch.ones_like(value) if part.units and name in widths.scales else value
    narrow = copy.deepcopy(model, memo)
    for group in widths.groups:
        if group.name in part.units:
            for count in group.counts:
                amount = count.per_unit * len(part.units[group.name])
                _set_count(narrow.get_submodule(count.module), count.attribute, amount)
    close_branches(narrow, (gate for gate in widths.gates if gate.name in part.off))
    for module in narrow.modules():
        _mend(module)
    free_heads(narrow)
    split_layers(narrow, widths, sorted_partial(part.off))
    return narrow


_NONE = torch.empty(0, device="cpu")  # stands for what leaves with its module at once


def _set_count(module: nn.Module, attribute: str, amount: int) -> None:
    """Set an attribute; a dotted one is that of an object which the module gets a copy of."""
    outer, _, inner = attribute.partition(".")
    if inner:
        own = copy.copy(getattr(module, outer))  # one config serves all modules
        setattr(own, inner, amount)
        setattr(module, outer, own)
    else:
        setattr(module, outer, amount)


def _mend(module: nn.Module) -> None:
    """Let a standard module's own idea of its size follow its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif is_hugging_face_conv1d(module):
        weight = weight_of(module)
        vars(module).update(nx=weight.shape[0], nf=weight.shape[1])
    elif isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
        module.num_features = module.weight.shape[0]


def emptied(module: nn.Module, device: str) -> nn.Module:
    """A copy of a module with uninitialised tensors on a device, or none on ``meta``.

    Unlike ``to_empty`` it keeps tied tensors tied. The module is not changed.
    """
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device=device)
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=device)
    return copy.deepcopy(module, memo)


def fresh_module(model: nn.Module, seed: int) -> nn.Module:
    """Initialise a module in place as if newly built, from a seed; returns it.

    Each module that has ``reset_parameters`` is asked to; ``init_weights()`` of the model, or of
    the outermost models in it that have one (Hugging Face's do), has the last word. Same seed, same
    bytes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        _init_weights(model)
        reset_scales(model)
    return model


def _init_weights(model: nn.Module) -> None:
    init_weights = getattr(model, "init_weights", None)
    if not callable(init_weights):
        for child in model.children():
            _init_weights(child)
        return
    for module in model.modules():  # Hugging Face's remembers what it has filled
        vars(module).pop("_is_hf_initialized", None)
    init_weights()
