"""Updates into the base, tensor by tensor: the general merge of overlapping or disjoint parts.

Where parts overlap, elements are means weighted by samples (FedAvg, 1602.05629; by element for
parts of different width, HeteroFL, 2010.01264); where they are disjoint they are scattered (IST,
1910.02120). A tensor of a branch that some parts skip is a matter of the others alone. Memory is a
few times the largest tensor, whatever the number of updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from partsum.coordinator.contribution import Contribution as Contribution
from partsum.coordinator.contribution import Readable as Readable
from partsum.coordinator.contribution import Tensors as Tensors
from partsum.coordinator.contribution import rows_of
from partsum.coordinator.strategies.blocks import Where, held_rows, row_blocks
from partsum.coordinator.strategies.middle import merge_middle
from partsum.shared.part import Part, absent, index_map, region
from partsum.shared.spares import Spares
from partsum.shared.tensors import TensorFile, TensorWriter
from partsum.shared.width import Widths


@dataclass(frozen=True)
class MergeRule:
    """What happens to elements that no part holds, and to the readouts.

    Mode block: zero (random cross blocks left in make the hand-off collapse, measured 87 -> 46 %),
    and readouts weighed so that the merged output is the parts' weighted mean. Otherwise the old
    value is kept and nothing is weighed. With a ``cut``, elements that several parts hold become
    the middle of what these say (see `middle`), in place of their mean.
    """

    unseen: Literal["keep", "zero"] = "keep"
    weigh_readouts: bool = False
    cut: int | None = None


_BLOCK_BYTES = 2 << 20  # stays in the processor's cache, and no page is touched for the first time

BLOCK = MergeRule("zero", weigh_readouts=True)
AVERAGE = MergeRule()


class Merging(Protocol):
    """Gives a base's tensors their new values, one by one."""

    def merge(self, name: str, old: Tensor) -> Tensor:
        """The merged tensor of that name; ``old`` is the base's, and is not changed."""
        ...


class Merger:
    """Merges one set of contributions, tensor by tensor."""

    def __init__(
        self,
        widths: Widths,
        contributions: Sequence[Contribution],
        rule: MergeRule,
        block_bytes: int = _BLOCK_BYTES,
    ) -> None:
        total = sum(c.weight for c in contributions)
        if total <= 0:
            raise ValueError("nothing to merge: no contribution has a weight above zero")
        self._shares = [_Share(c, widths, c.weight / total) for c in contributions]
        self._disjoint = are_disjoint([c.part for c in contributions])
        slots = (slot for group in widths.groups for slot in group.slots)
        self._partly_shared = {slot.tensor for slot in slots if slot.size is not None}
        self._widths = widths
        self._rule = rule
        self._block_bytes = block_bytes

    def merge(self, name: str, old: Tensor) -> Tensor:
        """The merged tensor of that name; ``old`` is the base's, and is not changed.

        Identical contributions give exactly their value, bit for bit, whatever their weights.
        Integer and bool tensors (counters, masks) take the largest value seen.
        """
        carriers = [share for share in self._shares if name not in share.absent]
        cut = any(name in share.kept for share in carriers)
        if name in self._widths.scales and any(share.part.units for share in carriers):
            return old
        if not carriers:
            return old
        forget = cut and self._rule.unseen == "zero"
        disjoint = cut and self._disjoint and name not in self._partly_shared
        if not old.is_floating_point():
            return _largest(name, torch.zeros_like(old) if forget else old.clone(), carriers)
        if self._rule.cut is not None and not disjoint:
            origins = [share.origin for share in carriers]
            kept = [share.kept for share in carriers]
            return merge_middle(name, old, origins, kept, self._rule.cut)
        merged = torch.empty_like(old)
        old_rows, merged_rows = rows_of(old), rows_of(merged)
        row_bytes = 4 * math.prod(old_rows.shape[1:])
        for rows in row_blocks(old.shape, row_bytes, self._block_bytes):
            start = old_rows[rows]
            block = torch.zeros_like(start) if forget else start.clone()
            held = _held(name, block, rows.start, carriers)
            if disjoint:
                self._scatter(name, block, held)
            elif cut:
                block = _uneven_mean(block, held)
            else:
                block = _mean(block, held)
            merged_rows[rows] = block
        return merged

    def _scatter(self, name: str, block: Tensor, held: _Held) -> None:
        weigh = self._rule.weigh_readouts and name in self._widths.readouts
        for value, where, weight in held:
            block[where] = (value * weight if weigh else value).to(block.dtype)


