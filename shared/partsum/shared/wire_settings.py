"""How to train, in protobuf and back; `wire` is the door to it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Literal, TypeVar

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import limits
from partsum.shared import messages as m
from partsum.shared.errors import WireError

Name = TypeVar("Name", bound=str)

_PRECISIONS: dict[Literal["float32", "bfloat16"], pb.Precision.ValueType] = {
    "float32": pb.PRECISION_FLOAT32,
    "bfloat16": pb.PRECISION_BFLOAT16,
}
_AGGREGATES: dict[Literal["weights", "gradients"], pb.Aggregate.ValueType] = {
    "weights": pb.AGGREGATE_WEIGHTS,
    "gradients": pb.AGGREGATE_GRADIENTS,
}
ENCODING_NUMBERS: dict[m.Encoding, pb.Encoding.ValueType] = {
    "float32": pb.ENCODING_FLOAT32,
    "bfloat16": pb.ENCODING_BFLOAT16,
    "int8": pb.ENCODING_INT8,
}


def known(table: Mapping[Name, int], value: int, what: str) -> Name:
    """The name of an enum's value. Raises WireError for one of another version."""
    for name, number in table.items():
        if number == value:
            return name
    raise WireError(f"this version does not know {what} {value}; update the older side")


def settings_to_wire(settings: m.TrainSettings) -> pb.TrainSettings:
    """TrainSettings as protobuf."""
    return pb.TrainSettings(
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        width_lr_power=settings.width_lr_power,
        weight_decay=settings.weight_decay,
        beta1=settings.betas[0],
        beta2=settings.betas[1],
        gradient_clip=settings.gradient_clip,
        warmup=settings.warmup,
        precision=_PRECISIONS[settings.precision],
        aggregate=_AGGREGATES[settings.aggregate],
        deterministic=settings.deterministic,
        carry_moments=settings.carry_moments,
        proximal=settings.proximal,
        keep_moments=settings.keep_moments,
        encoding=ENCODING_NUMBERS[settings.encoding],
        regularisation=_regularisation_to_wire(settings.regularisation),
    )


def settings_from_wire(settings: pb.TrainSettings) -> m.TrainSettings:
    """Raises WireError for a number that none of them can be, and an enum value of other versions.

    As in the config, which has the finer bounds, nothing is negative, infinite or NaN.
    """
    largest = sys.float_info.max
    return m.TrainSettings(
        batch_size=limits.within(settings.batch_size, 1, limits.BATCH_SIZE, "batch_size"),
        learning_rate=limits.within(settings.learning_rate, 0, largest, "learning_rate"),
        width_lr_power=limits.within(settings.width_lr_power, 0, largest, "width_lr_power"),
        weight_decay=limits.within(settings.weight_decay, 0, largest, "weight_decay"),
        betas=(
            limits.within(settings.beta1, 0, 1, "beta1"),
            limits.within(settings.beta2, 0, 1, "beta2"),
        ),
        gradient_clip=limits.within(settings.gradient_clip, 0, largest, "gradient_clip"),
        warmup=limits.within(settings.warmup, 0, 1, "warmup"),
        precision=known(_PRECISIONS, settings.precision, "precision"),
        aggregate=known(_AGGREGATES, settings.aggregate, "aggregate"),
        deterministic=settings.deterministic,
        carry_moments=settings.carry_moments,
        proximal=limits.within(settings.proximal, 0, largest, "proximal"),
        keep_moments=settings.keep_moments,
        encoding=known(ENCODING_NUMBERS, settings.encoding or pb.ENCODING_FLOAT32, "encoding"),
        regularisation=_regularisation_from_wire(settings),
    )


def _regularisation_to_wire(r: m.Regularisation) -> pb.Regularisation:
    return pb.Regularisation(
        survival=r.survival,
        constant=r.schedule == "constant",
        gates_on=r.gates_on,
        splits=r.splits,
    )


def _regularisation_from_wire(settings: pb.TrainSettings) -> m.Regularisation:
    if not settings.HasField("regularisation"):
        return m.Regularisation()
    r = settings.regularisation
    if r.survival == 0:
        raise WireError("survival is 0: no branch would ever be trained")
    return m.Regularisation(
        survival=limits.within(r.survival, 0, 1, "survival"),
        schedule="constant" if r.constant else "linear",
        gates_on=limits.within(r.gates_on, 0, 1, "gates_on"),
        splits=limits.within(r.splits, 2, limits.SPLITS, "splits"),
    )
