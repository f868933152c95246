"""What a dropout study trains: its cells. Pure: the config's lists in, cells out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from partsum.shared.config import StudyConfig
from partsum.shared.config.study import Selection, Start


@dataclass(frozen=True)
class Cell:
    """One small model of the sweep. ``selection`` is None where it makes no difference.

    That is where all units are kept, and from scratch: which units a fresh model was cut to cannot
    be seen in it.
    """

    start: Start
    selection: Selection | None
    keep: float
    data: float
    seed: int


def cells(study: StudyConfig) -> tuple[Cell, ...]:
    """Every different small model, the widest first: the longest training should not begin last."""
    found = (
        Cell(start, _choice(start, selection, keep), keep, data, seed)
        for keep in sorted(study.keep, reverse=True)
        for data, start, selection, seed in product(
            study.data, study.starts, study.selections, study.seeds
        )
    )
    return tuple(dict.fromkeys(found))


def _choice(start: Start, selection: Selection, keep: float) -> Selection | None:
    return None if start == "scratch" or keep == 1 else selection


def draws(study: StudyConfig) -> tuple[tuple[float, int], ...]:
    """The (share, seed) of every set of training data: all of it for each base, then the cells'."""
    bases = ((1.0, seed) for seed in study.seeds if study.trains_bases)
    return tuple(dict.fromkeys((*bases, *((cell.data, cell.seed) for cell in cells(study)))))
