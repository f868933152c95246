"""A gang's messages: protobuf to plain values and back."""

from __future__ import annotations

import math

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import limits
from partsum.shared.errors import WireError
from partsum.shared.messages import Backend, GangPlace
from partsum.shared.wire_part import part_from_wire, part_to_wire

_BACKENDS: dict[Backend, pb.GangBackend.ValueType] = {
    "gloo": pb.GANG_BACKEND_GLOO,
    "nccl": pb.GANG_BACKEND_NCCL,
}


def place_to_wire(place: GangPlace) -> pb.GangPlace:
    """A GangPlace as protobuf."""
    return pb.GangPlace(
        id=place.id,
        rank=place.rank,
        parts=map(part_to_wire, place.parts),
        backend=_BACKENDS[place.backend],
        secret=place.secret,
        timeout_seconds=place.timeout_seconds,
    )


def place_from_wire(place: pb.GangPlace) -> GangPlace:
    """Raises WireError where a field cannot be what it says."""
    size = limits.within(len(place.parts), 1, limits.MEMBERS, "the number of a gang's members")
    names = {number: name for name, number in _BACKENDS.items()}
    if place.backend not in names:
        raise WireError(f"backend {place.backend} of a gang is not known; update partsum here")
    return GangPlace(
        id=limits.short(place.id, "a gang's name"),
        rank=limits.within(place.rank, 0, size - 1, "a rank"),
        parts=tuple(map(part_from_wire, place.parts)),
        backend=names[place.backend],
        secret=limits.short(place.secret, "a gang's secret"),
        timeout_seconds=limits.within(place.timeout_seconds, 0, math.inf, "timeout_seconds"),
    )
