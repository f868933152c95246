"""The rules that find width groups, and the order in which they are asked.

A rule for a kind of module looks at one module and says which groups lie in it; a rule for whole
models says all of a model's groups at once. The newest rule is asked first, and what one has
claimed another does not claim again: so a user's rule overrides what comes with partsum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import nn

from partsum.shared.errors import WidthError
from partsum.shared.width.chain import chain_widths
from partsum.shared.width.groups import HasWidths, LeftOut, WidthGroup, Widths, check_widths
from partsum.shared.width.rules.convolution import convolution_widths

Rule = Callable[[nn.Module, str, nn.Module], Iterable[WidthGroup | LeftOut]]
"""(model, path, the module at that path) -> the groups found in it, and what it must keep whole."""

WholeRule = Callable[[nn.Module], Widths | None]
"""A model's groups, or None where the model is not of the rule's kind."""

Kind = type[nn.Module] | Callable[[nn.Module], bool]
"""Which modules a rule is for: a class, or a predicate."""

_rules: list[tuple[Kind, Rule]] = []
_whole_rules: list[WholeRule] = [convolution_widths, chain_widths]

_R = TypeVar("_R", bound=Rule)
_W = TypeVar("_W", bound=WholeRule)


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
    widths = model.width_groups() if isinstance(model, HasWidths) else _by_rules(model)
    check_widths(model, widths)
    return widths


def _by_rules(model: nn.Module) -> Widths:
    for rule in _whole_rules:
        widths = rule(model)
        if widths is not None:
            return widths
    raise WidthError(f"found no width groups in {type(model).__name__}")
