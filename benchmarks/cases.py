"""Rounds of a model that is nothing but weights, by real processes of partsum."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import run

from partsum.coordinator.summary import Summary
from partsum.shared.errors import PartsumError


@dataclass(frozen=True)
class Case:
    """A model of ``layers`` matrices of ``width``, on so many nodes, for so many rounds."""

    name: str
    width: int
    layers: int
    nodes: int
    rounds: int

    @property
    def model_bytes(self) -> int:
        """Of the float32 weights."""
        return 4 * self.layers * self.width**2

    @property
    def round_bytes(self) -> int:
        """What has to move in a round: the model to every node, and back."""
        return 2 * self.nodes * self.model_bytes


def play(case: Case, folder: Path) -> Summary:
    """Federated averaging of the whole model without training, in a new folder under ``folder``.

    Raises:
        PartsumError: the run did not finish, or not every node was in every round.
    """
    config = {
        "name": "blank",
        "deterministic": False,
        "task": {
            "name": "partsum.shared.tasks:blank",
            "options": {"width": case.width, "layers": case.layers},
        },
        "parts": {
            "planner": "full",
            "count": case.nodes,
            "rounds": case.rounds,
            "local_epochs": 0.0,
            "evaluate_every": 0,
        },
        # No second copies: every node is to move its own part in every round.
        "rounds": {"backup_after": 0.0},
        "handoff": {"enabled": False},
    }
    where = folder / f"{case.name}-{case.nodes}-{time.time_ns()}"
    where.mkdir(parents=True)
    summary, _ = run(config, where, case.nodes)
    merged = [node.updates for node in summary.nodes]
    if merged != [case.rounds] * case.nodes:
        raise PartsumError(
            f"a node was left out of some of the {case.rounds} rounds, so fewer bytes moved: the "
            f"nodes' updates were {merged}; see {where}"
        )
    return summary


def round_seconds(closed: Sequence[float]) -> list[float]:
    """Seconds of every round after the first, which is warm-up, from when each was committed."""
    return [after - before for before, after in pairwise(closed)]
