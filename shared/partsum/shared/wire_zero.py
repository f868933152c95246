"""A stretch of the hand-off in protobuf and back; `wire` is the door to it."""

from __future__ import annotations

from typing import Literal

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import limits
from partsum.shared import messages as m
from partsum.shared.errors import WireError
from partsum.shared.wire_part import part_from_wire, part_to_wire
from partsum.shared.wire_settings import known

_STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
_WAYS: dict[m.ZeroWay, pb.ZeroWay.ValueType] = {
    "apart": pb.ZERO_WAY_APART,
    "together": pb.ZERO_WAY_TOGETHER,
    "pipeline": pb.ZERO_WAY_PIPELINE,
}


def zero_to_wire(zero: m.ZeroWork) -> pb.ZeroWork:
    """A ZeroWork as protobuf."""
    return pb.ZeroWork(
        way=_WAYS[zero.way],
        stage=zero.stage,
        offload=zero.offload,
        micro_batches=zero.micro_batches,
        first_step=zero.first_step,
        steps=zero.steps,
        total_steps=zero.total_steps,
        share=zero.share,
        norm_parts=[part_to_wire(part) for part in zero.norm_parts],
        own_data=zero.own_data,
        start_before=zero.start_before,
    )


def zero_from_wire(zero: pb.ZeroWork) -> m.ZeroWork:
    """Raises WireError for a number that none of them can be, and a way of other versions."""
    total = limits.within(zero.total_steps, 1, limits.COUNT, "total_steps")
    first = limits.within(zero.first_step, 0, total - 1, "first_step")
    limits.within(len(zero.norm_parts), 0, limits.GATES, "the number of parts that norms keep to")
    return m.ZeroWork(
        way=known(_WAYS, zero.way, "way of the hand-off"),
        stage=_stage(zero.stage),
        offload=zero.offload,
        micro_batches=limits.within(zero.micro_batches, 1, limits.BATCH_SIZE, "micro_batches"),
        first_step=first,
        steps=limits.within(zero.steps, 1, total - first, "steps"),
        total_steps=total,
        share=limits.within(zero.share, 0, 1, "share"),
        norm_parts=tuple(part_from_wire(part) for part in zero.norm_parts),
        own_data=zero.own_data,
        start_before=limits.short(zero.start_before, "the digest of an earlier start"),
    )


def _stage(number: int) -> Literal[0, 1, 2, 3]:
    for stage in _STAGES:
        if stage == number:
            return stage
    raise WireError(f"this version knows no ZeRO stage {number}")
