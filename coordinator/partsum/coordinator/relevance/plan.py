"""What planner relevance would do, in words and FLOPs, for the dry run."""

from __future__ import annotations

from partsum.coordinator.cost import Cost
from partsum.coordinator.figures import gflop_text
from partsum.shared.config import RunConfig

_ARD_PASSES = 2.0  # the variances' product comes beside that of the means


def ranking_flops(config: RunConfig, whole: Cost, samples: int) -> float:
    """What the coordinator trains before the first round; 0 for the other planners."""
    if config.parts.planner != "relevance":
        return 0.0
    passes = _ARD_PASSES if config.relevance.score == "ard" else 1.0
    return passes * config.relevance.epochs * samples * whole.flops_per_sample


def ranking_sentences(config: RunConfig, whole: Cost, samples: int) -> list[str]:
    """Who ranks the units by what, when, and what becomes of the strong ones."""
    if config.parts.planner != "relevance":
        return []
    relevance = config.relevance
    epochs = f"{relevance.epochs:g} epoch{'' if relevance.epochs == 1 else 's'}"
    trained = f"before round 1 the coordinator trains the base for {epochs}"
    trained += " with ARD" if relevance.score == "ard" else ""
    trained += f" ({gflop_text(ranking_flops(config, whole, samples))} GFLOP)"
    again = f", and again before every {relevance.every}. round" if relevance.every else ""
    held = (
        f"every part holds the strongest {relevance.shared:.0%} of each hidden group's units, and "
        "its share of the others"
        if relevance.shared
        else "each part gets its share of the strong units as of the weak ones"
    )
    return [f"relevance: {trained}, and ranks units by {relevance.score}{again}; {held}"]
