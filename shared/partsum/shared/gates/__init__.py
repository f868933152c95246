"""Gates: every ``+`` of a model may be taken or left, so that n of them make 2^n structures.

A **residual gate** adds a branch to the stream, or the branch is not there (ResIST, 2107.00961;
stochastic depth, 1603.09382). A **partial-sum gate** is a ``+`` within one layer's product, taken
before the activation or left to be taken after it. `find_structure` finds the first kind beside the
width groups, and the second follows from these; a Part says which are off, and `cut_module` does
what it says.
"""

from partsum.shared.gates import rules as rules  # importing them registers them
from partsum.shared.gates.closing import close_gates
from partsum.shared.gates.partial import PartialGate, partial_gates, splittable_groups
from partsum.shared.gates.registry import (
    Branch,
    GateRule,
    HasGates,
    branch_gate,
    check_gates,
    find_gates,
    find_structure,
    register,
)
from partsum.shared.width.gate import Gate, Skip

__all__ = [
    "Branch",
    "Gate",
    "GateRule",
    "HasGates",
    "PartialGate",
    "Skip",
    "branch_gate",
    "check_gates",
    "close_gates",
    "find_gates",
    "find_structure",
    "partial_gates",
    "register",
    "splittable_groups",
]
