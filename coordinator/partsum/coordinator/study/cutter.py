"""Cuts a study's small models out of their base, and says what each node is to do.

    round 0   the bases, one for each seed, whole and on all data (unless one is given)
    round 1   the cells of the sweep

All that is drawn comes from the run's seed and the cell's, and cells that differ in one thing only
are alike in all others: the same data, in the same order, from the same initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partsum.coordinator.base import Base
from partsum.coordinator.cutter import Cutter, base_name, blob_of
from partsum.coordinator.planner import equal_fractions
from partsum.coordinator.planner.complement import block_parts
from partsum.coordinator.planner.selection import UnitScores, select_units
from partsum.coordinator.planner.sweep import Cell, cells, draws
from partsum.coordinator.records import PlannedPart, RoundPlan
from partsum.coordinator.relevance.probing import activation_scores, taylor_scores
from partsum.coordinator.relevance.scores import magnitude_scores
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.shared.config import RunConfig, StudyConfig
from partsum.shared.errors import ConfigError, WidthError
from partsum.shared.messages import Blob
from partsum.shared.part import WHOLE, Part, cut_tensors
from partsum.shared.task import Samples, num_samples
from partsum.shared.tensors import load_tensors
from partsum.shared.width import Widths

State = dict[str, Tensor]


class StudyCutter(Cutter):
    """Works on one study's store, in worker threads."""

    def __init__(self, config: RunConfig, store: Store, base: Base, train: Samples) -> None:
        super().__init__(config, store, base, train)
        self.study = config.study
        self.cells = cells(self.study)
        self._draws = draws(self.study)
        if config.parts.count != len(self.cells):
            raise ConfigError(
                f"parts.count is {config.parts.count}, but [study] has {len(self.cells)} cells; "
                "start it with `partsum study`, which counts them"
            )

    # -- which parts ------------------------------------------------------------------------------

    def is_base_round(self, round: int) -> bool:
        """Whether the round trains bases, and not cells."""
        return self.study.trains_bases and round == 0

    @property
    def widths(self) -> Widths:
        """The width groups that the study cuts."""
        return studied(self.base.widths, self.study.depth)

    def slices(self, plan: Workplan) -> list[Part]:
        """Parts that show whether this model can be cut at all."""
        return trial_parts(self.study, self.base.widths)

    @property
    def cuts_all(self) -> bool:
        """Whether the study cuts every width group, and not the hidden ones alone."""
        return self.study.depth == "all"

    def part_of(self, cell: Cell, scores: UnitScores) -> Part:
        """The units that a cell keeps."""
        if cell.keep == 1:
            return WHOLE
        how, seed = cell.selection or "random", self._seed(cell.seed, 0)
        return select_units(scores, self.widths, cell.keep, how, seed)

    def _seed(self, seed: int, use: int) -> int:
        """For a base (0) or its cells (1); the same over restarts."""
        return (self.config.seed * 1_000_003 + 2 * seed + use) % 2**62

    # -- data -------------------------------------------------------------------------------------

    def cluster_paths(self) -> list[Path]:
        """Where each draw of the training data lies."""
        folder = self.store.folder / "clusters"
        return [folder / f"c{k}.i64" for k in range(len(self._draws))]

    def cluster_of(self, round: int, part: int) -> int:
        """Which draw a part of a round trains on."""
        if self.is_base_round(round):
            return self._draws.index((1.0, self.study.seeds[part]))
        cell = self.cells[part]
        return self._draws.index((cell.data, cell.seed))

    def make_clusters(self) -> list[np.ndarray]:
        """Each draw's sorted sample indices; of one seed, smaller draws lie in the larger ones."""
        total = num_samples(self.train)
        orders = {
            seed: np.random.default_rng([self.config.seed, seed]).permutation(total)
            for seed in self.study.seeds
        }
        return [
            np.sort(orders[seed][: max(1, round(share * total))]).astype(np.int64)
            for share, seed in self._draws
        ]

    def samples_of(self, epochs: float) -> int:
        """Samples to train on: so many passes over all of the data, however little one sees."""
        return max(1, round(epochs * num_samples(self.train))) if epochs else 0

    # -- rounds -----------------------------------------------------------------------------------

    def plan_round(self, plan: Workplan, round: int) -> RoundPlan:
        """Cut the round's starts into the spool and say what each node is to do."""
        starts: list[Blob | None]
        if self.is_base_round(round):
            seeds = [self._seed(seed, 0) for seed in self.study.seeds]
            parts, starts = [WHOLE] * len(seeds), [None] * len(seeds)
            samples, needed = self.samples_of(self.study.base_epochs), len(seeds)
        else:
            seeds = [self._seed(cell.seed, 1) for cell in self.cells]
            parts = self._parts()
            starts = self._starts(parts, round)
            samples, needed = self.samples_of(self.study.epochs), 0
        clusters = [blob_of(path) for path in self.cluster_paths()]
        planned = [
            PlannedPart(part, seed, start, clusters[self.cluster_of(round, k)], 0, samples, "")
            for k, (part, seed, start) in enumerate(zip(parts, seeds, starts, strict=True))
        ]
        # Every model has the whole schedule to itself.
        return RoundPlan(round, base_name(0), tuple(planned), (0.0, 1.0), needed=needed)

    def _parts(self) -> list[Part]:
        scores: dict[int, UnitScores] = {}
        for seed in self.study.seeds:
            scores[seed] = self._scores(seed)
        return [self.part_of(cell, scores[cell.seed]) for cell in self.cells]

    def _scores(self, seed: int) -> UnitScores:
        if all(cell.selection in {None, "random"} for cell in self.cells):  # nobody would look
            return alike(self.widths)
        model, widths = self.base.model(self.base_path(seed)), self.widths
        drawn = self._seed(seed, 0)
        match self.study.scores:
            case "magnitude":
                scores = magnitude_scores(model, widths)
            case "taylor":
                scores = taylor_scores(model, widths, self.base.task, self.train, drawn)
            case "activation":
                scores = activation_scores(model, widths, self.train, drawn)
        for group in widths.groups:
            if group.name not in scores:
                raise WidthError(
                    f'study.scores = "{self.study.scores}" says nothing about width group '
                    f'{group.name!r}; take "magnitude"'
                )
        # Of a base that has diverged some are no numbers; a unit that nothing is known of is weak.
        return {name: values.nan_to_num(0.0, 0.0, 0.0) for name, values in scores.items()}

    def _starts(self, parts: Sequence[Part], round: int) -> list[Blob | None]:
        """Each cell's start; a seed's base is read once."""
        starts: list[Blob | None] = [None] * len(parts)
        if self.is_base_round(round):
            return starts
        for start, seed in dict.fromkeys((cell.start, cell.seed) for cell in self.cells):
            if start == "scratch":
                continue
            base = self._base(start, seed)
            for k, (cell, part) in enumerate(zip(self.cells, parts, strict=True)):
                if (cell.start, cell.seed) == (start, seed):
                    cut = cut_tensors(base, self.base.widths, part)
                    starts[k] = self._write_start(cut, round, k)
        return starts

    def _base(self, start: str, seed: int) -> State:
        if start == "rewound":
            return self.base.fresh_part(WHOLE, self._seed(seed, 0))
        return load_tensors(self.base_path(seed))

    def base_path(self, seed: int) -> Path:
        """Where the base of a seed lies, once it is there."""
        if self.study.trains_bases:
            return self.store.part_path(0, self.study.seeds.index(seed))
        return self.store.base_path(base_name(0))


def trial_parts(study: StudyConfig, widths: Widths) -> list[Part]:
    """Parts that show whether a model of these groups can be cut at all."""
    if all(keep == 1 for keep in study.keep):
        return [WHOLE]
    if study.depth == "all":
        return block_parts(widths, equal_fractions(2))
    return [any_part(studied(widths, study.depth), 0.5, seed) for seed in (0, 1)]


def alike(widths: Widths) -> UnitScores:
    """Scores that say nothing."""
    return {group.name: torch.zeros(group.units) for group in widths.groups}


def any_part(widths: Widths, keep: float, seed: int) -> Part:
    """Some part that keeps so much."""
    return WHOLE if keep == 1 else select_units(alike(widths), widths, keep, "random", seed)


def studied(widths: Widths, depth: str) -> Widths:
    """The width groups that a study of that depth cuts. Raises WidthError where there are none."""
    if depth == "all":
        return widths
    hidden = tuple(group for group in widths.groups if group.depth == "hidden")
    if not hidden:
        raise WidthError(
            "this model has no hidden width groups, so a study of them has nothing to leave out; "
            'set depth = "all" under [study]'
        )
    return replace(widths, groups=hidden)
