"""The journal's rounds, hand-off steps and structures as points of curves."""

from __future__ import annotations

import math
from collections.abc import Mapping

from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.live.chronicle import committed_rounds
from partsum.coordinator.live.history import RoundThen
from partsum.coordinator.store import Store
from partsum.coordinator.trackers.tracker import Point, Series


def new_points(
    store: Store, board: Leaderboard | None, positions: Mapping[Series, int], started_at: float
) -> list[Point]:
    """What came after ``positions``, in order. Raises StateError."""
    points = [_of_round(one, started_at) for one in committed_rounds(store, positions["parts"])]
    points += [
        Point("handoff", step, started_at + at, _measured(_HANDOFF, body))
        for step, at, body in store.curve(positions["handoff"])
    ]
    if board is not None:
        points += _of_structures(board, positions["structures"], store, started_at)
    return [point for point in points if point.values]


_ROUND = {"loss": "loss/validation", "part_loss": "loss/training", "accuracy": "accuracy"}
_HANDOFF = {
    "validation_loss": "loss/validation",
    "loss": "loss/training",
    "accuracy": "accuracy",
}


def _of_round(round: RoundThen, started_at: float) -> Point:
    took = {
        f"seconds/{stage}": seconds
        for stage, seconds in round.stage_seconds.model_dump().items()
        if seconds is not None
    }
    values = {
        **_measured(_ROUND, round.model_dump()),
        **took,
        "seconds/round": round.closed_seconds - round.opened_seconds,
        "updates": float(round.updates),
        "missing": float(len(round.missing_parts)),
    }
    return Point("parts", round.round, started_at + round.closed_seconds, values)


def _of_structures(board: Leaderboard, known: int, store: Store, started_at: float) -> list[Point]:
    """Each round's scores; the journal says when a round was, the board what came of it."""
    by_round: dict[int, dict[str, float]] = {}
    for one in board.candidates:
        for score in one.scores:
            if score.round + 1 > known:
                found = {"loss": score.loss, "accuracy": score.accuracy}
                by_round.setdefault(score.round + 1, {}).update(
                    {f"{name}/{one.bits}": v for name, v in found.items() if v is not None}
                )
    closed = {one.round: one.closed_seconds for one in committed_rounds(store, known)}
    return [
        Point("structures", round, started_at + closed[round], values)
        for round, values in sorted(by_round.items())
        if round in closed
    ]


def _measured(names: Mapping[str, str], body: Mapping[str, float | None]) -> dict[str, float]:
    return {
        name: value
        for key, name in names.items()
        if (value := body.get(key)) is not None and math.isfinite(value)
    }
