"""One run: its folder, task and data, and the work of its rounds, awaited by the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from partsum.coordinator.base import Base
from partsum.coordinator.clock import RunClock, Stages
from partsum.coordinator.cohort import Change
from partsum.coordinator.cutter import blob_of
from partsum.coordinator.folder import DEEPSPEED_COPY
from partsum.coordinator.gate_certificate import certify_gates, check_regularisation
from partsum.coordinator.handoff import HandoffProgress
from partsum.coordinator.handoff_config import deepspeed_settings
from partsum.coordinator.handoff_cost import check_handoff
from partsum.coordinator.invariants import certify
from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.phases import total_rounds
from partsum.coordinator.records import RoundPlan, RoundResult
from partsum.coordinator.recovery import Recovery
from partsum.coordinator.search import used_gates
from partsum.coordinator.standings import standings_of
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan, make_workplan
from partsum.coordinator.workshop import Workshop
from partsum.coordinator.workshops import Workshops
from partsum.shared.config import HandoffConfig, RunConfig
from partsum.shared.errors import DataError, TaskError
from partsum.shared.messages import (
    NodeProfile,
    NodeStatus,
    RunStatus,
    TaskSpec,
    Update,
)
from partsum.shared.task import (
    Task,
    data_digest,
    load_samples,
    load_task,
    task_digest,
)

log = logging.getLogger(__name__)


_CHECKS = 2  # updates looked at together: each holds some tensors, and nodes may be many


class Run:
    """A run in its folder, opened or resumed. Heavy work happens in worker threads."""

    def __init__(self, config: RunConfig, store: Store, clock: RunClock) -> None:
        self.config = config
        self.store = store
        self.folder = store.folder
        self.clock = clock
        self.stages = Stages()
        spec = TaskSpec(config.task.name, config.task.options)
        self.task: Task = load_task(spec)
        expected = task_digest(spec)
        self.train = load_samples(self.task.train, "training")
        self.validation = load_samples(self.task.validation, "validation")
        self.digests = (expected, data_digest(self.train))
        self._check_same_run()
        if config.deterministic:
            # Not use_deterministic_algorithms, which imports a compiler: 1.7 s (measured), for
            # which a restarted coordinator would keep its nodes waiting.
            torch.set_deterministic_debug_mode("warn")
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        self.base = Base(self.task, device)
        self.workshops = Workshops(config, store, self.base, self.train, self.validation)
        self.workshop = self.workshops.parts
        self._checks = asyncio.Semaphore(_CHECKS)
        self.next_round = 0
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.opened = 0.0
        self.handoff_progress: HandoffProgress | None = None
        self._workplan: Workplan | None = self._stored_workplan()
        self.board: Leaderboard | None = None  # of a search over structures

    def _check_same_run(self) -> None:
        """A resumed run must have the task and data that it was started with."""
        for key, now in zip(("task_digest", "data_digest"), self.digests, strict=True):
            before = self.store.fact(key)
            if before not in (None, now):
                error = TaskError if key == "task_digest" else DataError
                raise error(
                    f"the {key.split('_')[0]} has changed since {self.folder} was started; put the "
                    "old one back to resume, or start a new run with --new"
                )
            self.store.note(**{key: now})

    def workshop_of(self, round: int) -> Workshop:
        """Who works on a round."""
        return self.workshops.of(round)

    def handoff_config(self) -> HandoffConfig:
        """The hand-off's section; it names the run's own copy of a DeepSpeed file."""
        handoff = self.config.handoff
        if handoff.deepspeed_config is None:
            return handoff
        return handoff.model_copy(update={"deepspeed_config": str(self.folder / DEEPSPEED_COPY)})

    def prepare(self) -> None:
        """Everything that can be wrong with model, data or folder is found here, before nodes."""
        if self.config.handoff.enabled:
            deepspeed_settings(self.handoff_config(), self.config.training)
            check_handoff(self.config, self.base, self.train)
        recovery = Recovery(self.store, self.workshop_of, self.clock.now())
        recovery.recover_rounds()
        self.workshops.gone_back()
        for result, _, _ in self.store.results().values():
            self.next_round += 1
            self.loss, self.accuracy = result.loss, result.accuracy
        self.board = self.workshop.board()
        if not self.config.parts.rounds:
            certify_gates(self.base, self.config.gates.off, self.validation)
            check_regularisation(self.base, self.config.regularisation)
            return
        self.workshop.aggregator.prepare()
        if self._workplan is None:  # else it was certified, and neither task nor data has changed
            trial = make_workplan(self.config, self.base, self.train, {})
            cutter = self.workshop.cutter
            slices = cutter.slices(trial)
            certify(self.base, slices, cutter.cuts_all, self.validation)
            certify_gates(self.base, used_gates(self.config, self.base), self.validation)
            check_regularisation(self.base, self.config.regularisation, slices)
        recovery.recover_clusters(self.workshop.cutter.make_clusters)

    # -- rounds -----------------------------------------------------------------------------------

    async def open_round(
        self, round: int, profiles: Mapping[str, NodeProfile]
    ) -> tuple[RoundPlan, list[str], list[int]]:
        """The round's plan, each part's holder, and the parts that are in already."""
        self.opened = self.clock.now()
        plan = self.store.plan(round)
        done: list[int] = []
        if plan is not None:
            done = await asyncio.to_thread(self._whole_updates, round)
            with self.stages.timing("plan"):
                await asyncio.to_thread(self.workshop_of(round).cutter.restore_starts, plan)
        else:
            with self.stages.timing("plan"):
                if round == 0:
                    await asyncio.to_thread(self.workshop.first_base.rank_units)
                workplan = await asyncio.to_thread(self.workplan, profiles)
                cutter = self.workshop_of(round).cutter
                plan = await asyncio.to_thread(cutter.plan_round, workplan, round)
            self.store.open_round(plan, self.opened)
        seen = self.store.holders(round)
        holders = [seen.get(k, part.holder) for k, part in enumerate(plan.parts)]
        return plan, holders, done

    def _whole_updates(self, round: int) -> list[int]:
        """Parts whose spooled update survived; others are asked for again."""
        whole = []
        for part, received in self.store.updates(round).items():
            path = self.workshop.update_path(round, part)
            if path.exists() and blob_of(path) == received.update.blob:
                whole.append(part)
            else:
                text = f"round {round + 1}: the spooled update of part {part} is damaged or gone"
                log.warning("%s; it is asked for again", text)
                self.store.note_event(self.clock.now(), "damaged", text, received.node, part)
                self.store.forget_update(round, part)
        return whole

    def note_holder(self, round: int, part: int, node: str) -> None:
        """Who has a part, so that a restarted coordinator waits for the same node."""
        self.store.note_holder(round, part, node)

    async def check_update(self, path: Path, plan: RoundPlan, part: int) -> Change:
        """How far an update lies from its start. Raises UpdateRefusedError: it does not fit."""
        async with self._checks:
            workshop = self.workshop_of(plan.round)
            return await asyncio.to_thread(workshop.check_update, path, plan, part)

    async def decode_update(
        self, path: Path, update: Update, plan: RoundPlan
    ) -> tuple[Path, Update]:
        """The update as it is merged. Raises UpdateRefusedError where it cannot be had."""
        async with self._checks:
            decoder = self.workshop_of(plan.round).decoder
            return await asyncio.to_thread(decoder.decode, path, update, plan)

    def take_update(self, node: str, update: Update, path: Path, at: float, change: Change) -> None:
        """Name the spooled update and write it into the journal."""
        os.replace(path, self.workshop.update_path(update.round, update.part_index))
        self.store.take_update(node, update, at, change)

    def drop_update(self, round: int, part: int) -> None:
        """Forget an update that is not to be merged; then its file may go."""
        self.store.forget_update(round, part)
        self.workshop.update_path(round, part).unlink(missing_ok=True)

    async def close_round(self, plan: RoundPlan, missing: tuple[int, ...]) -> RoundResult:
        """Merge, evaluate and commit."""
        result, facts = await asyncio.to_thread(
            self.workshop_of(plan.round).merge_round, plan, missing, self.stages
        )
        result = replace(result, stage_seconds=self.stages.take())
        await asyncio.to_thread(self._commit, plan.round, result, facts)
        self.next_round = plan.round + 1
        self.board = self.workshop.board()
        if result.loss is not None:
            self.loss, self.accuracy = result.loss, result.accuracy
        return result

    def _commit(self, round: int, result: RoundResult, facts: Mapping[str, object]) -> None:
        """In an order that is safe to die in: what the newer needs goes only once it is there."""
        with self.stages.timing("commit"):
            self.store.commit_round(round, result, self.clock.now(), facts)
            keep = max(2, self.config.keep_bases) if self.config.keep_bases else 0
            if not self.store.journal.back_up():
                keep = 0  # the last backup still speaks of the bases that would go now
            last_parts = self.config.parts.rounds - 1  # whose plan the report shows
            self.store.tidy(keep, self.workshops.kept_paths(keep), last_parts)
            if round + 1 == total_rounds(self.config):
                self.store.spares.clear()  # nothing comes that could be written over them

    def leave(self) -> None:
        """This coordinator ends: what takes long in a worker thread is not waited for."""
        self.workshop.first_base.survey.leave()

    def epsilon(self) -> float | None:
        """What the bases so far have spent of privacy; None where none is promised."""
        return self.workshop.aggregator.ledger.spent(self.config)

    # -- the run's plan ---------------------------------------------------------------------------

    def _stored_workplan(self) -> Workplan | None:
        stored = self.store.fact("workplan")
        if stored is None:
            return None
        return Workplan(tuple(stored["fractions"]), tuple(stored["holders"]), stored["share"])

    def workplan(self, profiles: Mapping[str, NodeProfile]) -> Workplan:
        """Made once, when the first nodes are there, and kept in the journal."""
        if self._workplan is None:
            self._workplan = make_workplan(self.config, self.base, self.train, profiles)
            self.store.note(workplan=vars(self._workplan))
        return self._workplan

    # -- what is seen of it -----------------------------------------------------------------------

    def status(
        self,
        phase: str,
        reason: str,
        parts: tuple[int, int],
        bytes_moved: tuple[int, int],
        nodes: tuple[NodeStatus, ...],
    ) -> RunStatus:
        """The run as an operator sees it; ``parts``: how many are in, and how many there are."""
        nan = float("nan")
        progress = self.handoff_progress
        return RunStatus(
            run=self.folder.name,
            phase=phase,  # type: ignore[arg-type]
            reason=reason,
            round=self.next_round,
            rounds=total_rounds(self.config),
            parts_in=parts[0],
            parts=parts[1] or self.config.parts.count,
            loss=nan if self.loss is None else self.loss,
            accuracy=nan if self.accuracy is None else self.accuracy,
            handoff_step=progress.step if progress else 0,
            handoff_steps=progress.steps if progress else 0,
            elapsed_seconds=self.clock.now(),
            bytes_sent=bytes_moved[0],
            bytes_received=bytes_moved[1],
            nodes=nodes,
            folder=str(self.folder),
            standings=standings_of(self.board) if self.board else (),
        )
