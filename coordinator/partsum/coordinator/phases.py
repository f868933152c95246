"""The phases that a run's rounds belong to, in order. Pure.

parts.rounds      parts     each node by itself
cotrain.rounds    cotrain   a gang, in step
handoff.rounds    handoff   where nodes train it; a gang unless they train apart
"""

from __future__ import annotations

from typing import Literal

from partsum.shared.config import RunConfig

RoundPhase = Literal["parts", "cotrain", "handoff"]


def total_rounds(config: RunConfig) -> int:
    """How many rounds the run has, of all phases."""
    return handoff_rounds(config).stop


def handoff_rounds(config: RunConfig) -> range:
    """The rounds in which nodes train the hand-off; none where the coordinator's host does."""
    first = config.parts.rounds + config.cotrain.rounds
    return range(first, first + (config.handoff.rounds if config.handoff.over_nodes else 0))


def phase_of(config: RunConfig, round: int) -> RoundPhase:
    """The phase that a round belongs to; rounds count from 0."""
    if round >= handoff_rounds(config).start and config.handoff.over_nodes:
        return "handoff"
    return "parts" if round < config.parts.rounds else "cotrain"


def gang_rounds(config: RunConfig) -> range:
    """The rounds whose parts are trained in step, by a gang."""
    handoff = handoff_rounds(config)
    last = handoff.start if config.handoff.is_over("apart") else handoff.stop
    return range(config.parts.rounds, last)
