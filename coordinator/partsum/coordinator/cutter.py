"""Cuts a round's parts: what each node is to do, and the blobs that it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partsum.coordinator.base import Base
from partsum.coordinator.clusters import make_clusters
from partsum.coordinator.copies import own_slice
from partsum.coordinator.overlap import Overlap
from partsum.coordinator.phases import handoff_rounds
from partsum.coordinator.planner import equal_fractions, plan_parts, plan_slices
from partsum.coordinator.records import PlannedPart, RoundPlan
from partsum.coordinator.relevance.survey import ranking
from partsum.coordinator.starts import StartChain, write_rounded
from partsum.coordinator.store import Store
from partsum.coordinator.terms import needed_updates
from partsum.coordinator.workplan import Workplan
from partsum.shared.config import RunConfig
from partsum.shared.files import file_digest, write_file
from partsum.shared.messages import Blob, Delta
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
        full = config.parts.planner == "full"
        self.whole = full and not config.gates.off  # nodes start from the base itself
        self.alike = full or config.parts.is_copies  # all nodes start from one file
        self.chain = StartChain(store.folder / "bases")

    def parts(self, plan: Workplan, round: int) -> list[Part]:
        """The parts of a round."""
        config, known = self.config, ranking(self.store, self.config)
        widths, off = self.base.widths, config.gates.off
        return plan_parts(config.parts, widths, plan.fractions, config.seed, round, known, off)

    def slices(self, plan: Workplan) -> list[Part]:
        """What the base is made of."""
        config, known = self.config, ranking(self.store, self.config)
        return plan_slices(config.parts, self.base.widths, plan.fractions, config.seed, known)

    @property
    def cuts_all(self) -> bool:
        """Whether the slices split every width group, and not the hidden ones alone."""
        return self.block or self.config.parts.is_copies

    def cluster_paths(self) -> list[Path]:
        """Where each part's cluster lies."""
        folder = self.store.folder / "clusters"
        return [folder / f"c{k}.i64" for k in range(self.config.parts.count)]

    def cluster_of(self, round: int, part: int) -> int:
        """Which cluster a part of a round trains on."""
        return part

    def make_clusters(self) -> list[np.ndarray]:
        """Each cluster's sample indices, from the seed."""
        config, shares = self.config, equal_fractions(self.config.parts.count)
        return make_clusters(config.data, self.base.task, self.train, shares, config.seed)

    def plan_round(self, plan: Workplan, round: int) -> RoundPlan:
        """Cut the round's parts into the spool and say what each node is to do."""
        parts, clusters, planned = self.parts(plan, round), self.cluster_paths(), []
        starts, delta = self._starts(parts, round), self._delta(round)
        for k, (part, start) in enumerate(zip(parts, starts, strict=True)):
            cluster = clusters[self.cluster_of(round, k)]
            samples = self._num_samples(round, cluster.stat().st_size // 8, len(parts))
            planned.append(
                PlannedPart(
                    part=part,
                    # Stable over rounds: the walk goes on where it was.
                    seed=self._part_seed(round, k),
                    start=start,
                    cluster=blob_of(cluster),
                    first_sample=self._nth(round) * samples,
                    num_samples=samples,
                    holder=self._holder(plan, part, round, k),
                    delta=delta,
                )
            )
        rounds = max(1, handoff_rounds(self.config).start)
        begin, end, ahead_to = (plan.share * (round + k) / rounds for k in range(3))
        if not self.config.training.ahead or round + 1 >= self.config.parts.rounds:
            ahead_to = 0.0
        needed = needed_updates(self.config, len(parts))
        return RoundPlan(
            round, base_name(round), tuple(planned), (begin, end), ahead_to, needed=needed
        )

    def _part_seed(self, round: int, k: int) -> int:
        """A part's."""
        return (self.config.seed * 1_000_003 + k) % 2**62

    def _num_samples(self, round: int, cluster_size: int, parts: int) -> int:
        """How many samples each of a round's parts sees."""
        return _share_of(cluster_size, self.config)

    def _nth(self, round: int) -> int:
        """How many rounds like this one were before it: so far its walk over the data has come."""
        return round

    def _holder(self, plan: Workplan, part: Part, round: int, k: int) -> str:
        """Who trained the part last, and has its weights and moments; else whom it was made for."""
        before = self.store.updates(round - 1)
        return before[k].node if k in before else plan.holders[k]

    def _starts(self, parts: Sequence[Part], round: int) -> list[Blob | None]:
        """What each part starts from."""
        if self.block:
            kept = self.store.fact("parts") or {}
            return [
                Blob(**kept[str(k)]["blob"]) if str(k) in kept else None for k in range(len(parts))
            ]
        path = self.store.base_path(base_name(round))
        if self.whole:
            return [self._full_start(path, round)] * len(parts)
        if self.config.parts.is_copies:
            return [self._slice_start(path, parts[0], round)] * len(parts)
        base = load_tensors(path)
        if self.alike:
            cut = cut_tensors(base, self.base.widths, parts[0])
            return [self._write_start(cut, round, 0)] * len(parts)
        overlap = Overlap(self.base.shape, self.base.widths, parts)
        starts: list[Blob | None] = []
        for k, part in enumerate(parts):
            tensors = overlap.to_part(cut_tensors(base, self.base.widths, part), part)
            starts.append(self._write_start(tensors, round, k))
        return starts

    def _slice_start(self, base: Path, part: Part, round: int) -> Blob:
        """Mode copies: the slice that all nodes go on from; a fresh one at first."""
        if round == 0:
            seed = self.config.seed * 1_000_003 % 2**62
            return self._write_start(self.base.fresh_part(part, seed), round, 0)
        tensors = own_slice(load_tensors(base), self.base.widths, part, self.config.parts.count)
        return self._write_start(tensors, round, 0)

    def _write_start(self, tensors: Mapping[str, Tensor], round: int, k: int) -> Blob:
        out = self._spooled_start(round, k)
        digest = save_tensors(out, tensors, durable=False)
        if self.config.wire.down == "bfloat16":
            return write_rounded(out, self._rounded_path(round, k))
        return blob_of(out, digest)

    def _full_start(self, base: Path, round: int) -> Blob:
        """Planner full: what all nodes start from."""
        done = self.store.results().get(round - 1)
        match self.config.wire.down:
            case "bfloat16":
                return write_rounded(base, self._rounded_path(round, 0))
            case "int8" if round:
                return blob_of(self.chain.path(round), self.store.fact("start"))
        return blob_of(base, done[0].digest if done else None)

    def _delta(self, round: int) -> Delta | None:
        """What makes this round's start out of the last one, where nodes fetch that."""
        last = self.store.plan(round - 1)
        if self.config.wire.down != "int8" or last is None or last.parts[0].start is None:
            return None
        delta = blob_of(self.chain.delta_path(round), self.store.fact("delta"))
        return Delta(delta, last.parts[0].start)

    def _spooled_start(self, round: int, k: int) -> Path:
        return self.store.spool_path(f"start-r{round}-p{k}.safetensors")

    def _rounded_path(self, round: int, k: int) -> Path:
        return self.store.spool_path(f"rounded-r{round}-p{k}.safetensors")

    def restore_starts(self, plan: RoundPlan) -> None:
        """After a restart: cut again what the spool has lost; the same bytes come out."""
        paths = self.blob_paths(plan)
        # The float32 starts of rounded ones have no digest in the plan.
        if self.config.wire.down == "bfloat16" or not all(
            path.exists() and file_digest(path) == d for d, path in paths.items()
        ):
            self._starts([planned.part for planned in plan.parts], plan.round)

    def blob_paths(self, plan: RoundPlan) -> dict[str, Path]:
        """Where the blobs of a plan lie, by digest."""
        paths: dict[str, Path] = {}
        origins, clusters = self.origin_paths(plan), self.cluster_paths()
        for k, part in enumerate(plan.parts):
            paths[part.cluster.digest] = clusters[self.cluster_of(plan.round, k)]
            if part.start is not None:
                paths[part.start.digest] = self._start_path(plan, k, origins[k])
            if part.delta is not None:
                paths[part.delta.blob.digest] = self.chain.delta_path(plan.round)
        return paths

    def _start_path(self, plan: RoundPlan, k: int, origin: Path) -> Path:
        """Where what part ``k``'s node starts from lies."""
        match self.config.wire.down:
            case "float32":
                return origin
            case "bfloat16":
                return self._rounded_path(plan.round, 0 if self.alike else k)
            case "int8":
                return self.chain.path(plan.round)

    def origin_paths(self, plan: RoundPlan) -> dict[int, Path]:
        """Where each part's start lies in float32: what its change is added to."""
        started = [k for k, part in enumerate(plan.parts) if part.start is not None]
        if self.block:
            kept = self.store.fact("parts") or {}
            return {k: self.store.folder / "parts" / kept[str(k)]["file"] for k in started}
        if self.whole:
            return dict.fromkeys(started, self.store.base_path(plan.base))
        return {k: self._spooled_start(plan.round, 0 if self.alike else k) for k in started}

    def cluster_samples(self, round: int, part: int) -> tuple[Path, Blob]:
        """The samples of a part's cluster as a file, for a node without the data set."""
        cluster = self.cluster_paths()[self.cluster_of(round, part)]
        path = cluster.with_name(f"s-{cluster.stem}.safetensors")
        if not path.exists():
            raw = bytearray(cluster.read_bytes())
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
