"""The heavy work of a round: checking updates, merging, evaluating.

Synchronous, and run in a worker thread by the daemon, so that control never waits for it. Nothing
here knows a socket or a clock but for the stage timer that it is given.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.cutter import Cutter, base_name
from partsum.coordinator.gradients import GradientStep
from partsum.coordinator.invariants import assert_merge
from partsum.coordinator.merge import AVERAGE, BLOCK, Contribution, Tensors, merge_files
from partsum.coordinator.records import PlannedPart, RoundPlan, RoundResult
from partsum.coordinator.stand_in import stand_in
from partsum.coordinator.store import Store
from partsum.coordinator.updates import Shapes, check_update, part_shapes
from partsum.shared.config import RunConfig
from partsum.shared.files import sync_folder
from partsum.shared.messages import Update
from partsum.shared.part import Part
from partsum.shared.task import Samples, Scores
from partsum.shared.tensors import TensorFile
from partsum.shared.transport import release_memory

log = logging.getLogger(__name__)


class Workshop:
    """Works on one run's store."""

    def __init__(
        self, config: RunConfig, store: Store, base: Base, train: Samples, validation: Samples
    ) -> None:
        self.config = config
        self.store = store
        self.base = base
        self.train = train
        self.validation = validation
        self.block = config.parts.is_block
        self.cutter = Cutter(config, store, base, train)
        self._shapes: dict[Part, Shapes] = {}

    def initial_base(self) -> None:
        """Write base 0 where there is none yet."""
        path = self.store.base_path(base_name(0))
        if not path.exists():
            parts = self.config.parts
            residual = parts.planner == "complement" and parts.mode == "residual"
            scale = 1 / parts.count if residual else 1.0
            self.base.initial(path, self.config.seed, scale)

    def update_path(self, round: int, part: int) -> Path:
        """Where an accepted update lies until its round is committed."""
        return self.store.spool_path(f"update-r{round}-p{part}.safetensors")

    def check(self, path: Path, planned: PlannedPart) -> None:
        """Raise UpdateRefusedError unless the file is an update of that part."""
        part, known = planned.part, self._shapes  # other threads may put another dict there
        shapes = known.get(part) or self._part_shapes(part)
        self._shapes = {**dict(list(known.items())[-64:]), part: shapes}
        check_update(path, shapes)

    def _part_shapes(self, part: Part) -> Shapes:
        moments = self.config.parts.moments == "travel"
        return part_shapes(self.base.shape, self.base.widths, part, moments)

    # -- merging ----------------------------------------------------------------------------------

    def merge_round(
        self, plan: RoundPlan, missing: tuple[int, ...], stages: Stages
    ) -> tuple[RoundResult, dict[str, object]]:
        """Merge what is in into the next base: the result, and the facts to commit with it."""
        received = self.store.updates(plan.round)
        updates = {k: item.update for k, item in received.items() if k not in missing}
        out = self.store.base_path(base_name(plan.round + 1))
        with ExitStack() as files:
            with stages.timing("merge"):
                shares = self._contributions(plan, updates, files)
                digest = self._write_base(plan, list(shares.values()), out)
                facts = self._keep_parts(plan, updates) if self.block else {}
                release_memory()  # before the model for evaluation comes on top
            with stages.timing("evaluate"):
                scores = self._evaluate(plan, shares, out)
        result = RoundResult(
            base=out.name,
            digest=digest,
            loss=_finite(scores.loss) if scores else None,
            accuracy=_finite(scores.accuracy) if scores else None,
            missing=missing,
            stage_seconds={},
        )
        return result, facts

    def _contributions(
        self, plan: RoundPlan, updates: Mapping[int, Update], files: ExitStack
    ) -> dict[int, Contribution]:
        shares: dict[int, Contribution] = {}
        for k, update in sorted(updates.items()):
            file = files.enter_context(TensorFile(self.update_path(plan.round, k)))
            weight = float(max(1, update.num_samples))
            shares[k] = Contribution(plan.parts[k].part, file, weight)
        if self.block:
            for k in set(range(len(plan.parts))) - set(shares):
                shares[k] = self._last_known(plan, k, shares, files)
        return dict(sorted(shares.items()))

    def _last_known(
        self, plan: RoundPlan, k: int, live: Mapping[int, Contribution], files: ExitStack
    ) -> Contribution:
        """A missing slice of mode block: its last update, or a stand-in that does not count yet."""
        kept = (self.store.fact("parts") or {}).get(str(k))
        if kept:
            file = files.enter_context(TensorFile(self.store.folder / "parts" / kept["file"]))
            return Contribution(plan.parts[k].part, file, float(kept["samples"]))
        planned = plan.parts[k]
        tensors = stand_in(self.base, planned.part, [live[j] for j in sorted(live)], planned.seed)
        return Contribution(planned.part, Tensors(tensors), 0.0)

    def _write_base(self, plan: RoundPlan, shares: list[Contribution], out: Path) -> str:
        old = self.store.base_path(plan.base)
        metadata = {"partsum.base": str(plan.round + 1)}
        if self.config.parts.aggregate == "gradients":
            # The middle: at its end the schedule may be at zero, and the round would be lost.
            middle = sum(plan.progress) / 2
            folder = self.store.folder / "bases"
            step = GradientStep(self.config.training, self.base.shape, folder, middle)
            digest = step.apply(old, shares, self.base.widths, out, plan.round)
        else:
            rule = BLOCK if self.block else AVERAGE
            digest = merge_files(old, shares, self.base.widths, rule, out, metadata)
        if self.block:
            return digest
        return self.base.recalibrated(out, self.train, self.config.seed) or digest

    def _keep_parts(self, plan: RoundPlan, updates: Mapping[int, Update]) -> dict[str, object]:
        """Mode block: parts go on from their own last update, so these are kept beside the base."""
        kept = dict(self.store.fact("parts") or {})
        for k, update in updates.items():
            path = self.store.part_path(plan.round, k)
            path.unlink(missing_ok=True)
            os.link(self.update_path(plan.round, k), path)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            kept[str(k)] = {
                "file": path.name,
                "blob": vars(update.blob),
                "samples": max(1, update.num_samples),
            }
        sync_folder(self.store.folder / "parts")
        return {"parts": kept}

    def kept_paths(self) -> set[Path]:
        """The part files that the journal speaks of."""
        kept = self.store.fact("parts") or {}
        return {self.store.folder / "parts" / entry["file"] for entry in kept.values()}

    # -- evaluation -------------------------------------------------------------------------------

    def norm_parts(self, plan: RoundPlan) -> list[Part]:
        """The parts whose slices layer norms keep to: those of mode block, else none."""
        return [planned.part for planned in plan.parts] if self.block else []

    def _evaluate(
        self, plan: RoundPlan, shares: Mapping[int, Contribution], path: Path
    ) -> Scores | None:
        parts, done = self.config.parts, plan.round + 1
        wanted = done == parts.rounds or (parts.evaluate_every and done % parts.evaluate_every == 0)
        if not (wanted or self.block):
            return None
        model = self.base.model(path, self.norm_parts(plan))
        if self.block:  # at every merge: what it finds would show nowhere else
            assert_merge(self.base, model, list(shares.values()), self.validation)
        return self.base.scores(model, self.validation) if wanted else None


def _finite(value: float) -> float | None:
    """Nothing, for a task without a metric or a base that has diverged: the journal is JSON."""
    return value if math.isfinite(value) else None
