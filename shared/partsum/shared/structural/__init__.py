"""Structures of partial sums: experts that share one layer, and random grouping; docs/experts.md."""

from partsum.shared.structural.layer import StructuralMoE, structural_mlp
from partsum.shared.structural.routers import (
    Choice,
    ExpertChoiceRouter,
    RandomGates,
    Router,
    TopKRouter,
)
from partsum.shared.structural.structures import Structures
from partsum.shared.structural.swap import with_random_grouping, with_structural_experts

__all__ = [
    "Choice",
    "ExpertChoiceRouter",
    "RandomGates",
    "Router",
    "StructuralMoE",
    "Structures",
    "TopKRouter",
    "structural_mlp",
    "with_random_grouping",
    "with_structural_experts",
]