class _Share:
    """A contribution, where its tensors belong, and how much it counts of the whole."""

    def __init__(self, origin: Contribution, widths: Widths, weight: float) -> None:
        self.origin = origin
        self.part = origin.part
        self.tensors = origin.tensors
        self.weight = weight
        self.kept = index_map(widths, origin.part)
        self.absent = absent(widths, origin.part)


_Held = Iterator[tuple[Tensor, Where, float]]


def _held(name: str, block: Tensor, first: int, carriers: Sequence[_Share]) -> _Held:
    """What each part that counts holds of a block of rows: values, where, and their weight."""
    for share in carriers:
        found = held_rows(share.tensors, name, share.kept.get(name, {}), block, first)
        if found is not None:
            yield *found, share.weight


def _mean(block: Tensor, held: _Held) -> Tensor:
    """A running weighted mean: m += (x - m) w / W, which leaves m as it is where x == m."""
    wide = torch.promote_types(block.dtype, torch.float32)
    merged, seen = block.to(wide), 0.0
    for value, _, weight in held:
        if weight == 0:
            continue
        seen += weight
        if seen == weight:  # what was there must not count, be it nan
            merged.copy_(value)
        else:
            merged.lerp_(value.to(wide), weight / seen)
    return merged


def _uneven_mean(block: Tensor, held: _Held) -> Tensor:
    """The same where elements are held by different sets of parts."""
    wide = torch.promote_types(block.dtype, torch.float32)
    merged = block.to(wide)
    seen = torch.zeros(merged.shape, dtype=wide)
    for value, where, weight in held:
        if weight == 0:
            continue
        fresh = seen[where] == 0
        seen[where] += weight
        mean = torch.lerp(merged[where], value.to(wide), weight / seen[where])
        merged[where] = torch.where(fresh, value.to(wide), mean)
    return merged


def _largest(name: str, merged: Tensor, carriers: Sequence[_Share]) -> Tensor:
    for share in carriers:
        where = region(merged, share.kept.get(name, {}))
        merged[where] = torch.maximum(merged[where], share.tensors.read(name))
    return merged


def are_disjoint(parts: Sequence[Part]) -> bool:
    """Whether no unit of any group is kept by two of the parts."""
    for name in {name for part in parts for name in part.units}:
        units = [unit for part in parts for unit in part.units.get(name, ())]
        if len(units) != len(set(units)) or any(name not in part.units for part in parts):
            return False
    return True


def merge_files(
    base: Path,
    contributions: Sequence[Contribution],
    widths: Widths,
    rule: MergeRule,
    out: Path,
    metadata: Mapping[str, str],
    durable: bool = True,
) -> str:
    """Merge into a new base file; returns its digest. The old file is not changed."""
    return write_merged(base, Merger(widths, contributions, rule), out, metadata, durable)


def write_merged(
    base: Path,
    merger: Merging,
    out: Path,
    metadata: Mapping[str, str],
    durable: bool = True,
    spares: Spares | None = None,
) -> str:
    """Write what a merger makes of a base to a new file; returns its digest."""
    with TensorFile(base) as old:
        shapes = {name: (info.dtype, info.shape) for name, info in old.tensors.items()}
        writer = TensorWriter(out, shapes, metadata, spares)
        try:
            with ThreadPoolExecutor(1, "merged") as pen:  # merges one tensor, writes the one before
                written: Future[None] | None = None
                for name in writer.order:
                    merged = merger.merge(name, old.read(name))
                    if written is not None:
                        written.result()
                    written = pen.submit(writer.write, name, merged, durable)
                if written is not None:
                    written.result()
            return writer.commit(durable)
        except BaseException:
            writer.abandon()
            raise


def merge_state(
    old: Mapping[str, Tensor],
    contributions: Sequence[Contribution],
    widths: Widths,
    rule: MergeRule,
) -> dict[str, Tensor]:
    """The same merge for state dicts in memory."""
    merger = Merger(widths, contributions, rule)
    return {name: merger.merge(name, tensor) for name, tensor in old.items()}
