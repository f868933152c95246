"""A hand-off over nodes as rounds: what they have of the run's config, and the steps of each. Pure.

Its parts are the whole base, or the structure that was found, so that a round of it is one of
planner "full" (FedAvg with an outer step; DiLoCo): all else that rounds promise holds for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from partsum.coordinator.phases import handoff_rounds
from partsum.coordinator.records import HandoffSteps
from partsum.shared.config import (
    MergeConfig,
    OuterConfig,
    PartsConfig,
    PrivacyConfig,
    RunConfig,
    WireConfig,
)
from partsum.shared.messages import Part


def rounds_config(config: RunConfig, off: Sequence[str]) -> RunConfig:
    """The run's config as the hand-off's rounds have it; ``off``: gates of the structure.

    Only nodes that train apart send changes of their own: what travels encoded, robust merges and
    the outer step are theirs alone.
    """
    handoff, apart = config.handoff, config.handoff.is_over("apart")
    outer = OuterConfig(
        optimizer="nesterov",
        learning_rate=handoff.outer_learning_rate,
        momentum=handoff.outer_momentum,
    )
    training = config.training.model_copy(
        update={
            "learning_rate": handoff.learning_rate or config.training.learning_rate,
            "precision": handoff.precision,
            "proximal": 0.0,
            "ahead": False,
        }
    )
    return config.model_copy(
        update={
            "parts": PartsConfig(
                planner="full", count=config.parts.count, rounds=config.parts.rounds
            ),
            "gates": config.gates.model_copy(update={"off": list(off)}),
            "training": training,
            "outer": outer if apart else OuterConfig(),
            "wire": WireConfig(up=config.wire.up) if apart else WireConfig(),
            "merge": config.merge if apart else MergeConfig(norm_bound=0.0),
            "privacy": PrivacyConfig(),
        }
    )


def total_steps(config: RunConfig, samples: int) -> int:
    """The optimizer steps of the whole hand-off, on each node."""
    return max(1, round(config.handoff.epochs * samples / config.handoff.batch_size))


def steps_of(
    config: RunConfig,
    round: int,
    samples: int,
    ranks: int,
    share: float,
    norm_parts: Sequence[Part] = (),
) -> HandoffSteps:
    """The steps of a round on so many ranks; a round has at least one."""
    place, rounds = round - handoff_rounds(config).start, config.handoff.rounds
    total = max(rounds, total_steps(config, samples))
    first, end = (total * k // rounds for k in (place, place + 1))
    # A gang's members split the batch among themselves, however many they are.
    batch = config.handoff.batch_size // (ranks if config.handoff.is_over("apart") else 1)
    return HandoffSteps(first, end - first, total, share, batch, tuple(norm_parts))
