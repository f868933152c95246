"""Mode copies: the base is made of copies of one slice, which all nodes train together.

"Small first, then grow": of what complementary parts gain early, most comes from training narrow
models, not from training different ones (docs/lab-notes.md). The copies differ by a little noise
once they are handed off, as clones that are alike would stay alike (Net2Net, 1511.05641; Deep
Fusion, 2306.11903, fuses trained small models block by block).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import xxhash
from torch import Tensor

from partsum.coordinator.clones import with_noise
from partsum.coordinator.merge import Merging
from partsum.shared.part import Part, cut_tensors, index_map, region, take
from partsum.shared.width import Widths

_NOISE = 0.1  # of each matrix's spread (not studied carefully)


class CopyMerger:
    """Puts what another merger makes of the first slice into every slice's place.

    Between slices there is nothing, and readouts are divided among them: the base computes what the
    slice computes. ``seed`` makes the copies differ; None leaves them alike.
    """

    def __init__(
        self, inner: Merging, widths: Widths, slices: Sequence[Part], seed: int | None
    ) -> None:
        self._inner = inner
        self._readouts = widths.readouts
        self._maps = [index_map(widths, part) for part in slices]
        self._seed = seed

    def merge(self, name: str, old: Tensor) -> Tensor:
        """The merged tensor of that name; ``old`` is the base's, and is not changed."""
        merged = self._inner.merge(name, old)
        if name not in self._maps[0]:
            return merged
        own = take(merged, self._maps[0][name])
        if name in self._readouts:
            own = own / len(self._maps)
        noise = torch.Generator().manual_seed(self._noise_seed(name))
        copies = torch.zeros_like(merged)
        for kept in self._maps:
            copies[region(copies, kept[name])] = self._noisy(own, noise)
        return copies

    def _noise_seed(self, name: str) -> int:
        return xxhash.xxh3_64_intdigest(f"{self._seed}/{name}".encode()) >> 1

    def _noisy(self, own: Tensor, noise: torch.Generator) -> Tensor:
        return own if self._seed is None else with_noise(own, _NOISE, noise)


def own_slice(
    base: Mapping[str, Tensor], widths: Widths, part: Part, count: int
) -> dict[str, Tensor]:
    """The slice that a base is made of so many copies of; ``part`` is the first of them."""
    cut = cut_tensors(base, widths, part)
    for name in widths.readouts:
        cut[name] = cut[name] * count
    return cut
