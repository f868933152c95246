"""Width groups: which tensors hold the units of each width axis of a model, and how to find them.

A **unit** is the smallest thing that can be kept or left out of a layer (a neuron, an attention
head, a channel of the residual stream); a **group** is all the interchangeable units of one axis.
`find_widths` asks the model itself (a method ``width_groups() -> Widths``), then the rules for
whole models, then those for kinds of modules; docs/widths.md tells them and how to add one.
"""

from partsum.shared.width import rules as rules  # importing them registers them
from partsum.shared.width.axis import Axis
from partsum.shared.width.chain import chain_widths
from partsum.shared.width.gate import Gate, Skip
from partsum.shared.width.groups import (
    Count,
    HasWidths,
    LeftOut,
    Slot,
    WidthGroup,
    Widths,
    check_widths,
)
from partsum.shared.width.multihead import SlicedAttention, forbid_fast_path
from partsum.shared.width.registry import (
    Rule,
    WholeRule,
    find_widths,
    register,
    register_whole,
    widths_by_rules,
    with_scales,
)
from partsum.shared.width.scaled import ScaledLinear

__all__ = [
    "Axis",
    "Count",
    "Gate",
    "HasWidths",
    "LeftOut",
    "Rule",
    "ScaledLinear",
    "Skip",
    "SlicedAttention",
    "Slot",
    "WholeRule",
    "WidthGroup",
    "Widths",
    "chain_widths",
    "check_widths",
    "find_widths",
    "forbid_fast_path",
    "register",
    "register_whole",
    "widths_by_rules",
    "with_scales",
]
