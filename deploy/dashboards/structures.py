"""A search over structures."""

from __future__ import annotations

from deploy.dashboards.board import board
from deploy.dashboards.panels import Panels, bars, lines, number, rows

_STRUCTURE = "{{structure}}"


def _now() -> Panels:
    return [
        number(
            "Structures in the newest round",
            "short",
            {"structures": "max(partsum_structures{@})"},
            "After each rung the best of them go on.",
            width=8,
        ),
        number(
            "Best",
            "none",
            {"headline metric": "max(partsum_structure_best{@})"},
            "Headline metric of the best structure, on the samples that structures are ranked on.",
            width=8,
            decimals=4,
        ),
        number(
            "Rounds",
            "short",
            {"committed": "max(partsum_round{@})", "planned": "max(partsum_rounds_planned{@})"},
            "Rounds that are committed, and those that the config asks for.",
            width=8,
        ),
    ]


def _leaders() -> Panels:
    return [
        rows(
            "Leaderboard",
            "structure",
            {
                "Accuracy": ("none", "max by (structure) (partsum_structure_accuracy{@})"),
                "Loss": ("none", "max by (structure) (partsum_structure_loss{@})"),
                "Parameters": ("short", "max by (structure) (partsum_structure_parameters{@})"),
                "FLOPs a sample": ("short", "max by (structure) (partsum_structure_flops{@})"),
                "Time a sample": ("s", "max by (structure) (partsum_structure_sample_seconds{@})"),
            },
            "The first ten. Each digit of a structure is a gate: 1 on, 0 off; the order of the "
            "gates is in the run's report. FLOPs are of training; a node measured the time.",
        ),
    ]


def _over_time() -> Panels:
    return [
        lines(
            "Accuracy",
            "none",
            {_STRUCTURE: "partsum_structure_accuracy{@}"},
            "Of the first ten, on the samples that structures are ranked on.",
        ),
        lines("Loss", "none", {_STRUCTURE: "partsum_structure_loss{@}"}, "Of the first ten."),
        lines(
            "Structures",
            "short",
            {"in the newest round": "max(partsum_structures{@})"},
            "How many are left.",
        ),
        lines(
            "Best",
            "none",
            {"headline metric": "max(partsum_structure_best{@})"},
            "The best so far; it may fall when the search goes on with other structures.",
        ),
    ]


def _cost() -> Panels:
    return [
        bars(
            "Parameters",
            "short",
            {_STRUCTURE: "max by (structure) (partsum_structure_parameters{@})"},
            "Of the first ten.",
        ),
        bars(
            "Time a sample",
            "s",
            {_STRUCTURE: "max by (structure) (partsum_structure_sample_seconds{@})"},
            "Seconds of training for a sample, as the node that did it measured.",
        ),
    ]


def structures() -> str:
    """How many are left, the best, the leaderboard, cost."""
    return board(
        "partsum: structures",
        "partsum-structures",
        "A search over which of a model's gates to keep. Empty in a run that searches for none.",
        {"Now": _now(), "Who leads": _leaders(), "Over time": _over_time(), "Cost": _cost()},
    )
