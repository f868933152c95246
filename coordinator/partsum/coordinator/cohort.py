"""Updates beside each other: whose change stands out so far that it is not merged. Pure.

What is compared is the root mean square change of a weight, not the whole change's norm: parts of
different width have different numbers of weights, and under AdamW a weight moves by about the
learning rate at each step whatever the width. (Digits, an MLP cut into 70, 10, 10 and 10 %: norms
0.63, 0.25, 0.19, 0.22; root mean squares 0.0062, 0.0086, 0.0065, 0.0075; one seed.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WITNESSES = 2  # to compare one update with: beside a single other, nobody knows which is wrong
_FEW = 3


@dataclass(frozen=True)
class Change:
    """How far an update lies from where its training started, its moments aside."""

    norm: float  # L2, over all floating-point tensors
    weights: int  # how many elements these have
    tensor: str  # the one whose change is the longest

    @property
    def mean(self) -> float:
        """The root mean square change of a weight."""
        return self.norm / math.sqrt(max(1, self.weights))


@dataclass(frozen=True)
class Outlier:
    """An update that is not to be merged, and why in words."""

    part: int
    reason: str


def outliers(changes: Mapping[int, Change], before: Sequence[float], bound: float) -> list[Outlier]:
    """The updates of a round (by part) that changed more than ``bound`` times their cohort.

    An update's cohort is the round's other updates and, where fewer than three are in, ``before``:
    the mean changes of updates merged in the last rounds. The worst is taken out first and the
    others are looked at again without it, so that two bad ones do not hide each other. Nothing
    stands out of a cohort of one, nor of one whose median did not change at all.
    """
    left = {part: change.mean for part, change in changes.items()}
    elders = list(before) if len(left) < _FEW else []
    found: list[Outlier] = []
    while bound and left:
        part = max(sorted(left), key=lambda part: left[part])
        cohort = [mean for other, mean in left.items() if other != part] + elders
        usual = statistics.median(cohort) if len(cohort) >= _WITNESSES else 0.0
        if usual == 0 or left[part] <= bound * usual:
            break
        found.append(Outlier(part, _reason(changes[part], usual, bound)))
        del left[part]
    return found


def _reason(change: Change, usual: float, bound: float) -> str:
    return (
        f"it changed {change.mean / usual:.3g} times as much as the median of its cohort "
        f"({change.mean:.3g} a weight against {usual:.3g}, root mean square), tensor "
        f"{change.tensor!r} most of all; merge.norm_bound lets {bound:g} times pass"
    )
