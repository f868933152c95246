"""From the parts phase to DeepSpeed: the job that a run makes, and what comes back of it."""

from __future__ import annotations

import os
from collections.abc import Callable

from partsum.coordinator.cutter import base_name
from partsum.coordinator.handoff import HandoffJob, HandoffProgress, run_handoff
from partsum.coordinator.run import Run


def begin_handoff(run: Run, bytes_moved: tuple[int, int]) -> None:
    """Note where the parts phase ended, once."""
    if run.store.fact("handoff_began") is None:
        run.store.note(handoff_began=run.clock.now(), parts_bytes=bytes_moved)


async def hand_over(run: Run, changed: Callable[[], None]) -> None:
    """Let DeepSpeed train the merged base; its result becomes the run's ``final.safetensors``.

    ``changed`` is called whenever there is news in ``run.handoff_progress``. Raises HandoffError.
    """

    done, final = run.store.fact("handoff"), run.folder / "final.safetensors"
    if done is not None and final.exists():  # killed between this and the run's end
        run.loss, run.accuracy = done["end"]["loss"], done["end"]["accuracy"]
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

    result = await run_handoff(handoff_job(run), note)
    run.loss, run.accuracy = result.scores.loss, result.scores.accuracy
    os.replace(result.final, final)
    run.store.note(
        handoff={
            "start": vars(result.start_scores),
            "end": vars(result.scores),
            "ended": run.clock.now(),
            "peak_memory_bytes": result.peak_memory_bytes,
        }
    )


def handoff_job(run: Run) -> HandoffJob:
    """What DeepSpeed is to do with the newest base."""
    config = run.config
    plan = run.store.plan(run.next_round - 1) if run.next_round else None
    grouped = config.handoff.norms == "grouped"
    norm_parts = run.workshop.norm_parts(plan) if grouped and plan else []
    return HandoffJob(
        task=config.task,
        base=run.store.base_path(base_name(run.next_round)),
        folder=run.folder / "handoff",
        seed=config.seed,
        deterministic=config.deterministic,
        handoff=run.handoff_config(),
        training=config.training,
        share=run.workplan({}).share,
        norm_parts=[{n: list(u) for n, u in part.units.items()} for part in norm_parts],
    )
