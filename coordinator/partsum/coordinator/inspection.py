"""What there is to know of a model before it is cut: groups, gates, costs, the certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from partsum.coordinator.base import Base
from partsum.coordinator.cost import part_size
from partsum.coordinator.gate_table import GateRow, gate_rows
from partsum.coordinator.invariants import certify
from partsum.coordinator.planner import equal_fractions
from partsum.coordinator.planner.complement import block_parts, residual_refusal
from partsum.shared.errors import DataError, WidthError
from partsum.shared.part import WHOLE, Part
from partsum.shared.task import Samples
from partsum.shared.width import Widths

Cover = Literal["hidden", "stream", "whole"]
Outcome = Literal["passed", "failed", "refused", "not run"]


@dataclass(frozen=True)
class CutView:
    """A dimension of a tensor that a group cuts: ``block`` indices a unit, at every offset.

    ``span`` is how many indices all units own together at one offset.
    """

    group: str
    dim: int
    block: int
    span: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class TensorView:
    """A tensor of the model's state. ``cover`` is "hidden" where any hidden group cuts it.

    ``reason`` says why it, or one of its dimensions, stays whole; "" where nothing needs saying.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    is_parameter: bool
    cuts: tuple[CutView, ...]
    cover: Cover
    reason: str


@dataclass(frozen=True)
class GroupView:
    """A width group: its tensors by name, and the attributes ``module.name`` that are mended."""

    name: str
    units: int
    depth: Literal["hidden", "stream"]
    tensors: tuple[str, ...]
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class DepthView:
    """What cutting to a depth means for one of equal parts.

    ``depth`` "hidden" leaves the stream whole, as mode residual does; "all" cuts every group, as
    mode block does. Sizes are those of the first part, None where there can be none; ``said`` is
    the certificate's outcome in words.
    """

    depth: Literal["hidden", "all"]
    parameters: int | None
    state_bytes: int | None
    outcome: Outcome
    said: str


@dataclass(frozen=True)
class Inspection:
    """All that `partsum inspect` shows."""

    task: str
    model: str
    parts: int
    parameters: int
    state_bytes: int
    covered: dict[Cover, int]
    groups: tuple[GroupView, ...]
    tensors: tuple[TensorView, ...]
    readouts: tuple[str, ...]
    scales: tuple[str, ...]
    gates: tuple[GateRow, ...]
    depths: tuple[DepthView, ...]
    block_refusal: str
    residual_refusal: str


def inspect_base(
    base: Base, task: str, parts: int, probe: Callable[[], Samples] | None
) -> Inspection:
    """Look at a task's model, cut into so many equal parts.

    ``probe`` gives the samples for the certificate; without it nothing but shapes is looked at.
    """
    widths = base.widths
    tensors = tensor_views(base)
    covered: dict[Cover, int] = {"hidden": 0, "stream": 0, "whole": 0}
    for tensor in tensors:
        if tensor.is_parameter:
            covered[tensor.cover] += tensor.numel
    size = part_size(base.shape, widths, WHOLE)
    groups = tuple(
        GroupView(
            group.name,
            group.units,
            group.depth,
            tuple(dict.fromkeys(slot.tensor for slot in group.slots)),
            tuple(f"{count.module}.{count.attribute}".lstrip(".") for count in group.counts),
        )
        for group in widths.groups
    )
    hidden = Widths(tuple(group for group in widths.groups if group.depth == "hidden"))
    return Inspection(
        task=task,
        model=type(base.shape).__name__,
        parts=parts,
        parameters=size.parameters,
        state_bytes=size.state_bytes,
        covered=covered,
        groups=groups,
        tensors=tensors,
        readouts=widths.readouts,
        scales=widths.scales,
        gates=tuple(gate_rows(base)),
        depths=(
            _depth_view(base, "hidden", hidden, parts, probe),
            _depth_view(base, "all", widths, parts, probe),
        ),
        block_refusal=widths.block_refusal,
        residual_refusal=residual_refusal(widths),
    )


def tensor_views(base: Base) -> tuple[TensorView, ...]:
    """Every tensor of the model's state, in its order; a tied one under its first name."""
    cuts: dict[str, list[CutView]] = {}
    covers: dict[str, Cover] = {}
    for group in base.widths.groups:
        for slot in group.slots:
            cut = CutView(group.name, slot.dim, slot.block, slot.block * group.units, slot.offsets)
            cuts.setdefault(slot.tensor, []).append(cut)
            if covers.get(slot.tensor) != "hidden":
                covers[slot.tensor] = group.depth
    reasons = {item.tensor: item.reason for item in base.widths.left_out}
    parameters = dict(base.shape.named_parameters())
    tensors = parameters | dict(base.shape.named_buffers())
    return tuple(
        TensorView(
            name,
            tuple(tensors[name].shape),
            tensors[name].numel(),
            name in parameters,
            tuple(cuts.get(name, ())),
            covers.get(name, "whole"),
            reasons.get(name, ""),
        )
        for name in base.shape.state_dict()
        if name in tensors
    )


def _depth_view(
    base: Base,
    depth: Literal["hidden", "all"],
    widths: Widths,
    count: int,
    probe: Callable[[], Samples] | None,
) -> DepthView:
    if not widths.groups:
        return DepthView(depth, None, None, "refused", "there is no hidden group")
    try:
        parts = block_parts(widths, equal_fractions(count))
    except WidthError as error:
        return DepthView(depth, None, None, "refused", str(error))
    size = part_size(base.shape, base.widths, parts[0])
    outcome, said = _certified(base, parts, depth == "all", probe)
    return DepthView(depth, size.parameters, size.state_bytes, outcome, said)


def _certified(
    base: Base, parts: list[Part], block: bool, probe: Callable[[], Samples] | None
) -> tuple[Outcome, str]:
    if probe is None:
        return "not run", "only shapes were looked at"
    try:
        samples = probe()
    except DataError as error:
        return "not run", str(error)
    try:
        certify(base, parts, block, samples)
    except WidthError as error:
        return "failed", str(error)
    same = "a cut model computes what the whole one does with the other units at zero"
    merged = ", and merged parts compute their mean" if block else ""
    return "passed", same + merged
