"""Units as ranges, which is how people look at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from partsum.shared.messages import Part

Ranges = tuple[tuple[int, int], ...]
"""Sorted units as half-open ranges (first, one past the last)."""

_COLUMNS = 400  # a group in more pieces than this is sampled: pixels cannot show more


def unit_ranges(units: Iterable[int]) -> Ranges:
    """Sorted units as half-open ranges: (0, 1, 2, 7) becomes ((0, 3), (7, 8))."""
    ranges: list[tuple[int, int]] = []
    for unit in units:
        if ranges and ranges[-1][1] == unit:
            ranges[-1] = (ranges[-1][0], unit + 1)
        else:
            ranges.append((unit, unit + 1))
    return tuple(ranges)


def part_picture(part: Part) -> dict[str, Ranges]:
    """A part as the summary shows it."""
    return {name: unit_ranges(units) for name, units in part.units.items()}


def visible_ranges(ranges: Ranges, units: int) -> Iterator[tuple[int, int]]:
    """The ranges, or where they are too many the columns of a raster whose middle they hold."""
    if len(ranges) <= _COLUMNS / 4:
        yield from ranges
        return
    edges = [round(units * k / _COLUMNS) for k in range(_COLUMNS + 1)]
    waiting = iter(ranges)
    start, end = next(waiting)
    for first, last in pairwise(edges):
        middle = (first + last) // 2
        while end <= middle:
            start, end = next(waiting, (units, units + 1))
        if start <= middle and last > first:
            yield first, last
