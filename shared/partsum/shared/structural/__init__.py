"""Structural experts: structures of one layer, which share all that it holds (docs/experts.md)."""

from partsum.shared.structural import widths as widths  # importing it registers its rule
from partsum.shared.structural.layer import StructuralMoE, structural_mlp
from partsum.shared.structural.routers import (
    Choice,
    ExpertChoiceRouter,
    Router,
    TopKRouter,
)
from partsum.shared.structural.structures import Structures
from partsum.shared.structural.swap import with_structural_experts

__all__ = [
    "Choice",
    "ExpertChoiceRouter",
    "Router",
    "StructuralMoE",
    "Structures",
    "TopKRouter",
    "structural_mlp",
    "with_structural_experts",
]
