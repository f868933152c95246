"""A study in the terminal: a line for each kind of model, means over seeds. 80 columns do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from partsum.coordinator.figures import (
    MISSING,
    loss_text,
    plain_text,
    seconds_text,
    share_text,
    short_text,
)
from partsum.coordinator.study.results import Mean, Row, means

NAMES = {"strong_weak": "strong+weak", "": MISSING}


def study_table(rows: Sequence[Row], folder: Path) -> RenderableType:
    """All that a finished study found."""
    found = means(rows)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    for name in ("start", "units"):
        table.add_column(name, no_wrap=True)
    for name in ("keep", "data", "params", "GFLOP", "time", "cut", "accuracy", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for mean in found:
        table.add_row(*_cells(mean), style="bold" if mean.row.keep == 1 else "")
    seeds = len({row.seed for row in rows})
    head = Text.assemble((plain_text(folder.name), "bold"), f": {len(rows)} models")
    notes = [
        "GFLOP and time are of a model's training, on its node. Keep, data, cut (the accuracy "
        "before training) and accuracy are in percent. Accuracy and loss are on validation data"
        + (f", means of {seeds} seeds; after ± their standard deviation." if seeds > 1 else "."),
    ]
    lost = sum(mean.count - mean.measured for mean in found)
    if lost:
        notes.append(
            f"{lost} of {len(rows)} models have no figures: they failed on every node, or diverged "
            f"(see {folder / 'report.html'})."
        )
    return Group(head, Text(), table, Text(), *(Text(note, "dim") for note in notes))


def _cells(mean: Mean) -> tuple[str, ...]:
    row = mean.row
    return (
        row.start,
        NAMES.get(row.selection, row.selection),
        f"{100 * row.keep:.4g}",
        f"{100 * row.data:.4g}",
        short_text(row.parameters),
        short_text(row.flops / 1e9),
        seconds_text(row.train_seconds),
        _percent(row.cut_accuracy),
        _percent(row.accuracy) + ("" if mean.spread is None else f" ± {100 * mean.spread:.2f}"),
        loss_text(row.loss),
    )


def _percent(value: float | None) -> str:
    return share_text(value).removesuffix(" %")
