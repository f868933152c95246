"""The commands that look at a model before anything is spent on it: plan, inspect, grow."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_model_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Register the commands; heavy imports wait until one is run."""
    _add_plan(commands)
    _add_inspect(commands)
    _add_grow(commands)


def _add_plan(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "plan",
        help="the dry run: parts, parameters, FLOPs, bytes and memory, before anything is spent",
        description="Show what a run would do: its parts and what each costs. Trains nothing.",
    )
    parser.add_argument("config", type=Path, metavar="RUN.TOML", help="the run's config")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from partsum.coordinator.dry_run import show_plan

    return show_plan(options.config, options.json)


def _add_inspect(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="how a task's model is cut: its width groups, what stays whole, the certificate",
        description="Show a model's width groups, what stays whole and why, and what a part costs; "
        "check that a cut model computes what it should. Trains nothing.",
    )
    parser.add_argument(
        "task", nargs="?", metavar="TASK", help="as package.module:function; else the config's"
    )
    parser.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the task, a value as in TOML; may be given again",
    )
    parser.add_argument("--config", type=Path, metavar="RUN.TOML", help="take task and parts of it")
    parser.add_argument(
        "--parts", type=int, metavar="K", help="how many equal parts (default: the config's, or 4)"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the model's tensors")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--shapes-only",
        action="store_true",
        help="no weights, no data, no certificate: for models that do not fit here",
    )
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from partsum.coordinator.inspect_command import show_inspection

    return show_inspection(
        options.task,
        options.options,
        options.config,
        options.parts,
        options.svg,
        options.json,
        options.shapes_only,
    )


def _add_grow(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "grow",
        help="write the base that a run would grow from smaller trained models",
        description="Write the base that a run would start from, grown from the models that its "
        "[start] names, and say what it computes beside them. Trains nothing.",
    )
    parser.add_argument("config", type=Path, metavar="RUN.TOML", help="the run's config")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", required=True, help="the safetensors file to write"
    )
    parser.set_defaults(run=_grow)


def _grow(options: argparse.Namespace) -> int:
    from partsum.coordinator.growth.command import write_grown

    return write_grown(options.config, options.out)
