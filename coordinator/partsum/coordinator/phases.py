"""Which phase a round belongs to. Pure.

0 ... parts.rounds - 1     parts
... + handoff.rounds - 1   handoff, where the nodes train it
"""

from __future__ import annotations

from typing import Literal

from partsum.shared.config import RunConfig

RoundPhase = Literal["parts", "cotrain", "handoff"]


def total_rounds(config: RunConfig) -> int:
    """All rounds of a run, of all phases."""
    return handoff_rounds(config).stop


def handoff_rounds(config: RunConfig) -> range:
    """The rounds in which nodes train the hand-off; none where the coordinator's host does."""
    first = config.parts.rounds
    return range(first, first + (config.handoff.rounds if config.handoff.over_nodes else 0))


def phase_of(config: RunConfig, round: int) -> RoundPhase:
    """The phase of a round."""
    return "handoff" if round in handoff_rounds(config) else "parts"
