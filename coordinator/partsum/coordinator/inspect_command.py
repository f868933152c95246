"""``partsum inspect``: a task's width groups, looked at before anything is trained."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from partsum.coordinator.base import Base
from partsum.coordinator.inspect_picture import draw_inspection
from partsum.coordinator.inspect_table import print_inspection
from partsum.coordinator.inspection import inspect_base
from partsum.shared.config import load_config
from partsum.shared.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, ConfigError
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_samples, load_task

_PARTS = 4


def show_inspection(
    name: str | None,
    options: Sequence[str],
    config: Path | None,
    parts: int | None,
    svg: Path | None,
    as_json: bool,
    shapes_only: bool,
) -> int:
    """Print what a task's model is cut into.

    The exit code is 1 where the certificate fails, 2 where there are more parts than units.

    Raises:
        ConfigError: flags that cannot be used.
        PartsumError: as loading the task and finding its width groups do.
    """
    spec, count = _asked(name, options, config, parts)
    task = load_task(spec)
    base = Base(task, torch.device("cpu"))
    probe = None if shapes_only else cache(lambda: load_samples(task.validation, "validation"))
    inspection = inspect_base(base, spec.name, count, probe)
    if svg is not None:
        _write(svg, draw_inspection(inspection))
    if as_json:
        print(json.dumps(asdict(inspection), indent=2))
    else:
        print_inspection(inspection)
    if any(depth.outcome == "failed" for depth in inspection.depths):
        return EXIT_FAILED
    # A count that one depth is too narrow for may do at the other, in the other mode.
    uncut = all(depth.parameters is None for depth in inspection.depths)
    narrow = any(group.units < count for group in inspection.groups)
    return EXIT_USAGE if uncut and narrow else EXIT_OK


def _asked(
    name: str | None, options: Sequence[str], config: Path | None, parts: int | None
) -> tuple[TaskSpec, int]:
    """The task and the number of parts: what the flags say goes before what the config says."""
    given = dict(_option(text) for text in options)
    count = parts
    if config is not None:
        run = load_config(config)
        if name is None or name == run.task.name:
            name, given = run.task.name, {**run.task.options, **given}
        count = run.parts.count if parts is None else parts
    if name is None:
        raise ConfigError(
            "name a task, as in partsum inspect partsum.shared.tasks:digits, or a --config"
        )
    if count is not None and count < 1:
        raise ConfigError(f"--parts {count}: there must be at least one part")
    return TaskSpec(name, given), _PARTS if count is None else count


def _option(text: str) -> tuple[str, Any]:
    """``width=64`` as a name and a TOML value; what is no TOML is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--option {text!r} is not of the form key=value")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the picture {path}: {error.strerror}") from error
