"""Rules against attacks as a picture: one square for each, coloured by accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.picture import picture
from benchmarks.robust.cluster import Outcome

Cells = Mapping[tuple[str, str], Sequence[Outcome]]


def draw(
    drawn: Sequence[tuple[str, Cells]], rules: Sequence[str], attacks: Sequence[str], path: Path
) -> None:
    """Write a PNG: a map for each data set, with the mean accuracy over seeds in each square."""
    with picture(path, columns=len(drawn), width=7.5, height=5) as axes:
        for axis, (name, cells) in zip(axes, drawn, strict=True):
            shown = [[100 * fmean(o.accuracy for o in cells[r, a]) for a in attacks] for r in rules]
            axis.imshow(shown, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
            for y, row in enumerate(shown):
                for x, accuracy in enumerate(row):
                    axis.text(x, y, f"{accuracy:.1f}", ha="center", va="center", fontsize=9)
            axis.set_xticks(range(len(attacks)), attacks, rotation=20)
            axis.set_yticks(range(len(rules)), rules)
            axis.set_title(f"{name} data: accuracy with 1 hostile node of 5, %")
