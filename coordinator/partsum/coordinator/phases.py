"""The phases that a run's rounds belong to. Pure."""

from __future__ import annotations

from typing import Literal

from partsum.shared.config import RunConfig

RoundPhase = Literal["parts", "cotrain"]


def total_rounds(config: RunConfig) -> int:
    """How many rounds the run has, of all phases."""
    return config.parts.rounds + config.cotrain.rounds


def phase_of(config: RunConfig, round: int) -> RoundPhase:
    """The phase that a round belongs to; rounds count from 0."""
    return "parts" if round < config.parts.rounds else "cotrain"


def gang_rounds(config: RunConfig) -> range:
    """The rounds whose parts are trained in step, by a gang."""
    return range(config.parts.rounds, total_rounds(config))
