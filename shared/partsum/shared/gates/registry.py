"""The rules that find residual branches, and the order in which they are asked.

A rule looks at one block and says which of its modules make up each branch that it adds to its
stream. The newest rule is asked first, and the first that says anything of a block is believed; a
model that has a method ``structure_gates()`` is asked instead of all rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

from torch import nn

from partsum.shared.errors import WidthError
from partsum.shared.gates.closing import sorted_partial
from partsum.shared.gates.partial import PartialGate, check_partial
from partsum.shared.width import Gate, Skip, Widths, find_widths
from partsum.shared.width.groups import HasWidths, named_tensors
from partsum.shared.width.layers import child, joined


@dataclass(frozen=True)
class Branch:
    """A branch of a block: its modules, as they run, by their paths below the block.

    ``outputs`` counts what each of them returns, where one returns a tuple; empty: none does.
    """

    name: str
    run: tuple[str, ...]
    outputs: tuple[int, ...] = ()


GateRule = Callable[[nn.Module], Iterable[Branch]]
"""A block -> the branches that it adds to its stream; none where the rule does not know it."""


@runtime_checkable
class HasGates(Protocol):
    """A model that says its own gates."""

    def structure_gates(self) -> Sequence[Gate]:
        """The model's residual gates, in order; `branch_gate` makes one."""
        ...


_R = TypeVar("_R", bound=GateRule)
_rules: list[GateRule] = []


def register(rule: _R) -> _R:
    """Decorate a rule for blocks; it goes before all that are registered already."""
    _rules.insert(0, rule)
    return rule


def find_gates(model: nn.Module) -> tuple[Gate, ...]:
    """The residual gates of a model, in the order of its modules: its own word, or the rules'.

    Raises:
        WidthError: it says something that is not so.
    """
    gates = tuple(model.structure_gates() if isinstance(model, HasGates) else _by_rules(model))
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [gate.name for gate in gates]
    for gate in gates:
        if names.count(gate.name) > 1:
            raise WidthError(f"two gates have the name {gate.name!r}")
        if PartialGate.named(gate.name):
            raise WidthError(f"{gate.name!r} is the name of a partial-sum gate; choose another")
        for skip in gate.skips:
            if skip.path not in modules:
                raise WidthError(f"gate {gate.name!r} skips {skip.path!r}, which does not exist")
    return gates


def _by_rules(model: nn.Module) -> Iterable[Gate]:
    for path, block in model.named_modules():
        for rule in _rules:
            branches = list(rule(block))
            for branch in branches:
                paths = [joined(path, name) for name in branch.run]
                name = joined(path, branch.name).rstrip(".")
                yield branch_gate(model, name, paths, branch.outputs)
            if branches:
                break


def branch_gate(
    model: nn.Module, name: str, paths: Sequence[str], outputs: Sequence[int] = ()
) -> Gate:
    """The gate of a branch that runs through the modules at ``paths``, in this order.

    The first and the last become silent and those between pass on, so that what is computed between
    them costs little. ``outputs`` counts what each returns, where one returns a tuple.
    """
    last = len(paths) - 1
    skips = tuple(
        Skip(path, "silence" if place in (0, last) else "pass", count)
        for place, (path, count) in enumerate(zip(paths, outputs or [1] * len(paths), strict=True))
    )
    found = ((path, child(model, path)) for path in paths)
    tensors = tuple(
        joined(path, name)
        for path, module in found
        if module is not None
        for name in named_tensors(module)
    )
    return Gate(name, skips, tensors)


def find_structure(model: nn.Module) -> Widths:
    """The width groups of a model, and its gates beside them.

    A model that has gates alone has no width groups then, and mode block says why it has none.

    Raises:
        WidthError: as `find_widths`, for a model without gates; or as `find_gates`.
    """
    gates = find_gates(model)
    try:
        return replace(find_widths(model), gates=gates)
    except WidthError as refusal:
        if not gates or isinstance(model, HasWidths):  # what it says itself is wrong
            raise
        return Widths((), block_refusal=f"no rule finds its width groups: {refusal}", gates=gates)


def check_gates(model: nn.Module, widths: Widths, names: Collection[str]) -> None:
    """Raise WidthError unless the model has gates of all these names."""
    residual = [gate.name for gate in widths.gates]
    partial = sorted_partial(names)
    unknown = sorted(set(names) - set(residual) - {gate.name for gate in partial})
    if unknown:
        raise WidthError(
            f"this model has no gate {unknown[0]!r}; its residual gates are: "
            f"{', '.join(residual) or 'none'}; a partial-sum gate is named GROUP+I/S"
        )
    check_partial(model, widths, partial)
