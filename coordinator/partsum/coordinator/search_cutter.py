"""Cuts a search's structures: each goes on from its own last update, and new ones from the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from partsum.coordinator.base import Base
from partsum.coordinator.cutter import Cutter, base_name
from partsum.coordinator.phases import phase_of
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.search import Search
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.shared.config import RunConfig
from partsum.shared.messages import Blob
from partsum.shared.part import Part, cut_tensors
from partsum.shared.task import Samples, num_samples
from partsum.shared.tensors import load_tensors


class SearchCutter(Cutter):
    """Works on one search's store, in worker threads."""

    def __init__(self, config: RunConfig, store: Store, base: Base, train: Samples) -> None:
        super().__init__(config, store, base, train)
        self.search = Search(config, store, base)
        self._same_data = config.structures.data == "same"

    def parts(self, plan: Workplan, round: int) -> list[Part]:
        """The structures of a round."""
        return self.search.team() if self._in_step(round) else self.search.parts(round)

    def _in_step(self, round: int) -> bool:
        """Whether the round's structures are trained together, on weights that they share."""
        return phase_of(self.config, round) == "cotrain"

    # -- data -------------------------------------------------------------------------------------

    def cluster_paths(self) -> list[Path]:
        """Where the clusters lie that structures are dealt; one, of all data, where all see it."""
        paths = super().cluster_paths()
        return paths[:1] if self._same_data else paths

    def cluster_of(self, round: int, part: int) -> int:
        """Which cluster a structure of a round trains on: they are dealt in turn."""
        return part % len(self.cluster_paths())

    def make_clusters(self) -> list[np.ndarray]:
        """Each cluster's sample indices, from the seed."""
        return [np.arange(num_samples(self.train))] if self._same_data else super().make_clusters()

    def _part_seed(self, round: int, k: int) -> int:
        """Structures walk the data in one order, so that they can be compared.

        Those that train together each see other batches.
        """
        return super()._part_seed(round, k if self._in_step(round) else 0)

    def _num_samples(self, round: int, cluster_size: int, parts: int) -> int:
        if not self._in_step(round):
            return super()._num_samples(round, cluster_size, parts)
        return max(1, math.ceil(self.config.cotrain.local_epochs * cluster_size / parts))

    def _nth(self, round: int) -> int:
        return round - self.config.parts.rounds if self._in_step(round) else round

    # -- where they start -------------------------------------------------------------------------

    def _holder(self, plan: Workplan, part: Part, round: int, k: int) -> str:
        if self._in_step(round) and self._nth(round):
            return super()._holder(plan, part, round, k)
        return self.search.holder(part)

    def _starts(self, parts: Sequence[Part], round: int) -> list[Blob | None]:
        """Each structure's own last update, or what a new one starts from.

        Those that train together start from the base.
        """
        if self._in_step(round):
            base = load_tensors(self.store.base_path(base_name(round)))
            cuts = (cut_tensors(base, self.base.widths, part) for part in parts)
            return [self._write_start(tensors, round, k) for k, tensors in enumerate(cuts)]
        kept = [self.search.kept_start(part) for part in parts]
        if None not in kept:
            return kept
        base = load_tensors(self.store.base_path(base_name(round)))
        rung = self.search.rung(self.search.board(), round)  # in the parts' order
        return [
            blob or self._write_start(self.search.fresh_start(part, one.parent, base), round, k)
            for k, (part, one, blob) in enumerate(zip(parts, rung, kept, strict=True))
        ]

    def origin_paths(self, plan: RoundPlan) -> dict[int, Path]:
        """Where each structure's start lies."""
        own = not self._in_step(plan.round)
        return {
            k: (own and self.search.origin(planned.part)) or self._spooled_start(plan.round, k)
            for k, planned in enumerate(plan.parts)
        }
