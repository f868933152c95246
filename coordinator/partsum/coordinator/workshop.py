"""The heavy work of a round: checking updates, merging, evaluating.

Synchronous, and run in a worker thread by the daemon, so that control never waits for it. Nothing
here knows a socket or a clock but for the stage timer that it is given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from partsum.coordinator.aggregate import Aggregator
from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.cohort import Change
from partsum.coordinator.copies import CopyMerger
from partsum.coordinator.cutter import Cutter, base_name
from partsum.coordinator.decoder import Decoder
from partsum.coordinator.first_base import FirstBase
from partsum.coordinator.gradients import GradientStep, moments_path
from partsum.coordinator.inspector import Inspector
from partsum.coordinator.invariants import assert_merge
from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.merge import Contribution, Merging, Tensors, write_merged
from partsum.coordinator.outer import OuterStep, scaled
from partsum.coordinator.planner.complement import equal_slices
from partsum.coordinator.records import RoundPlan, RoundResult
from partsum.coordinator.stand_in import stand_in
from partsum.coordinator.store import Store
from partsum.coordinator.strategies.layers import step_factors
from partsum.coordinator.strategies.optimizers import make_optimizer
from partsum.coordinator.unmask import UnmaskedMean, shares_of
from partsum.shared.config import RunConfig
from partsum.shared.files import file_digest, sync_file, sync_folder
from partsum.shared.messages import Update
from partsum.shared.part import WHOLE, Part
from partsum.shared.task import Samples, Scores
from partsum.shared.tensors import TensorFile
from partsum.shared.transport import release_memory

log = logging.getLogger(__name__)


class Workshop:
    """Works on one run's store."""

    _cutter: type[Cutter] = Cutter
    _anew: tuple[int, ...] = ()  # rounds whose outer step begins without moments

    def __init__(
        self, config: RunConfig, store: Store, base: Base, train: Samples, validation: Samples
    ) -> None:
        self.config = config
        self.store = store
        self.base = base
        self.train = train
        self.validation = validation
        self.block = config.parts.is_block
        self.cutter = self._cutter(config, store, base, train)
        self.inspector = Inspector(config, store, base, self.cutter)
        self.decoder = Decoder(config, self.cutter, self.inspector)
        self.aggregator = Aggregator(config, store, base, self.inspector)
        self.factors = step_factors(config.outer, base.shape)
        self.first_base = FirstBase(config, store, base, train, validation)

    def update_path(self, round: int, part: int) -> Path:
        """Where an accepted update lies until its round is committed."""
        return self.store.spool_path(f"update-r{round}-p{part}.safetensors")

    def largest_update(self, plan: RoundPlan) -> int:
        """No update's file is larger: no part is larger than the base; a header may be."""
        size = self.store.base_path(plan.base).stat().st_size + (1 << 20)
        if self.config.privacy.secure_aggregation:  # eight bytes for each number
            return int(size + 8 * sum(t.numel() for t in self.base.shape.state_dict().values()))
        travels = 3 if self.config.parts.moments == "travel" else 1  # two moments a weight
        return travels * size

    def check_update(self, path: Path, plan: RoundPlan, part: int) -> Change:
        """How far an update lies from its start. Raises UpdateRefusedError: it does not fit."""
        return self.inspector.check(path, plan, part)

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
                kept = self.store.fact("parts") or {}
                shares = self._contributions(plan, updates, kept, self.update_path, files)
                digest = self._write_base(plan, shares, out, files)
                facts = self._facts(plan, updates)
                release_memory()  # before the model for evaluation comes on top
            with stages.timing("evaluate"):
                scores = self._evaluate(plan, shares, out)
        return RoundResult.scored(out.name, digest, scores, missing), facts

    def board(self) -> Leaderboard | None:
        """Of a search over structures, as of the last committed round; None in other runs."""
        return None

    def rebuild_base(self, round: int) -> str:
        """Merge a committed round of mode block again, from the parts kept of it; the digest."""
        plan, (result, _, _) = self.store.plan(round), self.store.results()[round]
        assert plan is not None
        received = self.store.updates(round)
        updates = {k: item.update for k, item in received.items() if k not in result.missing}
        kept = self.store.round_facts(round)["parts"]
        with ExitStack() as files:
            shares = self._contributions(plan, updates, kept, self.store.part_path, files)
            return self._write_base(plan, shares, self.store.base_path(result.base), files)

    def _contributions(
        self,
        plan: RoundPlan,
        updates: Mapping[int, Update],
        kept: Mapping[str, Any],
        path_of: Callable[[int, int], Path],
        files: ExitStack,
    ) -> dict[int, Contribution]:
        """By part: an update, which lies at ``path_of`` its round and part, else what was kept."""
        if self.config.privacy.secure_aggregation:
            return {min(updates): self._sum(plan, updates, files)}
        shares: dict[int, Contribution] = {}
        for k, update in sorted(updates.items()):
            file = files.enter_context(TensorFile(path_of(plan.round, k)))
            weight = float(max(1, update.num_samples))
            shares[k] = Contribution(plan.parts[k].part, file, weight)
        if self.block:
            for k in set(range(len(plan.parts))) - set(shares):
                shares[k] = self._last_known(plan, k, kept.get(str(k)), shares, files)
        return dict(sorted(shares.items()))

    def _sum(
        self, plan: RoundPlan, updates: Mapping[int, Update], files: ExitStack
    ) -> Contribution:
        """Masked updates, as the one mean that can be read of them."""
        old = files.enter_context(TensorFile(self.store.base_path(plan.base)))
        paths = [self.update_path(plan.round, k) for k in sorted(updates)]
        masks = [(bytes.fromhex(key), way) for key, way in self.store.fact("unmasking")["masks"]]
        shares = shares_of([max(1, part.num_samples) for part in plan.parts], "")
        share = sum(shares[k].share for k in sorted(updates))
        opened = [files.enter_context(TensorFile(path)) for path in paths]
        return Contribution(WHOLE, UnmaskedMean(opened, masks, share, old), 1.0)

    def _last_known(
        self,
        plan: RoundPlan,
        k: int,
        kept: Mapping[str, Any] | None,
        live: Mapping[int, Contribution],
        files: ExitStack,
    ) -> Contribution:
        """A missing slice of mode block: its last update, or a stand-in that does not count yet."""
        if kept:
            file = files.enter_context(TensorFile(self.store.folder / "parts" / kept["file"]))
            return Contribution(plan.parts[k].part, file, float(kept["samples"]))
        planned = plan.parts[k]
        tensors = stand_in(self.base, planned.part, [live[j] for j in sorted(live)], planned.seed)
        return Contribution(planned.part, Tensors(tensors), 0.0)

    def _write_base(
        self, plan: RoundPlan, shares: Mapping[int, Contribution], out: Path, files: ExitStack
    ) -> str:
        old = self.store.base_path(plan.base)
        merger = self._merger(plan, shares, files)
        metadata = {"partsum.base": str(plan.round + 1)}
        if self.config.parts.aggregate == "gradients":
            # The middle: at its end the schedule may be at zero, and the round would be lost.
            middle = sum(plan.progress) / 2
            folder = self.store.folder / "bases"
            step = GradientStep(self.config.training, self.base.shape, folder, middle)
            digest = step.apply(old, merger, out, plan.round)
        elif self.config.outer.optimizer != "average":
            optimizer = make_optimizer(self.config.outer)
            folder = self.store.folder / "bases"
            spares = self.store.spares
            outer = OuterStep(optimizer, self.base.trained, folder, spares, self.factors)
            anew = plan.round in self._anew
            digest = outer.apply(old, merger, out, metadata, plan.round, anew)
        else:
            scaling = scaled(merger, self.factors)
            digest = write_merged(old, scaling, out, metadata, spares=self.store.spares)
        if self.block:
            return digest
        off = self.config.gates.off
        return self.base.recalibrated(out, self.train, self.config.seed, off) or digest

    def _merger(
        self, plan: RoundPlan, shares: Mapping[int, Contribution], files: ExitStack
    ) -> Merging:
        merger, parts = self.aggregator.merger(plan, shares, files), self.config.parts
        if not parts.is_copies:
            return merger
        last = plan.round + 1 == parts.rounds and self.config.handoff.enabled
        slices = equal_slices(self.base.widths, parts.count)
        return CopyMerger(merger, self.base.widths, slices, self.config.seed if last else None)

    def _facts(self, plan: RoundPlan, updates: Mapping[int, Update]) -> dict[str, object]:
        """What the next round goes on from beside the base, to be committed with this one."""
        if self.block:
            return self._keep_parts(plan, updates)
        facts: dict[str, object] = {}
        if self.config.privacy.secure_aggregation:
            facts["unmasking"] = None  # it has served
        if self.config.wire.down == "int8":
            facts |= self._next_start(plan)
        if self.config.parts.planner == "relevance":
            version = plan.round + 1
            facts |= self.first_base.survey.facts(self.store.base_path(base_name(version)), version)
        moments = moments_path(self.store.folder / "bases", plan.round + 1)
        return facts | ({"moments": file_digest(moments)} if moments.exists() else {})

    def _next_start(self, plan: RoundPlan) -> dict[str, str]:
        """What nodes start the next round from."""
        version, before = plan.round + 1, plan.parts[0].start
        assert before is not None
        base = self.store.base_path(base_name(version))
        return self.cutter.chain.extend(base, version, before)

    def _keep_parts(self, plan: RoundPlan, updates: Mapping[int, Update]) -> dict[str, object]:
        """Mode block: parts go on from their own last update, so these are kept beside the base."""
        kept = dict(self.store.fact("parts") or {})
        for k, update in updates.items():
            kept[str(k)] = {
                "file": self._keep_update(plan.round, k).name,
                "blob": vars(update.blob),
                "samples": max(1, update.num_samples),
            }
        sync_folder(self.store.folder / "parts")
        return {"parts": kept}

    def _keep_update(self, round: int, part: int) -> Path:
        """Keep an update beside the bases. Once this returns its bytes are on disk."""
        path = self.store.part_path(round, part)
        path.unlink(missing_ok=True)
        os.link(self.update_path(round, part), path)
        sync_file(path)
        return path

    def files_of(self, round: int) -> dict[Path, str]:
        """The files beside the base that go on from a committed round, and their digests."""
        facts, folder = self.store.round_facts(round), self.store.folder
        kept = (facts.get("parts") or {}).values()
        files = {folder / "parts" / entry["file"]: entry["blob"]["digest"] for entry in kept}
        if "moments" in facts:
            files[moments_path(folder / "bases", round + 1)] = facts["moments"]
        return files | self.cutter.chain.files(round + 1, facts)

    def kept_paths(self, rounds: int = 0) -> set[Path]:
        """The files of the newest committed ``rounds``; 0: of all."""
        newest = list(self.store.results())[-rounds:]
        return {path for round in newest for path in self.files_of(round)}

    # -- evaluation -------------------------------------------------------------------------------

    def norm_parts(self, plan: RoundPlan | None) -> list[Part]:
        """The parts whose slices layer norms keep to: those of mode block, else none.

        Without a plan, as no round was made: the slices that base 0 is fused from.
        """
        if not self.block:
            return []
        if plan is None:
            return self.first_base.start.check()
        return [planned.part for planned in plan.parts]

    def _evaluate(
        self, plan: RoundPlan, shares: Mapping[int, Contribution], path: Path
    ) -> Scores | None:
        parts, done = self.config.parts, plan.round + 1
        wanted = done == parts.rounds or (parts.evaluate_every and done % parts.evaluate_every == 0)
        if not (wanted or self.block):
            return None
        model = self.base.model(path, self.norm_parts(plan), self.config.gates.off)
        if self.block:  # at every merge: what it finds would show nowhere else
            assert_merge(self.base, model, list(shares.values()), self.validation)
        return self.base.scores(model, self.validation) if wanted else None
