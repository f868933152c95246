"""The round that nodes work on, as the desk has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from partsum.coordinator.records import RoundPlan
from partsum.shared.secure import Masking


@dataclass
class OpenRound:
    """The round that nodes work on."""

    plan: RoundPlan
    blobs: dict[str, Path]  # what nodes may pull, by digest
    largest_bytes: int  # that an update's file can have
    send_seconds: float = 0.0  # the longest delivery of an assignment
    given: dict[int, set[str]] = field(default_factory=dict)  # whom each part went to
    pushes: dict[str, Path] = field(default_factory=dict)  # updates that have begun to come in
    masking: Mapping[int, Masking] = field(default_factory=dict)  # by part, where updates are
    generation: int = 0  # of its gang, where parts are trained in step

    def assignment_id(self, part: int) -> str:
        """The name of a part's assignment; another gang's has another."""
        name = f"r{self.plan.round}-p{part}"
        return f"{name}-g{self.generation}" if self.generation else name
