"""How a round's updates become one: the config's rule, put in front of the merge."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from partsum.coordinator.base import Base
from partsum.coordinator.contribution import Contribution
from partsum.coordinator.inspector import Inspector
from partsum.coordinator.merge import AVERAGE, BLOCK, Merger, MergeRule, Merging
from partsum.coordinator.privacy import (
    Ledger,
    NoisyMerger,
    check_model,
    epsilon_of,
    noise_deviation,
    trained_names,
)
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.store import Store
from partsum.coordinator.strategies.clip import Clipped, clip_factor
from partsum.coordinator.strategies.krum import fitting, ranked, squared_distances
from partsum.shared.config import RunConfig
from partsum.shared.part import WHOLE, absent, index_map

log = logging.getLogger(__name__)


class Aggregator:
    """Merges one run's rounds by its `merge.rule`.

    mean and norm_clip count by samples. The others count every update the same, since the number
    of samples is what a node says of itself.
    """

    def __init__(self, config: RunConfig, store: Store, base: Base, inspector: Inspector) -> None:
        self.config = config
        self.store = store
        self.base = base
        self.inspector = inspector
        self.ledger = Ledger(store)

    def prepare(self) -> None:
        """Find out before the first round whether privacy's promise can be kept and counted."""
        if self.config.privacy.noise_multiplier:
            check_model(self.base.shape)
            epsilon_of(self.config)
            self.ledger.open()

    def merger(
        self, plan: RoundPlan, shares: Mapping[int, Contribution], files: ExitStack
    ) -> Merging:
        """What merges the contributions, by part; what it reads stays open as long as ``files``."""
        rule, hostile = self.config.merge.rule, self.config.merge.hostile
        if self.config.privacy.noise_multiplier:
            return self._private(plan, shares, files)
        if rule == "mean":
            return self._mean(shares, BLOCK if self.config.parts.is_block else AVERAGE)
        if rule == "norm_clip":
            return self._mean(self._clipped(plan, shares, self._limit(plan, shares), files))
        alike = {k: replace(share, weight=1.0) for k, share in shares.items()}
        if rule in {"krum", "multi_krum"}:
            return self._mean(self._closest(alike))
        return self._mean(alike, MergeRule(cut=len(shares) if rule == "median" else hostile))

    def _mean(self, shares: Mapping[int, Contribution], rule: MergeRule = AVERAGE) -> Merger:
        return Merger(self.base.widths, list(shares.values()), rule)

    def _limit(self, plan: RoundPlan, shares: Mapping[int, Contribution]) -> float:
        """The longest change that norm_clip lets through."""
        changes = self.store.changes(plan.round)
        return self.config.merge.clip_norm or statistics.median(changes[k].norm for k in shares)

    def _clipped(
        self,
        plan: RoundPlan,
        shares: Mapping[int, Contribution],
        limit: float,
        files: ExitStack,
    ) -> dict[int, Contribution]:
        """The contributions, none of which changes the base by more than ``limit``."""
        norms = {k: change.norm for k, change in self.store.changes(plan.round).items()}
        clipped = {}
        for k, share in shares.items():
            origin = self.inspector.origin(plan, k, files)
            tensors = Clipped(share.tensors, origin, clip_factor(norms[k], limit))
            clipped[k] = replace(share, tensors=tensors)
        return clipped

    def _private(
        self, plan: RoundPlan, shares: Mapping[int, Contribution], files: ExitStack
    ) -> NoisyMerger:
        """The mean of clipped changes over all parts, with noise.

        A part that is missing counts as one without a change, and samples do not count: what an
        update weighs must not depend on anybody's data.
        """
        privacy, parts = self.config.privacy, self.config.parts.count
        alike = {k: replace(share, weight=1.0) for k, share in shares.items()}
        clipped = self._clipped(plan, alike, privacy.clip_norm, files)
        if missing := parts - len(shares):
            origin = self.inspector.origin(plan, min(shares), files)
            clipped[parts] = Contribution(WHOLE, origin, float(missing))
        updates = self.store.updates(plan.round)
        key = self.ledger.release(plan.round, [updates[k].update.blob.digest for k in shares])
        names = trained_names(self.base.shape)
        return NoisyMerger(self._mean(clipped), names, key, noise_deviation(privacy, parts))

    def _closest(self, shares: Mapping[int, Contribution]) -> dict[int, Contribution]:
        """All updates but the f that lie furthest from the others, by the tensors that all share.

        Krum takes shared tensors from the best one alone. Slices, which nobody else holds, it takes
        from all that are left in.
        """
        maps = [index_map(self.base.widths, share.part) for share in shares.values()]
        skipped = [absent(self.base.widths, share.part) for share in shares.values()]
        shapes = {
            name: tensor.shape
            for name, tensor in self.base.shape.state_dict().items()
            if tensor.is_floating_point()
            and not any(name in kept for kept in maps)
            and not any(name in gone for gone in skipped)
        }
        hostile = fitting(len(shares), self.config.merge.hostile)
        if hostile < self.config.merge.hostile:
            log.warning("only %d updates: Krum holds against %d of them", len(shares), hostile)
        order = ranked(squared_distances(shapes, list(shares.values())), hostile)
        parts = [list(shares)[place] for place in order]
        if hostile:
            log.info("left out as furthest from the others: part %s", parts[len(parts) - hostile :])
        single = self.config.merge.rule == "krum"
        return {
            k: replace(shares[k], weight=float(k == parts[0] or not single))
            for k in sorted(parts[: len(parts) - hostile])
        }
