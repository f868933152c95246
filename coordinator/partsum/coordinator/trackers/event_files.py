"""TensorBoard's event files: one folder for each series, whose steps differ in kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partsum.coordinator.trackers.tracker import SERIES, Point, Series, TrackedRun, flat


class EventFiles:
    """Writes FOLDER/RUN/parts, handoff and structures, or ``tensorboard`` in the run's folder."""

    name = "tensorboard"

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._config: dict[str, str | int | float | bool] = {}
        self._writers: dict[str, Any] = {}

    def begin(self, run: TrackedRun, known: str | None, positions: Mapping[Series, int]) -> str:
        """Open the files; where they are gone on with, TensorBoard hides what comes again."""
        from torch.utils.tensorboard import SummaryWriter

        own = run.folder / "tensorboard"
        folder = own if self._folder is None else Path(self._folder).absolute() / run.name
        for series in SERIES:
            again = positions[series] + 1 if known else None
            self._writers[series] = SummaryWriter(str(folder / series), purge_step=again)
        self._config = flat(run.config)
        if not known:
            rows = (f"| `{key}` | {value} |" for key, value in self._config.items())
            text = "\n".join(["| key | value |", "| --- | --- |", *rows])
            self._writers["parts"].add_text("config", text, 0, run.started_at)
            self._writers["parts"].flush()
        return str(folder)

    def write(self, points: Sequence[Point]) -> None:
        """Write points and flush."""
        for point in points:
            for name, value in point.values.items():
                self._writers[point.series].add_scalar(name, value, point.step, point.at)
        for writer in self._writers.values():
            writer.flush()

    def end(self, state: str, results: Mapping[str, float]) -> None:
        """The config beside what came of it, for TensorBoard's HPARAMS; and close."""
        if state == "finished":
            found = {f"result/{name}": value for name, value in results.items()}
            self._writers["parts"].add_hparams(self._config, found, run_name=".")
        for writer in self._writers.values():
            writer.close()
