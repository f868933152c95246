"""What a tracker is told of a run, and what it must do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Series = Literal["parts", "handoff", "structures"]
"""Curves that share their steps: rounds from 1, optimizer steps, and rounds again."""
SERIES: tuple[Series, ...] = ("parts", "handoff", "structures")


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker should know of a run before its first point."""

    name: str
    experiment: str  # the config's name, which runs of one kind share
    folder: Path
    config: Mapping[str, Any]
    started_at: float  # Unix seconds


@dataclass(frozen=True)
class Point:
    """Figures of one step. What was not measured is not in it."""

    series: Series
    step: int
    at: float  # Unix seconds, as if the run had never been interrupted
    values: Mapping[str, float]


class Tracker(Protocol):
    """Writes one run somewhere. Called in one thread; may raise whatever its package raises."""

    name: str

    def begin(self, run: TrackedRun, known: str | None, positions: Mapping[Series, int]) -> str:
        """Start, or go on with the tracker's own run ``known``; returns what that is called.

        ``positions`` is the newest step of each series that `write` has returned for. Points beyond
        it come again, though some may be there already: no step should then be seen twice.
        """
        ...

    def write(self, points: Sequence[Point]) -> None:
        """Write points, in order of their steps. Once this returns they outlive this process."""
        ...

    def end(self, state: str, results: Mapping[str, float]) -> None:
        """The run has ended: finished, stopped (it may be resumed) or failed."""
        ...


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, str | int | float | bool]:
    """A config in one level, `training.learning_rate`; lists and nulls as text."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            found[f"{above}{key}"] = value if plain else str(value)
    return found
