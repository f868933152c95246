"""The outer step: the merged updates say where to, an optimizer of the coordinator's how far.

Its moments lie beside the base that they belong to, so a restarted coordinator steps on as if
nothing had happened. They are read and written tensor by tensor, as the base is.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from partsum.coordinator.gradients import moments_path
from partsum.coordinator.merge import Merging, write_merged
from partsum.coordinator.strategies.optimizers import Optimizer
from partsum.shared.spares import Spares
from partsum.shared.tensors import TensorFile, TensorWriter

_BLOCK = 1 << 16  # elements at a time: in double precision all that is needed fits into a cache


class OuterStep:
    """Steps a base, and keeps the moments in the folder of the bases.

    ``trained`` names what training changes; all else is merged, and nothing more. The base goes
    ``factors`` times as far as the optimizer says (see `layers`), whose moments know nothing of it.
    Files of ``spares`` are written over, if there are any.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        trained: Set[str],
        folder: Path,
        spares: Spares | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._trained = trained
        self._folder = folder
        self._spares = spares
        self._factors = factors or {}

    def apply(
        self,
        old: Path,
        merger: Merging,
        out: Path,
        metadata: Mapping[str, str],
        round: int,
        anew: bool = False,
    ) -> str:
        """Write the stepped base, and the moments of the next step; returns the base's digest.

        ``anew``: whatever moments there are belong to another optimizer, or to another phase.
        """
        begun, ended = (moments_path(self._folder, version) for version in (round, round + 1))
        with ExitStack() as files:
            goes_on = begun.exists() and not anew
            before = files.enter_context(TensorFile(begun)) if goes_on else None
            after = TensorWriter(ended, self._shapes(old), spares=self._spares)
            try:
                stepped = Stepped(merger, self._optimizer, before, after, self._trained)
                merging = scaled(stepped, self._factors)
                digest = write_merged(old, merging, out, metadata, spares=self._spares)
                after.commit()
            except BaseException:
                after.abandon()
                raise
        return digest

    def _shapes(self, old: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Of the moments. In the base's dtypes they have the base's order."""
        layers = len(self._optimizer.fresh)
        with TensorFile(old) as base:
            return {
                name: (info.dtype, (layers, *info.shape))
                for name, info in base.tensors.items()
                if name in self._trained
            }


class Stepped:
    """A merger whose trained tensors take the outer step in place of their merged values.

    Elements that no part holds keep their value and their moments. Arithmetic is in double
    precision, so rate 1 without momentum gives the merged values, to the bit unless one is 2^28
    times smaller than the base's.
    """

    def __init__(
        self,
        inner: Merging,
        optimizer: Optimizer,
        before: TensorFile | None,
        after: TensorWriter,
        trained: Set[str],
    ) -> None:
        self._inner = inner
        self._optimizer = optimizer
        self._before = before
        self._after = after
        self._trained = trained

    def merge(self, name: str, old: Tensor) -> Tensor:
        """The stepped tensor of that name, whose moments are then written."""
        if name not in self._trained:
            return self._inner.merge(name, old)
        # What no part holds stays nan, which tells it from a change of zero.
        stepped = self._inner.merge(name, torch.full_like(old, torch.nan))
        moments = self._before.read(name) if self._before else self._fresh(old)
        layers = moments.view(len(moments), old.numel())
        for first in range(0, old.numel(), _BLOCK):
            block = slice(first, first + _BLOCK)
            self._step(old.view(-1)[block], stepped.view(-1)[block], layers[:, block])
        self._after.write(name, moments)
        return stepped

    def _fresh(self, old: Tensor) -> Tensor:
        return torch.stack([torch.full_like(old, value) for value in self._optimizer.fresh])

    def _step(self, old: Tensor, merged: Tensor, moments: Tensor) -> None:
        """Turn merged values into stepped ones, and the moments into the next step's."""
        change = merged.double() - old
        held = ~change.isnan()
        after = moments.to(torch.float64, copy=True)
        step = self._optimizer.step(change, after)
        merged.copy_(torch.where(held, old + step, old))
        moments.copy_(torch.where(held, after, moments))


def scaled(merger: Merging, factors: Mapping[str, float]) -> Merging:
    """The merger, its tensors scaled where a factor is not 1; else itself, which may go by rows."""
    return Scaled(merger, factors) if any(f != 1 for f in factors.values()) else merger


class Scaled:
    """A merger whose tensors go ``factors`` times as far from the base as the inner one's.

    What is not named is as the inner one leaves it. A factor of 1 changes no bit, and elements that
    no part holds stay where they are.
    """

    def __init__(self, inner: Merging, factors: Mapping[str, float]) -> None:
        self._inner = inner
        self._factors = factors

    def merge(self, name: str, old: Tensor) -> Tensor:
        """The tensor of that name; ``old`` is the base's, and is not changed."""
        merged = self._inner.merge(name, old)
        factor = self._factors.get(name, 1.0)
        if factor == 1.0:
            return merged
        wide = torch.promote_types(old.dtype, torch.float32)
        return torch.lerp(old.to(wide), merged.to(wide), factor).to(old.dtype)
