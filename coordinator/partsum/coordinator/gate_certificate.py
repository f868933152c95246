"""What must hold of gates, checked on a probe batch before the first node may join."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from partsum.coordinator.base import Base
from partsum.coordinator.invariants import assert_same, noisy_model
from partsum.shared.config import RegularisationConfig
from partsum.shared.errors import WidthError
from partsum.shared.gates import Gate, check_gates, partial_gates
from partsum.shared.messages import Part
from partsum.shared.part import cut_module
from partsum.shared.regularisation import regularise
from partsum.shared.task import Samples


def certify_gates(base: Base, names: Collection[str], samples: Samples) -> None:
    """Raise WidthError unless these gates are the model's, and do what they say.

    With all of them on a part is the base, exactly. With one residual gate off it computes what the
    base does where that branch's output is zero: a module that something else reads too, or a
    branch that is not added, shows here. Partial-sum gates move the activation, so of them it is
    only checked that the model runs.
    """
    if not names:
        return
    check_gates(base.shape, base.widths, names)
    inputs, _ = base.probe(samples)
    whole = noisy_model(base.task).to(base.device).eval()
    with torch.no_grad():
        dense = whole(inputs)
        on = cut_module(whole, base.widths, Part(gates=dict.fromkeys(names, True))).eval()
        if not torch.equal(on(inputs), dense):
            raise WidthError("a part with all gates on does not compute what the base does")
    residual = {gate.name: gate for gate in base.widths.gates}
    for name in sorted(names):
        cut = cut_module(whole, base.widths, Part(gates={name: False})).eval()
        found = _outputs(cut, inputs, name)
        if name in residual:
            expected = _silenced(whole, residual[name], inputs)
            assert_same(
                found,
                expected,
                f"without the branch of gate {name!r} the model does not compute what it does with "
                "the branch at zero: its modules are read elsewhere too, or the model's "
                "structure_gates() do not describe it (docs/structures.md)",
            )


def check_regularisation(
    base: Base, wanted: RegularisationConfig, slices: Sequence[Part] = ()
) -> None:
    """Raise PartsumError where the model, or a slice of it, has no gates to be random as wanted.

    A slice may be too narrow for the splits of a layer.
    """
    regularise(copy.deepcopy(base.shape), wanted)
    if wanted.gates_on == 1:
        return
    for part in slices:
        narrow = cut_module(base.shape, base.widths, part)
        if not partial_gates(narrow, base.widths, wanted.splits):
            raise WidthError(
                f"regularisation.splits = {wanted.splits}, but no layer of a part reads so many "
                "inputs: its sums cannot be taken in random groups. Lower splits or parts.count, "
                "or remove gates_on"
            )


def _outputs(model: torch.nn.Module, inputs: Tensor, name: str) -> Tensor:
    try:
        with torch.no_grad():
            outputs: Tensor = model(inputs)
    except Exception as error:  # whatever a model raises whose modules miss one another
        raise WidthError(
            f"the model does not run with gate {name!r} off ({type(error).__name__}: {error}); "
            "docs/structures.md tells how a model says its own gates"
        ) from error
    return outputs


def _silenced(model: torch.nn.Module, gate: Gate, inputs: Tensor) -> Tensor:
    """The whole model's outputs with what the branch's last module returns multiplied by zero."""
    last = model.get_submodule(gate.skips[-1].path)
    hook = last.register_forward_hook(_to_zero)
    try:
        with torch.no_grad():
            outputs: Tensor = model(inputs)
    finally:
        hook.remove()
    return outputs


def _to_zero(_module: object, _inputs: object, output: object) -> object:
    if isinstance(output, Tensor):
        return output * 0
    assert isinstance(output, tuple)
    return (output[0] * 0, *output[1:])
