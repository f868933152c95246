"""A Part as protobuf and back."""

from __future__ import annotations

from collections.abc import Iterable

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import limits
from partsum.shared.errors import WireError
from partsum.shared.messages import Part


def _ranges(units: Iterable[int]) -> pb.UnitRanges:
    ranges = pb.UnitRanges()
    for unit in units:
        if ranges.ends and ranges.ends[-1] == unit:
            ranges.ends[-1] = unit + 1
        else:
            ranges.starts.append(unit)
            ranges.ends.append(unit + 1)
    return ranges


def part_to_wire(part: Part) -> pb.Part:
    """A Part as protobuf."""
    units = {name: _ranges(units) for name, units in part.units.items()}
    return pb.Part(units=units, gates=part.gates)


def part_from_wire(part: pb.Part) -> Part:
    """Raises WireError where ranges are empty, overlap or are out of order, or all are too many.

    Units are counted before the first is written out: a message of 60 B can name 16 million.
    """
    limits.within(len(part.units), 0, limits.GROUPS, "the number of a part's width groups")
    total = sum(_count_units(name, ranges) for name, ranges in part.units.items())
    limits.within(total, 0, limits.UNITS, "the number of a part's units")
    limits.within(len(part.gates), 0, limits.GATES, "the number of a part's gates")
    return Part(
        units={
            name: tuple(u for s, e in zip(r.starts, r.ends, strict=True) for u in range(s, e))
            for name, r in part.units.items()
        },
        gates={limits.short(name, "a gate's name"): on for name, on in part.gates.items()},
    )


def _count_units(name: str, ranges: pb.UnitRanges) -> int:
    limits.short(name, "a width group's name")
    if not ranges.starts or len(ranges.starts) != len(ranges.ends):
        raise WireError(f"the units of width group {name!r} are not a list of ranges")
    last = total = 0
    for start, end in zip(ranges.starts, ranges.ends, strict=True):
        if start < last or end <= start or end > limits.UNITS:
            raise WireError(f"units [{start}, {end}) of width group {name!r} are out of order")
        last, total = end, total + end - start
    return total
