"""Cuts the rounds of a hand-off over nodes: everybody gets the whole base, and data of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from partsum.coordinator.cutter import Cutter, base_name, blob_of
from partsum.coordinator.handoff_plan import steps_of
from partsum.coordinator.records import HandoffSteps, PlannedPart, RoundPlan
from partsum.coordinator.workplan import Workplan
from partsum.shared.files import file_digest, write_file
from partsum.shared.part import Part
from partsum.shared.task import num_samples


class HandoffCutter(Cutter):
    """Works on one run's store, in worker threads. ``config`` is the rounds' own.

    ``norm_slices`` tells what layer norms kept to in the rounds before.
    """

    norm_slices: Callable[[RoundPlan | None], list[Part]]

    def plan_round(self, plan: Workplan, round: int) -> RoundPlan:
        """Say what each node is to do: so many steps, from the base on."""
        ranks, samples = self.config.parts.count, num_samples(self.train)
        norm_parts = self.norm_parts(round)
        steps = steps_of(self.config, round, samples, ranks, plan.share, norm_parts)
        steps = replace(steps, start_before=self._start_before(round))
        clusters, parts = self.write_clusters(), self.parts(plan, round)
        holders = self._holders(plan, parts, round)
        planned = tuple(
            PlannedPart(
                part=part,
                seed=self._part_seed(round, k),
                start=start,
                cluster=blob_of(clusters[self.cluster_of(round, k)]),
                first_sample=steps.first * steps.batch,
                num_samples=steps.count * steps.batch,
                holder=holders[k],
            )
            for k, (part, start) in enumerate(zip(parts, self._starts(parts, round), strict=True))
        )
        apart = self.config.handoff.is_over("apart")
        return RoundPlan(
            round,
            base_name(round),
            planned,
            _progress(steps),
            needed=math.ceil(self.config.rounds.quorum * ranks) if apart else 0,
            handoff=steps,
        )

    def _holders(self, plan: Workplan, parts: Sequence[Part], round: int) -> list[str]:
        """Whom each part suits: who had it last, but no node has two of them.

        Else a node that once stood in for another would keep that one's part, and the other idle.
        """
        holders: list[str] = []
        for k, part in enumerate(parts):
            node = self._holder(plan, part, round, k)
            holders.append("" if node in holders else node)
        return holders

    def _start_before(self, round: int) -> str:
        """What the round before began with: by that, nodes know their moments for this run's."""
        before = self.store.plan(round - 1) if round else None
        start = before.parts[0].start if before is not None and before.handoff else None
        return start.digest if start else ""

    def norm_parts(self, round: int) -> list[Part]:
        """Whose slices layer norms keep to, for the whole of the hand-off."""
        if self.config.handoff.norms != "grouped":
            return []
        before = self.store.plan(round - 1) if round else None
        if before is not None and before.handoff is not None:
            return list(before.handoff.norm_parts)
        return self.norm_slices(before)

    # -- data -------------------------------------------------------------------------------------

    def cluster_paths(self) -> list[Path]:
        """Where the data lies: a share for each node, or for a gang that shares it, all of it."""
        if self._own_data:
            return super().cluster_paths()
        folder, count = self.store.folder / "clusters", self._shares
        return [folder / f"h{count}-{k}.i64" for k in range(count)]

    @property
    def _own_data(self) -> bool:
        """Whether nodes see the clusters of the parts phase."""
        handoff = self.config.handoff
        return handoff.data == "clusters" and handoff.how != "pipeline"

    @property
    def _shares(self) -> int:
        """How many pieces the data is cut into, where it is shuffled."""
        return self.config.parts.count if self.config.handoff.is_over("apart") else 1

    def cluster_of(self, round: int, part: int) -> int:
        """Which of them a part is trained on."""
        return part % len(self.cluster_paths())

    def _part_seed(self, round: int, k: int) -> int:
        """Where nodes walk their own data, each goes its own way; a gang walks together."""
        return super()._part_seed(round, k if self.config.handoff.is_over("apart") else 0)

    def write_clusters(self) -> list[Path]:
        """The same, made from the seed where they are missing."""
        paths = self.cluster_paths()
        if not all(path.exists() for path in paths):
            for path, mine in zip(paths, self._made(len(paths)), strict=True):
                write_file(path, np.sort(mine).astype("<i8").tobytes())
        return paths

    def _made(self, count: int) -> list[np.ndarray]:
        if self._own_data:
            return self.make_clusters()
        rng = np.random.default_rng(self.config.seed)
        return list(np.array_split(rng.permutation(num_samples(self.train)), count))

    def restore_starts(self, plan: RoundPlan) -> None:
        """After a restart: make again what the folder has lost; the same bytes come out."""
        for k, path in enumerate(self.cluster_paths()):
            known = plan.parts[k].cluster.digest
            if path.exists() and file_digest(path) != known:
                path.unlink()
        self.write_clusters()
        super().restore_starts(plan)


def _progress(steps: HandoffSteps) -> tuple[float, float]:
    """Where on the run's schedule the round lies."""
    begin, end = (
        steps.share + (1 - steps.share) * step / steps.total
        for step in (steps.first, steps.first + steps.count)
    )
    return begin, min(1.0, end)
