"""A model as a chain of layers, each of one tensor into one, so that a pipeline can be cut of it.

    an nn.Sequential          its modules
    a model around a list     what comes before the blocks, each block, what comes after them

Nobody has to say where the list is: it is found by running the model once and looking who hands
what to whom. What is found is tried out: the chain's outputs must be the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partsum.shared.errors import HandoffError
from partsum.shared.zero.ends import Back, Front

Given = tuple[object, ...]


@dataclass(frozen=True)
class Layer:
    """A link of the chain. ``names`` has what the model calls each tensor of its state."""

    module: nn.Module
    names: dict[str, str]

    @property
    def is_trained(self) -> bool:
        """Whether it has weights: others, such as an activation, make no stage."""
        return any(parameter.requires_grad for parameter in self.module.parameters())


def check_stages(layers: Sequence[Layer], stages: int) -> None:
    """Raise HandoffError where there are fewer layers with weights than stages."""
    trained = sum(layer.is_trained for layer in layers)
    if trained < stages:
        raise HandoffError(
            f'handoff.how = "pipeline" over parts.count = {stages} nodes needs as many layers with '
            f'weights; this model has {trained}. Take fewer nodes, or how = "together" or "apart"'
        )


def cut_layers(model: nn.Module, probe: Tensor) -> list[Layer]:
    """The model's layers, in order; they are the model's own modules, and share its tensors.

    ``probe`` is a batch of inputs, on the model's device.

    Raises:
        HandoffError: the model is no such chain; the message says what is missing.
    """
    was_training = model.training
    model.eval()
    try:
        layers = _of_sequence(model) if _is_sequence(model) else _around_list(model, probe)
        _check_tied(layers)
        with torch.no_grad():
            _check_outputs(model, layers, probe)
    finally:
        model.train(was_training)
    return layers


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _of_sequence(model: nn.Module, prefix: str = "") -> list[Layer]:
    layers: list[Layer] = []
    for name, child in model._modules.items():  # which has a module twice that is there twice
        assert child is not None
        path = f"{prefix}{name}."
        layers += _of_sequence(child, path) if _is_sequence(child) else [_layer(child, path)]
    return layers


def _layer(module: nn.Module, prefix: str) -> Layer:
    return Layer(module, {name: f"{prefix}{name}" for name in module.state_dict()})


# ---- a list of blocks ----------------------------------------------------------------------------


def _around_list(model: nn.Module, probe: Tensor) -> list[Layer]:
    path, reasons = "", []
    for name, found in _lists(model):
        reason = _why_no_chain(model, found, probe)
        if not reason:
            path = name
            break
        reasons.append(f"{name}: {reason}")
    if not path:
        looked = "; ".join(reasons) or "it has no nn.ModuleList or nn.Sequential of two or more"
        raise HandoffError(
            'handoff.how = "pipeline" needs a model that is an nn.Sequential, or whose blocks are '
            f"a list and hand one tensor to each other. This one is not: {looked}. Write its "
            'blocks so, or take how = "together" or "apart"'
        )
    blocks = list(model.get_submodule(path))  # type: ignore[call-overload]
    before, after = _ends(model, blocks, probe)
    own = {name for name in model.state_dict() if name.startswith(f"{path}.")}
    front = Front(model, blocks[0])
    back = Back(model, path, len(blocks), probe)
    rest = [name for name in model.state_dict() if name not in own]
    early = [name for name in rest if _is_early(name, model, before, after)]
    late = [name for name in rest if name not in early]
    return [
        Layer(front, front.keep(early)),
        *(_layer(block, f"{path}.{k}.") for k, block in enumerate(blocks)),
        Layer(back, back.keep(late)),
    ]


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Lists of modules, those with the most numbers first."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name and isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    ]
    return iter(sorted(found, key=lambda one: -sum(p.numel() for p in one[1].parameters())))


def _why_no_chain(model: nn.Module, found: nn.Module, probe: Tensor) -> str:
    """Why the list's modules do not hand one tensor to each other; empty: they do."""
    calls: list[tuple[int, Given, dict[str, object], object]] = []

    def note(place: int) -> Callable[..., None]:
        def hook(_: nn.Module, given: Given, named: dict[str, object], out: object) -> None:
            calls.append((place, given, named, out))

        return hook

    hooks = [
        module.register_forward_hook(note(place), with_kwargs=True)
        for place, module in enumerate(found.children())
    ]
    try:
        with torch.no_grad():
            model(probe)
    finally:
        for handle in hooks:
            handle.remove()
    if [place for place, *_ in calls] != list(range(len(hooks))):
        return "its modules are not called once each, in order"
    for place, given, named, out in calls:
        if named or len(given) != 1 or not isinstance(given[0], Tensor):
            return f"module {place} is called with more than one tensor"
        if not isinstance(out, Tensor):
            return f"module {place} returns no tensor"
        if place and given[0] is not calls[place - 1][3]:
            return f"module {place} does not read just what module {place - 1} returns"
    return ""


