"""A search's leaderboard as an operator sees it, while it runs and at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from partsum.coordinator.figures import count_text, loss_text, plain_text, share_text
from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.summary_structures import SearchSummary
from partsum.shared.messages import Standing

SHOWN = 10  # structures; a screen has no room for more


def standings_of(board: Leaderboard) -> tuple[Standing, ...]:
    """The first places."""
    nan, front = math.nan, {one.bits for one in board.front()}
    return tuple(
        Standing(
            structure=one.bits,
            round=one.last.round + 1,
            accuracy=nan if one.last.accuracy is None else one.last.accuracy,
            loss=nan if one.last.loss is None else one.last.loss,
            parameters=one.parameters,
            flops=one.flops,
            seconds_per_sample=one.last.seconds_per_sample,
            on_front=one.bits in front,
        )
        for one in board.ranked()[:SHOWN]
        if one.last is not None
    )


def final_standings(search: SearchSummary) -> tuple[Standing, ...]:
    """The same of a run that has ended."""
    nan = math.nan
    return tuple(
        Standing(
            structure=one.bits,
            round=one.rounds,
            accuracy=nan if one.accuracy is None else one.accuracy,
            loss=nan if one.loss is None else one.loss,
            parameters=one.parameters,
            flops=one.flops,
            seconds_per_sample=one.seconds_per_sample or 0.0,
            on_front=one.on_front,
        )
        for one in search.structures[:SHOWN]
    )


def render_standings(standings: Sequence[Standing], gates: Sequence[str] = ()) -> RenderableType:
    """A table, the best first; ``*`` marks those that none beats in both score and FLOPs."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("")
    table.add_column("structure", no_wrap=True, overflow="ellipsis", max_width=32)
    for name in ("rounds", "accuracy", "loss", "parameters", "MFLOP", "us/sample"):
        table.add_column(name, justify="right")
    for place, one in enumerate(standings, start=1):
        table.add_row(
            f"{place}{'*' if one.on_front else ''}",
            Text(plain_text(one.structure)),
            str(one.round),
            share_text(one.accuracy),
            loss_text(one.loss),
            count_text(one.parameters),
            f"{one.flops / 1e6:.3g}",
            f"{1e6 * one.seconds_per_sample:.3g}",
        )
    if not gates:
        return table
    return Group(table, Text(f"gates, in order: {plain_text(', '.join(gates))}", "dim"))
