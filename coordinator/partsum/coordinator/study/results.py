"""What came of a study: a row for each model, means over seeds, and the CSV of them."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any, get_args

from pydantic import TypeAdapter

from partsum.shared.config.study import Selection, Start


@dataclass(frozen=True)
class Row:
    """One model of a study. What was not measured is None, and of a model that failed all is."""

    start: str  # base, scratch, rewound, tuned
    selection: str  # empty: it makes no difference
    keep: float
    data: float
    seed: int
    parameters: int
    flops: int  # of all its training, forward and backward; an estimate
    samples: int  # that it was trained on, passes counted
    cut_accuracy: float | None  # as it was cut from its base, before any training
    loss: float | None  # on validation data
    accuracy: float | None  # on validation data
    model: str  # its file in the run's folder
    train_seconds: float | None  # the only column that another run does not have again


_ROWS = TypeAdapter(list[Row])


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as the journal keeps them."""
    return [asdict(row) for row in rows]


def from_json(values: object) -> list[Row]:
    """Rows out of the journal."""
    return _ROWS.validate_python(values)


def csv_text(rows: Iterable[Row]) -> str:
    """All rows, one a line; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


@dataclass(frozen=True)
class Mean:
    """Rows that differ in their seed alone. Figures are means over those that were measured."""

    row: Row  # seed and file are the first one's
    count: int  # of rows
    measured: int  # of rows with an accuracy or a loss
    spread: float | None  # sample standard deviation of the accuracy


def means(rows: Sequence[Row]) -> list[Mean]:
    """Rows over their seeds, in order of first sight."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.start, row.selection, row.data, row.keep), []).append(row)
    return [_mean(group) for group in groups.values()]


def _mean(rows: Sequence[Row]) -> Mean:
    names = ("cut_accuracy", "loss", "accuracy", "train_seconds")
    known = {name: _known(getattr(row, name) for row in rows) for name in names}
    averages: Mapping[str, Any] = {
        name: statistics.fmean(values) if values else None for name, values in known.items()
    }
    scored = known["accuracy"]
    spread = statistics.stdev(scored) if len(scored) > 1 else None
    measured = max(len(scored), len(known["loss"]))
    return Mean(replace(rows[0], **averages), len(rows), measured, spread)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


_STARTS = ("base", *get_args(Start))
_SELECTIONS = ("", *get_args(Selection))


def in_order(rows: Iterable[Row]) -> list[Row]:
    """As people read them: by start, data, width, selection, seed."""
    return sorted(
        rows,
        key=lambda row: (
            _STARTS.index(row.start),
            -row.data,
            -row.keep,
            _SELECTIONS.index(row.selection),
            row.seed,
        ),
    )
