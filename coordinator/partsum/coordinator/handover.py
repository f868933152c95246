"""From the parts phase to DeepSpeed: the job that a run makes, and what comes back of it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from partsum.coordinator.cutter import base_name
from partsum.coordinator.handoff import (
    HandoffDiedError,
    HandoffJob,
    HandoffProgress,
    HandoffResult,
    run_handoff,
)
from partsum.coordinator.handoff_end import note_end, score_start, write_final
from partsum.coordinator.phases import phase_of
from partsum.coordinator.run import Run
from partsum.shared.files import file_digest, sync_folder

log = logging.getLogger(__name__)


def begin_handoff(run: Run, bytes_moved: tuple[int, int]) -> None:
    """Note where the parts phase ended, once."""
    if run.store.fact("handoff_began") is None:
        run.store.note(handoff_began=run.clock.now(), parts_bytes=bytes_moved)


async def begin_round(run: Run, round: int, bytes_moved: tuple[int, int]) -> None:
    """Note what nodes moved in the phase before, once, where another begins.

    Before the first round in which nodes train the hand-off, its base is scored.
    """
    phase = phase_of(run.config, round)
    if phase == "cotrain" and run.store.fact("search_bytes") is None:
        run.store.note(search_bytes=bytes_moved)
    if phase == "handoff":
        begin_handoff(run, bytes_moved)
        await asyncio.to_thread(score_start, run)


async def hand_over(run: Run, bytes_moved: tuple[int, int], changed: Callable[[], None]) -> None:
    """Let DeepSpeed train the merged base; its result becomes the run's ``final.safetensors``.

    Where nodes did that, in rounds, the result is the last of these.
    ``changed`` is called whenever there is news in ``run.handoff_progress``. Raises HandoffError.
    """
    begin_handoff(run, bytes_moved)
    done, final = run.store.fact("handoff"), run.folder / "final.safetensors"
    if done is not None and _is_whole(final, done):  # killed between this and the run's end
        run.loss, run.accuracy = done["end"]["loss"], done["end"]["accuracy"]
        return

    if run.config.handoff.over_nodes:
        note_end(run, final, await asyncio.to_thread(write_final, run, final))
        return

    def note(progress: HandoffProgress) -> None:
        run.handoff_progress = progress
        # Before the first step there is no training loss, only the start's evaluation.
        body: dict[str, float | None] = {"loss": progress.loss if progress.step else None}
        if progress.scores is not None:
            run.loss, run.accuracy = progress.scores.loss, progress.scores.accuracy
            body |= {"validation_loss": run.loss, "accuracy": run.accuracy}
        run.store.note_curve(progress.step, run.clock.now(), body)
        changed()

    result = await _insist(run, note)
    run.loss, run.accuracy = result.scores.loss, result.scores.accuracy
    os.replace(result.final, final)
    sync_folder(run.folder)
    run.store.note(
        handoff={
            "digest": file_digest(final),
            "start": vars(result.start_scores),
            "end": vars(result.scores),
            "ended": run.clock.now(),
            "peak_memory_bytes": result.peak_memory_bytes,
        }
    )


async def _insist(run: Run, note: Callable[[HandoffProgress], None]) -> HandoffResult:
    """The hand-off's result, over as many jobs as it takes, while they get any further."""
    limit, job = run.config.handoff.restarts, handoff_job(run)
    furthest, fruitless = _newest_checkpoint(job.folder), 0
    while True:
        try:
            return await run_handoff(job, note)
        except HandoffDiedError as error:
            reached = _newest_checkpoint(job.folder)
            if reached > furthest:
                furthest, fruitless = reached, 0
            if fruitless == limit:
                raise
            fruitless += 1
            where = f"from the checkpoint of step {reached}" if reached else "from the base"
            text = f"{error}\nIt starts again {where}: restart {fruitless} of {limit} there"
            log.warning("%s", text)
            run.store.note_event(run.clock.now(), "handoff", text)


def _newest_checkpoint(folder: Path) -> int:
    """The step of the newest checkpoint that was declared whole; 0 where there is none."""
    manifests = (folder / "checkpoints").glob("*/whole.json")
    return max((int(manifest.parent.name) for manifest in manifests), default=0)


def _is_whole(final: Path, done: Mapping[str, object]) -> bool:
    """Whether the final weights are those of the hand-off that is done; else it is said."""
    if final.exists() and done.get("digest") in (None, file_digest(final)):
        return True
    log.error("%s is damaged or gone; the hand-off goes on from its newest checkpoint", final)
    return False


def handoff_job(run: Run) -> HandoffJob:
    """What DeepSpeed is to do with the newest base."""
    config = run.config
    plan = run.store.plan(run.next_round - 1) if run.next_round else None
    grouped = config.handoff.norms == "grouped"
    norm_parts = run.workshop.norm_parts(plan) if grouped else []
    return HandoffJob(
        task=config.task,
        base=run.store.base_path(base_name(run.next_round)),
        folder=run.folder / "handoff",
        seed=config.seed,
        deterministic=config.deterministic,
        handoff=run.handoff_config(),
        training=config.training,
        regularisation=config.regularisation,
        share=run.workplan({}).share,
        norm_parts=[{n: list(u) for n, u in part.units.items()} for part in norm_parts],
        off=run.store.fact("structure") or config.gates.off,
    )
