"""The heavy work of a round: cutting its parts, checking updates, merging, evaluating.

Synchronous, and run in a worker thread by the daemon, so that control never waits for it. Nothing
here knows a socket or a clock but for the stage timer that it is given.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.gradients import GradientStep
from partsum.coordinator.invariants import assert_merge
from partsum.coordinator.merge import AVERAGE, BLOCK, Contribution, Tensors, merge_files
from partsum.coordinator.planner import plan_parts
from partsum.coordinator.records import PlannedPart, RoundPlan, RoundResult
from partsum.coordinator.stand_in import stand_in
from partsum.coordinator.store import Store
from partsum.coordinator.updates import Shapes, check_update, part_shapes
from partsum.coordinator.workplan import Workplan
from partsum.shared.config import RunConfig
from partsum.shared.files import file_digest, sync_folder
from partsum.shared.messages import Blob, Update
from partsum.shared.part import Part, cut_tensors
from partsum.shared.task import Samples, Scores, gather
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors
from partsum.shared.transport import release_memory

log = logging.getLogger(__name__)


def base_name(version: int) -> str:
    """The file name of a base version."""
    return f"base-{version:05d}.safetensors"


def blob_of(path: Path, digest: str | None = None) -> Blob:
    """The blob that a file is."""
    return Blob(digest or file_digest(path), path.stat().st_size)


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
        self.block = config.parts.planner == "complement" and config.parts.mode == "block"
        self._shapes: dict[Part, Shapes] = {}

    # -- planning ---------------------------------------------------------------------------------

    def initial_base(self) -> None:
        """Write base 0 where there is none yet."""
        path = self.store.base_path(base_name(0))
        if not path.exists():
            parts = self.config.parts
            residual = parts.planner == "complement" and parts.mode == "residual"
            scale = 1 / parts.count if residual else 1.0
            self.base.initial(path, self.config.seed, scale)

    def parts(self, plan: Workplan, round: int) -> list[Part]:
        """The parts of a round."""
        seed = self.config.seed
        return plan_parts(self.config.parts, self.base.widths, plan.fractions, seed, round)

    def cluster_paths(self) -> list[Path]:
        """Where each part's cluster lies."""
        folder = self.store.folder / "clusters"
        return [folder / f"c{k}.i64" for k in range(self.config.parts.count)]

    def plan_round(self, plan: Workplan, round: int) -> RoundPlan:
        """Cut the round's parts into the spool and say what each node is to do."""
        parts, planned = self.parts(plan, round), []
        starts = self._starts(parts, round)
        before = self.store.updates(round - 1)
        for k, (part, start) in enumerate(zip(parts, starts, strict=True)):
            cluster = self.cluster_paths()[k]
            samples = _share_of(cluster.stat().st_size // 8, self.config)
            planned.append(
                PlannedPart(
                    part=part,
                    # Stable over rounds: the walk goes on where it was.
                    seed=(self.config.seed * 1_000_003 + k) % 2**62,
                    start=start,
                    cluster=blob_of(cluster),
                    first_sample=round * samples,
                    num_samples=samples,
                    # who trained it last has its weights and moments
                    holder=before[k].node if k in before else plan.holders[k],
                )
            )
        rounds = max(1, self.config.parts.rounds)
        progress = (plan.share * round / rounds, plan.share * (round + 1) / rounds)
        return RoundPlan(round, base_name(round), tuple(planned), progress)

    def _starts(self, parts: Sequence[Part], round: int) -> list[Blob | None]:
        """What each part starts from."""
        if self.block:
            kept = self.store.fact("parts") or {}
            return [
                Blob(**kept[str(k)]["blob"]) if str(k) in kept else None for k in range(len(parts))
            ]
        path = self.store.base_path(base_name(round))
        if self.config.parts.planner == "full":
            done = self.store.results().get(round - 1)
            return [blob_of(path, done[0].digest if done else None)] * len(parts)
        base = load_tensors(path)
        starts: list[Blob | None] = []
        for k, part in enumerate(parts):
            out = self.store.spool_path(f"start-r{round}-p{k}.safetensors")
            digest = save_tensors(out, cut_tensors(base, self.base.widths, part), durable=False)
            starts.append(blob_of(out, digest))
        return starts

    def restore_starts(self, plan: RoundPlan) -> None:
        """After a restart: cut again what the spool has lost; the same bytes come out."""
        paths = self.blob_paths(plan).values()
        if not all(path.exists() for path in paths):
            self._starts([planned.part for planned in plan.parts], plan.round)

    def blob_paths(self, plan: RoundPlan) -> dict[str, Path]:
        """Where the blobs of a plan lie, by digest."""
        paths: dict[str, Path] = {}
        kept = self.store.fact("parts") or {}
        for k, part in enumerate(plan.parts):
            paths[part.cluster.digest] = self.cluster_paths()[k]
            if part.start is None:
                continue
            if self.block:
                paths[part.start.digest] = self.store.folder / "parts" / kept[str(k)]["file"]
            elif self.config.parts.planner == "full":
                paths[part.start.digest] = self.store.base_path(plan.base)
            else:
                name = f"start-r{plan.round}-p{k}.safetensors"
                paths[part.start.digest] = self.store.spool_path(name)
        return paths

    def cluster_samples(self, part: int) -> tuple[Path, Blob]:
        """A cluster's samples as a file, for a node without the data set."""
        path = self.store.folder / "clusters" / f"s{part}.safetensors"
        if not path.exists():
            raw = bytearray(self.cluster_paths()[part].read_bytes())
            inputs, targets = gather(self.train, torch.frombuffer(raw, dtype=torch.int64))
            save_tensors(path, {"inputs": inputs, "targets": targets})
        return path, blob_of(path)

    def update_path(self, round: int, part: int) -> Path:
        """Where an accepted update lies until its round is committed."""
        return self.store.spool_path(f"update-r{round}-p{part}.safetensors")

    def check(self, path: Path, planned: PlannedPart) -> None:
        """Raise UpdateRefusedError unless the file is an update of that part."""
        part, known = planned.part, self._shapes  # other threads may put another dict there
        shapes = known.get(part) or part_shapes(self.base.shape, self.base.widths, part)
        self._shapes = {**dict(list(known.items())[-64:]), part: shapes}
        check_update(path, shapes)

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


def _share_of(cluster_size: int, config: RunConfig) -> int:
    """Samples that a part sees in a round."""
    if config.parts.aggregate == "gradients":
        return config.parts.gradient_batches * config.training.batch_size
    epochs = config.parts.local_epochs
    return max(1, round(epochs * cluster_size)) if epochs else 0


def write_clusters(folder: Path, clusters: Sequence[np.ndarray]) -> None:
    """Write each cluster's sorted sample indices as little-endian int64."""
    for k, indices in enumerate(clusters):
        fresh = folder / f".c{k}.i64"
        fresh.write_bytes(indices.astype("<i8").tobytes())
        fresh.replace(folder / f"c{k}.i64")
