"""A model's gates as rows of a table: what each is, and what a part saves without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from partsum.coordinator.base import Base
from partsum.coordinator.cost import part_size
from partsum.shared.gates import partial_gates
from partsum.shared.part import WHOLE, Part


@dataclass(frozen=True)
class GateRow:
    """A gate. ``modules`` are those that leave with it, or the layers whose sum it is in."""

    name: str
    kind: Literal["residual", "partial"]
    modules: tuple[str, ...]
    parameters: int  # that a part without it lacks; a partial-sum gate saves none


def gate_rows(base: Base, splits: int = 2) -> Iterator[GateRow]:
    """All residual gates, then the partial-sum gates of layers in so many slices."""
    whole = part_size(base.shape, base.widths, WHOLE).parameters
    for gate in base.widths.gates:
        left = part_size(base.shape, base.widths, Part(gates={gate.name: False})).parameters
        paths = tuple(skip.path for skip in gate.skips)
        yield GateRow(gate.name, "residual", paths, whole - left)
    for partial in partial_gates(base.shape, base.widths, splits):
        yield GateRow(partial.name, "partial", (partial.group,), 0)
