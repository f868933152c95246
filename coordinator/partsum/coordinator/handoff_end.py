"""Where a hand-off over nodes begins and ends: the base's first scores, and the final weights."""

from __future__ import annotations

import math
from pathlib import Path

from partsum.coordinator.cutter import base_name
from partsum.coordinator.handoff_model import final_metadata
from partsum.coordinator.handoff_workshop import HandoffWorkshop
from partsum.coordinator.phases import handoff_rounds
from partsum.coordinator.run import Run
from partsum.shared.files import file_digest
from partsum.shared.task import Scores
from partsum.shared.tensors import save_tensors


def score_start(run: Run) -> None:
    """Note what the merged base is worth before nodes train it, once: step 0 of the curve."""
    if run.store.fact("handoff_start") is not None:
        return
    loss, accuracy = run.loss, run.accuracy
    if loss is None:  # no round before, or none that was evaluated
        first = handoff_rounds(run.config).start
        works = run.workshop_of(first)
        assert isinstance(works, HandoffWorkshop)
        norm_parts, off = works.cutter.norm_parts(first), works.config.gates.off
        model = run.base.model(run.store.base_path(base_name(run.next_round)), norm_parts, off)
        scores = run.base.scores(model, run.validation)
        loss, accuracy = scores.loss, scores.accuracy
    found = {"loss": _finite(loss), "accuracy": _finite(accuracy)}
    run.store.note(handoff_start=found)
    body = {"loss": None, "validation_loss": found["loss"], "accuracy": found["accuracy"]}
    run.store.note_curve(0, run.clock.now(), body)


def write_final(run: Run, path: Path) -> Scores:
    """Write the newest base, as the hand-off on one host writes what it trained; its scores."""
    round = run.next_round - 1
    works, plan = run.workshop_of(round), run.store.plan(round)
    norm_parts, off = works.norm_parts(plan), works.config.gates.off
    model = run.base.model(run.store.base_path(base_name(run.next_round)), norm_parts, off)
    scores = run.base.scores(model, run.validation)
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    kept = [{name: list(units) for name, units in part.units.items()} for part in norm_parts]
    config = run.config
    metadata = final_metadata(config.task.name, config.seed, config.handoff.norms, kept, off)
    save_tensors(path, tensors, metadata)
    return scores


def note_end(run: Run, final: Path, scores: Scores) -> None:
    """The hand-off is done: what it was, and the digest of what it left."""
    run.loss, run.accuracy = scores.loss, scores.accuracy
    run.store.note(
        handoff={
            "digest": file_digest(final),
            "start": run.store.fact("handoff_start"),
            "end": vars(scores),
            "ended": run.clock.now(),
            "peak_memory_bytes": None,  # the nodes' own, which the registry knows
        }
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
