"""The rules that find width groups, and the order in which they are asked.

A rule for a kind of module looks at one module and says which groups lie in it; a rule for whole
models says all of a model's groups at once. The newest rule is asked first, and what one has
claimed another does not claim again: so a user's rule overrides what comes with partsum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from torch import nn

from partsum.shared.errors import WidthError
from partsum.shared.width.chain import chain_widths
from partsum.shared.width.groups import (
    HasWidths,
    LeftOut,
    WidthGroup,
    Widths,
    check_widths,
    named_tensors,
    tied_names,
)
from partsum.shared.width.multihead import free_heads
from partsum.shared.width.scaled import add_scales, scales_of
from partsum.shared.width.stream import Stream, find_stream

Rule = Callable[[nn.Module, str, nn.Module], Iterable[WidthGroup | LeftOut]]
"""(model, path, the module at that path) -> the groups found in it, and what it must keep whole."""

WholeRule = Callable[[nn.Module], Widths | None]
"""A model's groups, or None where the model is not of the rule's kind."""

Kind = type[nn.Module] | Callable[[nn.Module], bool]
"""Which modules a rule is for: a class, or a predicate."""

_R = TypeVar("_R", bound=Rule)
_W = TypeVar("_W", bound=WholeRule)

_rules: list[tuple[Kind, Rule]] = []
_whole_rules: list[WholeRule] = []


def register(kind: Kind) -> Callable[[_R], _R]:
    """Decorate a rule for modules of a kind; it goes before all that are registered already."""

    def note(rule: _R) -> _R:
        _rules.insert(0, (kind, rule))
        return rule

    return note


def register_whole(rule: _W) -> _W:
    """Decorate a rule for whole models; it goes before all that are registered already."""
    _whole_rules.insert(0, rule)
    return rule


def find_widths(model: nn.Module) -> Widths:
    """The width groups of a model: its own word, or what the rules find.

    Raises:
        WidthError: the model has none, or says something that does not fit its tensors.
    """
    widths = model.width_groups() if isinstance(model, HasWidths) else widths_by_rules(model)
    widths = _with_ties(model, widths)
    check_widths(model, widths)
    return widths


def widths_by_rules(model: nn.Module) -> Widths:
    """What the rules find, whatever the model says: a ``width_groups()`` may start from it.

    Raises:
        WidthError: no rule finds any group; the first rule that refused the model says why.
    """
    refusals = []
    for rule in (*_whole_rules, chain_widths, _by_modules):
        try:
            widths = rule(model)
        except WidthError as refusal:
            refusals.append(refusal)
        else:
            if widths is not None:
                scales = widths.scales or scales_of(model, widths.groups)
                return replace(widths, scales=scales)
    raise refusals[0]


def with_scales(model: nn.Module) -> nn.Module:
    """Give a model what mode residual needs: a ``scale`` to each layer that adds a hidden group up.

    Call it in the task's ``model()``. The state dict gets one number a layer more, and the function
    stays the same while these are 1. An ``nn.MultiheadAttention`` becomes a `SlicedAttention`, with
    the same parameter names. The model is changed in place, and returned.

    Raises:
        WidthError: as `find_widths`.
    """
    free_heads(model, all_of_them=True)
    add_scales(model, find_widths(model).groups)
    return model


def _by_modules(model: nn.Module) -> Widths | None:
    """The hidden groups by the rules for modules, and the stream between them."""
    hidden, left_out = _hidden(model)
    if not hidden:
        return None
    order = {name: place for place, name in enumerate(named_tensors(model))}
    hidden.sort(key=lambda group: order.get(group.slots[0].tensor, 0))
    stream = find_stream(model, hidden, left_out)
    groups = hidden if stream.group is None else [stream.group, *hidden]
    return Widths(
        groups=tuple(groups),
        readouts=stream.readouts,
        left_out=tuple(_all_left_out(model, groups, left_out, stream)),
        block_refusal=stream.refusal,
    )


def _hidden(model: nn.Module) -> tuple[list[WidthGroup], list[LeftOut]]:
    found: list[WidthGroup] = []
    left_out: dict[str, LeftOut] = {}
    claimed: set[tuple[str, int]] = set()
    for kind, rule in _rules:
        for path, module in model.named_modules():
            if not (isinstance(module, kind) if isinstance(kind, type) else kind(module)):
                continue
            for item in rule(model, path, module):
                if isinstance(item, LeftOut):
                    left_out.setdefault(item.tensor, item)
                    continue
                ends = {(slot.tensor, slot.dim) for slot in item.slots}
                if not ends & claimed and not {name for name, _ in ends} & left_out.keys():
                    claimed |= ends
                    found.append(item)
    cut = {name for name, _ in claimed}
    return found, [kept for kept in left_out.values() if kept.tensor not in cut]


def _with_ties(model: nn.Module, widths: Widths) -> Widths:
    """A tensor of several names is cut under all of them."""
    names = {name: same for same in tied_names(model) for name in same}
    groups = []
    for group in widths.groups:
        slots = dict.fromkeys(
            replace(slot, tensor=name)
            for slot in group.slots
            for name in names.get(slot.tensor, (slot.tensor,))
        )
        groups.append(replace(group, slots=tuple(slots)))
    return replace(widths, groups=tuple(groups))


def _all_left_out(
    model: nn.Module, groups: list[WidthGroup], known: list[LeftOut], stream: Stream
) -> Iterable[LeftOut]:
    """Every parameter that no group cuts, with a rule's reason or that there is no rule."""
    reasons = {kept.tensor: kept.reason for kept in known}
    cut = {slot.tensor for group in groups for slot in group.slots}
    cut |= {name for same in tied_names(model) if cut & set(same) for name in same}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name in cut:
            continue
        if stream.group is not None:
            reason = "it is of the output, which all parts share"
        elif name in stream.tensors:
            reason = "it is of the stream, which stays whole"
        else:
            reason = f"no rule knows {type(modules[name.rpartition('.')[0]]).__name__}"
        yield LeftOut(name, reasons.get(name, reason))
