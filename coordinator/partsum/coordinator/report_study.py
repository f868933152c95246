"""The report on a dropout study: its picture, and a line for each kind of model."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from partsum.coordinator.figures import count_text, loss_text, seconds_text, share_text
from partsum.coordinator.report_svg import element
from partsum.coordinator.report_tables import folded, table
from partsum.coordinator.study.chart import study_svg
from partsum.coordinator.study.results import Mean, Row, means
from partsum.coordinator.study.table import NAMES

_HEADS = (
    "start", "units", "keep", "data", "parameters", "GFLOP", "time", "cut", "accuracy", "loss",
)  # fmt: skip


def study_section(rows: Sequence[Row]) -> str:
    """What a study found; nothing where the run was none."""
    if not rows:
        return ""
    found = means(rows)
    lost = sum(mean.count - mean.measured for mean in found)
    note = "GFLOP and time are of a model's training on its node; cut is the accuracy before it."
    if lost:
        note += f" {lost} of {len(rows)} models have no figures: they failed, or diverged."
    # An image of its own: the picture's styles must not reach the page's other drawings.
    data = base64.b64encode(study_svg(rows).encode()).decode()
    drawn = element(
        "img",
        src=f"data:image/svg+xml;base64,{data}",
        alt="Accuracy of the study's models against parameters, FLOPs and time",
        style="width:100%",
    ).replace("></img>", "/>")
    return (
        element("h2", "Dropout study")
        + element("p", note, class_="note")
        + drawn
        + folded(len(found), "kinds of models", table(_HEADS, map(_cells, found), words=(1,)))
    )


def _cells(mean: Mean) -> tuple[str, ...]:
    row = mean.row
    spread = "" if mean.spread is None else f" ± {100 * mean.spread:.2f}"
    return (
        row.start,
        NAMES.get(row.selection, row.selection),
        f"{100 * row.keep:.4g} %",
        f"{100 * row.data:.4g} %",
        count_text(row.parameters),
        f"{row.flops / 1e9:.3g}",
        seconds_text(row.train_seconds),
        share_text(row.cut_accuracy),
        share_text(row.accuracy) + spread,
        loss_text(row.loss),
    )
