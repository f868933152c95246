"""Weights & Biases: one run in a project; offline with WANDB_MODE=offline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from partsum.coordinator.trackers.tracker import SERIES, Point, Series, TrackedRun, flat

_FINISH_SECONDS = 15.0


class WandbRun:
    """``project`` is PROJECT or ENTITY/PROJECT; `wandb login` or WANDB_API_KEY gives the key."""

    name = "wandb"

    def __init__(self, project: str) -> None:
        self._entity, _, self._project = project.rpartition("/")
        self._run: Any = None

    def begin(self, run: TrackedRun, known: str | None, positions: Mapping[Series, int]) -> str:
        """Open the run; each series has a step of its own."""
        import wandb

        self._run = wandb.init(
            project=self._project,
            entity=self._entity or None,
            id=known or re.sub(r"[^A-Za-z0-9_-]", "-", run.name),
            name=run.name,
            group=run.experiment,
            config=flat(run.config),
            dir=str(run.folder),
            resume="allow",
            # Else a process that ends waits for an upload that hangs, whatever we do.
            settings=wandb.Settings(console="off", silent=True, finish_timeout=_FINISH_SECONDS),
        )
        for series in SERIES:
            self._run.define_metric(f"{series}/step")
            self._run.define_metric(f"{series}/*", step_metric=f"{series}/step")
        return str(self._run.id)

    def write(self, points: Sequence[Point]) -> None:
        """Hand points to wandb, which has a process of its own to send them."""
        for point in points:
            named = {f"{point.series}/{name}": value for name, value in point.values.items()}
            self._run.log({**named, f"{point.series}/step": point.step, "_timestamp": point.at})

    def end(self, state: str, results: Mapping[str, float]) -> None:
        """Note the results, and let wandb send the rest."""
        for name, value in results.items():
            self._run.summary[f"result/{name}"] = value
        self._run.finish(exit_code=1 if state == "failed" else 0)
