"""The run at a glance."""

from __future__ import annotations

from deploy.dashboards.board import board
from deploy.dashboards.panels import EVERY, Panels, lines, number, numbered, text, timeline

from partsum.coordinator.metrics import PHASES

_PHASE = {"phase": numbered("partsum_phase", "phase", PHASES, "instance")}
_HERE = 'sum(partsum_cluster_node_state{@, state!~"gone|benched"})'
_SPENT, _TIMES = (f"partsum_round_seconds_{kind}{{@}}[{EVERY}]" for kind in ("sum", "count"))
_STAGE_SPENT, _STAGE_TIMES = (
    f"sum by (stage) (rate(partsum_round_stage_seconds_{kind}{{@}}[{EVERY}]))"
    for kind in ("sum", "count")
)
_SLOW = f"histogram_quantile(0.95, sum by (le) (rate(partsum_round_seconds_bucket{{@}}[{EVERY}])))"


def _more(what: str) -> str:
    return f"increase(partsum_{what}_total{{@}}[{EVERY}])"


def _now() -> Panels:
    return [
        number("Phase", "none", _PHASE, "What the run is in.", names=PHASES),
        number(
            "Rounds",
            "short",
            {"committed": "max(partsum_round{@})", "planned": "max(partsum_rounds_planned{@})"},
            "Rounds that are committed, and those that the config asks for.",
        ),
        number(
            "Accuracy",
            "none",
            {"accuracy": "max(partsum_accuracy{@})"},
            "The task's headline metric on validation data, of the newest base; nothing where the "
            "task has none.",
            decimals=4,
        ),
        number(
            "Loss",
            "none",
            {"loss": "max(partsum_loss{@})"},
            "On validation data, of the newest base; nan where it has diverged.",
            decimals=4,
        ),
        number(
            "Moved, of full-model averaging",
            "percentunit",
            {"moved": "sum(partsum_bytes_total{@}) / sum(partsum_full_model_bytes_total{@})"},
            "Bytes moved, as a share of what averaging the full model would have moved for the "
            "same updates. Of a model below some hundred kB, messages are most of it.",
        ),
        number("Nodes here", "short", {"nodes": _HERE}, "Nodes that are connected and get work."),
        text(
            "Run",
            {"{{task}}, {{mode}}": "partsum_run_info{@}"},
            "The task, and the mode of its parts.",
            width=8,
        ),
        number(
            "Alerts",
            "short",
            {"firing": 'count(ALERTS{alertname=~"Partsum.*", alertstate="firing"}) or vector(0)'},
            "Alerts that are firing; docs/monitoring.md says what to do for each.",
        ),
        number(
            "Since it last got further",
            "s",
            {"seconds": "time() - max(partsum_progress_timestamp_seconds{@})"},
            "A node trained, an update came, a round closed, or the hand-off took steps.",
        ),
        number(
            "Updates in",
            "short",
            {"in": "max(partsum_round_updates{@})"},
            "Of the open round.",
        ),
        number(
            "Disk free",
            "bytes",
            {"free": "min(partsum_disk_free_bytes{@})"},
            "Room on the disk of the run's folder.",
        ),
    ]


def _learning() -> Panels:
    return [
        lines(
            "Accuracy",
            "none",
            {"headline metric": "max(partsum_accuracy{@})"},
            "The task's headline metric on validation data; in the hand-off too.",
        ),
        lines(
            "Loss",
            "none",
            {
                "validation, base": "max(partsum_loss{@})",
                "training, {{node}}": "partsum_train_loss{@}",
            },
            "Of the base on validation data, and of each node's part as it trains.",
        ),
    ]


def _rounds() -> Panels:
    return [
        timeline("Phase", PHASES, _PHASE, "What the run was in, over time.", height=4),
        lines(
            "Time per stage",
            "s",
            {"{{stage}}": f"{_STAGE_SPENT} / {_STAGE_TIMES}"},
            "Seconds of a round by stage, a mean of the rounds that closed then. Of send, train "
            "and receive it is the slowest node's, so stages may overlap.",
            stacked=True,
        ),
        lines(
            "Time per round",
            "s",
            {"mean": f"sum(rate({_SPENT})) / sum(rate({_TIMES}))", "95 % are faster than": _SLOW},
            "From a round's plan to its commit.",
        ),
        lines(
            "Rounds",
            "short",
            {
                "committed": "max(partsum_round{@})",
                "planned": "max(partsum_rounds_planned{@})",
                "updates in": "max(partsum_round_updates{@})",
            },
            "How far the run is; updates are those of the open round.",
        ),
        lines(
            "Coordinator's memory",
            "bytes",
            {
                "resident": "max(partsum_resident_memory_bytes{@})",
                "base": "max(partsum_base_bytes{@})",
            },
            "Resident memory, beside the size of the base's weights.",
        ),
    ]


def _bytes() -> Panels:
    return [
        lines(
            "Bytes moved",
            "bytes",
            {
                "moved": "sum(partsum_bytes_total{@})",
                "full-model averaging": "sum(partsum_full_model_bytes_total{@})",
            },
            "All that went out and came in, beside what averaging the full model would have moved "
            "for the same updates.",
        ),
        lines(
            "Refusals",
            "short",
            {
                "update: {{reason}}": f"sum by (reason) ({_more('updates_refused')})",
                "assignments failed": f"sum({_more('assignments_failed')})",
                "rounds without a part": f"sum({_more('rounds_partial')})",
                "loss not finite: {{of}}": f"sum by (of) ({_more('losses_not_finite')})",
            },
            "What went wrong. All of it is at 0 in a healthy run.",
        ),
        number(
            "Saved",
            "bytes",
            {"saved": "sum(partsum_full_model_bytes_total{@}) - sum(partsum_bytes_total{@})"},
            "Bytes that full-model averaging would have moved, and this run did not.",
            width=6,
        ),
        number(
            "Merge",
            "s",
            {"last": "max(partsum_merge_seconds{@})"},
            "Seconds of the last merge.",
            width=6,
        ),
        number(
            "Privacy spent",
            "none",
            {"epsilon": "max(partsum_privacy_epsilon{@})"},
            "Epsilon of each cluster's differential privacy; 0 where none is asked for.",
            width=6,
            decimals=2,
        ),
        number(
            "Updates accepted",
            "short",
            {"accepted": "sum(partsum_updates_total{@})"},
            "Since the coordinator started.",
            width=6,
        ),
    ]


def overview() -> str:
    """Phase, rounds, accuracy, loss, bytes against full-model averaging, time, refusals."""
    return board(
        "partsum: run",
        "partsum-run",
        "One run: how far it is, how good, what it has moved, and what went wrong.",
        {
            "Now": _now(),
            "Learning": _learning(),
            "Rounds": _rounds(),
            "Bytes and trouble": _bytes(),
        },
    )