def _ends(
    model: nn.Module, blocks: Sequence[nn.Module], probe: Tensor
) -> tuple[set[int], set[int]]:
    """Which parameters (by id) are used before the blocks, and which after them."""
    inner = {id(p) for block in blocks for p in block.parameters()}
    outer = [p for p in model.parameters() if id(p) not in inner and p.requires_grad]
    if not outer:
        return set(), set()
    with torch.enable_grad():
        stream = Front(model, blocks[0])(probe)
        used = _used(stream, outer)
        ended = _cut_at(model, blocks[-1], probe)
        return used, _used(ended, outer)


def _used(output: Tensor, parameters: Sequence[Tensor]) -> set[int]:
    if not output.requires_grad:
        return set()
    grads = torch.autograd.grad(output.float().sum(), parameters, allow_unused=True)
    return {id(p) for p, grad in zip(parameters, grads, strict=True) if grad is not None}


def _cut_at(model: nn.Module, last: nn.Module, probe: Tensor) -> Tensor:
    """The model's outputs, as if what the last block returns came from nowhere."""
    handle = last.register_forward_hook(lambda *call: call[2].detach().requires_grad_())
    try:
        output: Tensor = model(probe)
        return output
    finally:
        handle.remove()


def _is_early(name: str, model: nn.Module, before: set[int], after: set[int]) -> bool:
    """Whether a tensor belongs to what comes before the blocks.

    A parameter that is used at both ends is in both sets, and refused by `_check_tied`. A buffer
    goes where its module's parameters are.
    """
    tensor = model.state_dict(keep_vars=True)[name]
    if isinstance(tensor, nn.Parameter):
        if id(tensor) in before and id(tensor) in after:
            raise _tied(name)
        return id(tensor) in before
    module = model.get_submodule(name.rpartition(".")[0])
    return any(id(p) in before for p in module.parameters())


# ---- checks --------------------------------------------------------------------------------------


def _check_tied(layers: Sequence[Layer]) -> None:
    """A tensor of two layers would be stepped twice, and come out different."""
    owners: dict[int, int] = {}
    for place, layer in enumerate(layers):
        for name, tensor in layer.module.state_dict(keep_vars=True).items():
            if owners.setdefault(id(tensor), place) != place:
                raise _tied(layer.names.get(name, name))


def _tied(name: str) -> HandoffError:
    return HandoffError(
        f'handoff.how = "pipeline" does not go with tied weights: {name} is used at two places of '
        'the model, which may be on two nodes. Take how = "together" or "apart"'
    )


def _check_outputs(model: nn.Module, layers: Sequence[Layer], probe: Tensor) -> None:
    expected = model(probe)
    try:
        found = probe
        for layer in layers:
            found = layer.module(found)
        alike = torch.allclose(expected, found, rtol=1e-4, atol=1e-5)
    except Exception as error:  # the model's own code, run in pieces that it does not know of
        raise _no_chain(f"fail ({type(error).__name__}: {error})") from error
    if not alike:
        raise _no_chain("do not give its outputs")


def _no_chain(what: str) -> HandoffError:
    return HandoffError(
        'handoff.how = "pipeline" needs a model whose layers see one another\'s outputs alone: run '
        f"one after the other, this one's {what}. Something goes past the blocks. Take how = "
        '"together" or "apart"'
    )
