"""What summary.json tells of a search over structures."""

from __future__ import annotations

from partsum.coordinator.leaderboard import By, Candidate, Leaderboard
from partsum.coordinator.summary_record import Measured, Record


class StructureSummary(Record):
    """A structure that was tried."""

    bits: str
    """Its gates in order, 1 for on."""
    rounds: int
    """After how many rounds it was scored last."""
    accuracy: Measured
    """The headline metric then, on the samples that structures are ranked on."""
    loss: Measured
    """The loss then, on the same samples."""
    parameters: int
    """Of the structure."""
    flops: int
    """Of training it, for a sample."""
    seconds_per_sample: Measured
    """Of training it, as its node measured them in that round."""
    parent: str
    """The structure that it is a mutant of; empty: it was there from the start."""
    alive: bool
    """Whether it was in the newest round."""
    on_front: bool
    """Whether none of the newest round is better and cheaper."""


class SearchSummary(Record):
    """A search over structures."""

    gates: tuple[str, ...]
    """The gates that were searched over, in the order of the structures' bits."""
    by: By
    """What they were ranked by: the headline metric, or the loss."""
    structures: tuple[StructureSummary, ...]
    """All that were tried, the best first."""
    correlations: tuple[Measured, ...] = ()
    """For each round but the last, Spearman's rank correlation of its scores with those of the
    last, over the structures that have both; null: fewer than three have."""


def search_summary(board: Leaderboard) -> SearchSummary:
    """The leaderboard as the summary tells it."""
    front = {one.bits for one in board.front()}
    last = max((one.last.round for one in board.candidates if one.last), default=0)
    found = board.correlations()
    return SearchSummary(
        gates=board.gates,
        by=board.by,
        structures=tuple(_structure(one, board, front) for one in board.ranked()),
        correlations=tuple(found.get(round) for round in range(last)),
    )


def _structure(one: Candidate, board: Leaderboard, front: set[str]) -> StructureSummary:
    last = one.last
    return StructureSummary(
        bits=one.bits,
        rounds=last.round + 1 if last else 0,
        accuracy=last.accuracy if last else None,
        loss=last.loss if last else None,
        parameters=one.parameters,
        flops=one.flops,
        seconds_per_sample=last.seconds_per_sample if last else None,
        parent=one.parent,
        alive=one.bits in board.alive,
        on_front=one.bits in front,
    )
