"""The coordinator's commands: coordinator, run, study, demo; models' and access's are next door."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from partsum.coordinator.access_commands import add_access_commands
from partsum.coordinator.model_commands import add_model_commands


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Register the commands; heavy imports wait until one is run."""
    _add_coordinator(commands)
    _add_run(commands)
    add_model_commands(commands)
    _add_study(commands)
    _add_demo(commands)
    add_access_commands(commands)


def _add_coordinator(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "coordinator",
        help="serve a run: plan parts, gather updates, merge, hand off",
        description="Serve one run to its end. An unfinished run of the same config is resumed.",
    )
    parser.add_argument("--config", type=Path, metavar="RUN.TOML", help="the run's config")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with this run folder; needs no --config"
    )
    parser.add_argument(
        "--new", action="store_true", help="start a new run even if one could go on"
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    # For a parent process: a line of JSON is written to this descriptor once nodes can dial in.
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(run=_coordinator)


def _coordinator(options: argparse.Namespace) -> int:
    from partsum.coordinator.launch import run_coordinator

    return run_coordinator(
        options.config, options.resume, options.new, options.verbose, options.ready_fd
    )


def _add_run(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "run",
        help="look at runs and stop them",
        description="Look at runs, here or at a coordinator elsewhere, and stop them.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    helps = {
        "status": "one look at a run",
        "watch": "follow a run until it ends",
        "stop": "end the coordinator cleanly; the run can be resumed",
    }
    for name, text in helps.items():
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument(
            "--run",
            dest="folder",
            type=Path,
            default=Path("runs/latest"),
            metavar="RUN",
            help="the run's folder (default: runs/latest)",
        )
        action.add_argument(
            "--coordinator", metavar="HOST:PORT", help="ask this coordinator instead of a folder"
        )
        action.add_argument(
            "--credentials",
            type=Path,
            metavar="FILE",
            help="an operator's credentials (on the coordinator's host: the access folder's)",
        )
        if name == "status":
            action.add_argument("--json", action="store_true", help="print JSON")
        action.set_defaults(run=_run_action, action=name)
    listing = actions.add_parser("list", help="all runs here", description="All runs here.")
    listing.add_argument(
        "--folder",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where run folders are (default: runs)",
    )
    listing.set_defaults(run=_run_list)


def _run_action(options: argparse.Namespace) -> int:
    from partsum.coordinator import operator

    if options.action == "stop":
        return operator.stop(options.folder, options.coordinator, options.credentials)
    if options.action == "watch":
        return operator.watch_run(options.folder, options.coordinator, options.credentials)
    return operator.status(options.folder, options.coordinator, options.credentials, options.json)


def _run_list(options: argparse.Namespace) -> int:
    from partsum.coordinator import operator

    return operator.list_all(options.folder)


def _add_study(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "study",
        help="the effect of the dropout percentage: small models cut from one base, compared",
        description="Train a small model on the nodes for every combination under [study], and "
        "show accuracy against parameters, FLOPs and time. Run again after Ctrl-C, it resumes; run "
        "again when it is finished, it shows the table again.",
    )
    parser.add_argument("config", type=Path, metavar="RUN.TOML", help="the config with a [study]")
    parser.add_argument(
        "--nodes",
        type=int,
        default=0,
        metavar="N",
        help="start N node processes here, of one thread each (default: wait for nodes that dial "
        "in, as `partsum coordinator` does)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where the figures go as CSV")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where the picture goes")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the models and what they cost; train nothing"
    )
    parser.add_argument("--new", action="store_true", help="start anew instead of resuming")
    parser.set_defaults(run=_study)


def _study(options: argparse.Namespace) -> int:
    from partsum.coordinator.study_command import StudyOptions, run_study

    given = {name: getattr(options, name) for name in StudyOptions.__dataclass_fields__}
    return run_study(StudyOptions(**given))


def _add_demo(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "demo",
        help="the whole job on this machine: a coordinator, four nodes, DeepSpeed, real data",
        description="Train scikit-learn's digits with a coordinator and node processes on "
        "loopback, then hand the base to DeepSpeed. Run again after Ctrl-C, it resumes.",
    )
    parser.add_argument(
        "--nodes", type=int, default=4, metavar="N", help="node processes (default: 4)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="RUN.TOML", help="another config than the built-in one"
    )
    parser.add_argument("--new", action="store_true", help="start anew instead of resuming")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from partsum.coordinator.demo import run_demo

    return run_demo(options.nodes, options.config, options.new)
