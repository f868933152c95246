"""Units as ranges, which is how people look at them."""

from __future__ import annotations

from collections.abc import Iterable

from partsum.shared.messages import Part

Ranges = tuple[tuple[int, int], ...]
"""Sorted units as half-open ranges (first, one past the last)."""


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
