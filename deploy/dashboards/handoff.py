"""DeepSpeed's training of the merged base."""

from __future__ import annotations

from deploy.dashboards.board import board
from deploy.dashboards.panels import EVERY, Panels, lines, number, share

_DURING = 'and on (job, instance) partsum_phase{@, phase="handoff"} == 1'
_STEP, _STEPS = "max(partsum_handoff_step{@})", "max(partsum_handoff_steps_planned{@})"
_PACE = f"max(deriv(partsum_handoff_step{{@}}[{EVERY}]) > 0)"


def _now() -> Panels:
    return [
        share("Done", {"steps": f"{_STEP} / {_STEPS}"}, "Steps taken, of all.", width=4),
        lines(
            "Step",
            "short",
            {"step": _STEP, "planned": _STEPS},
            "Optimizer steps; one that a restart repeats is not counted twice.",
            width=10,
        ),
        lines(
            "Speed",
            "short",
            {"samples a second": "max(partsum_handoff_samples_per_second{@})"},
            "Over all ranks, evaluations and checkpoints not counted.",
            width=10,
        ),
    ]


def _learning() -> Panels:
    return [
        lines(
            "Training loss",
            "none",
            {"loss": "max(partsum_handoff_loss{@})"},
            "A mean since the last report.",
            width=8,
        ),
        lines(
            "Validation loss",
            "none",
            {"loss": f"partsum_loss{{@}} {_DURING}"},
            "Of the model in training, whenever it was evaluated; at first the merged base's.",
            width=8,
        ),
        lines(
            "Accuracy",
            "none",
            {"headline metric": f"partsum_accuracy{{@}} {_DURING}"},
            "The task's headline metric on validation data.",
            width=8,
        ),
    ]


def _needs() -> Panels:
    return [
        number(
            "Time left",
            "s",
            {"left": f"({_STEPS} - {_STEP}) / {_PACE}"},
            "At the pace of the last few scrapes.",
            width=4,
        ),
        lines(
            "Memory",
            "bytes",
            {
                "rank 0, peak": "max(partsum_handoff_memory_bytes{@})",
                "coordinator": f"partsum_resident_memory_bytes{{@}} {_DURING}",
            },
            "Peak of the job's rank 0 (resident, or the GPU's), beside the coordinator's own.",
            width=20,
        ),
    ]


def handoff() -> str:
    """Step, losses, accuracy, speed, memory."""
    return board(
        "partsum: hand-off",
        "partsum-handoff",
        "DeepSpeed's training of the merged base. Empty until the parts phase is over.",
        {"Progress": _now(), "Learning": _learning(), "Needs": _needs()},
    )
