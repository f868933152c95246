"""Cuts a round's parts: what each node is to do, and the blobs that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from partsum.coordinator.base import Base
from partsum.coordinator.planner import plan_parts
from partsum.coordinator.records import PlannedPart, RoundPlan
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.shared.config import RunConfig
from partsum.shared.files import file_digest, write_file
from partsum.shared.messages import Blob
from partsum.shared.part import Part, cut_tensors
from partsum.shared.task import Samples, gather
from partsum.shared.tensors import load_tensors, save_tensors


def base_name(version: int) -> str:
    """The file name of a base version."""
    return f"base-{version:05d}.safetensors"


def blob_of(path: Path, digest: str | None = None) -> Blob:
    """The blob that a file is."""
    return Blob(digest or file_digest(path), path.stat().st_size)


class Cutter:
    """Works on one run's store, in worker threads."""

    def __init__(self, config: RunConfig, store: Store, base: Base, train: Samples) -> None:
        self.config = config
        self.store = store
        self.base = base
        self.train = train
        self.block = config.parts.is_block

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
        paths = self.blob_paths(plan)
        if not all(path.exists() and file_digest(path) == d for d, path in paths.items()):
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


def _share_of(cluster_size: int, config: RunConfig) -> int:
    """Samples that a part sees in a round."""
    if config.parts.aggregate == "gradients":
        return config.parts.gradient_batches * config.training.batch_size
    epochs = config.parts.local_epochs
    return max(1, round(epochs * cluster_size)) if epochs else 0


def write_clusters(folder: Path, clusters: Sequence[np.ndarray]) -> None:
    """Write each cluster's sorted sample indices as little-endian int64."""
    for k, indices in enumerate(clusters):
        write_file(folder / f"c{k}.i64", indices.astype("<i8").tobytes())
