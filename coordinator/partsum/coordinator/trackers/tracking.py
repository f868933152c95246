"""Follows the journal and tells trackers what is new: each in a thread of its own.

What a tracker has is noted in the journal, so that a resumed run goes on with the same tracker's
run and writes nothing twice. A tracker that fails is warned of once and is off from then on; one
that is slow is waited for some seconds at the end. Neither is felt by the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from partsum.coordinator.run import Run
from partsum.coordinator.summary import Summary
from partsum.coordinator.trackers.points import new_points
from partsum.coordinator.trackers.tracker import Series, TrackedRun, Tracker
from partsum.shared.config import TrackersConfig

log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0  # at the journal
_END_SECONDS = 15.0  # for what a slow tracker has not written by then


def chosen(config: TrackersConfig) -> list[Tracker]:
    """The trackers that the config asks for; their packages are not imported yet."""
    from partsum.coordinator.trackers.event_files import EventFiles
    from partsum.coordinator.trackers.mlflow_run import MlflowRun
    from partsum.coordinator.trackers.wandb_run import WandbRun

    trackers: list[Tracker] = []
    if config.tensorboard:
        own = config.tensorboard is True
        trackers.append(EventFiles(None if own else str(config.tensorboard)))
    if config.mlflow:
        trackers.append(MlflowRun(config.mlflow))
    if config.wandb:
        trackers.append(WandbRun(config.wandb))
    return trackers


class Tracking:
    """All trackers of a run."""

    def __init__(self, run: Run, trackers: list[Tracker]) -> None:
        self._followers = [_Follower(run, tracker) for tracker in trackers]

    def start(self) -> None:
        """Begin to follow."""
        for follower in self._followers:
            follower.thread.start()

    def end(self, summary: Summary | None) -> None:
        """The run has ended, or without a summary failed; returns once all is written, or soon.

        Trackers that were never started are told nothing.
        """
        deadline = time.monotonic() + _END_SECONDS
        started = [follower for follower in self._followers if follower.thread.ident is not None]
        for follower in started:
            follower.finish(summary)
        for follower in started:
            follower.thread.join(max(0.0, deadline - time.monotonic()))
            if follower.thread.is_alive():
                log.warning(
                    "%s is slow, and did not get the last of the run", follower.tracker.name
                )


class _Follower:
    """One tracker and its thread."""

    def __init__(self, run: Run, tracker: Tracker) -> None:
        self.tracker = tracker
        self.thread = threading.Thread(target=self._follow, name=tracker.name, daemon=True)
        self._run = run
        self._ended = threading.Event()
        self._summary: Summary | None = None
        self._key = f"tracker:{tracker.name}"
        self._noted: Mapping[str, Any] = run.store.fact(self._key) or {}
        self._positions = self._resumed()
        self._known = ""

    def _resumed(self) -> dict[Series, int]:
        """How far it is; rounds may have been taken back since, where a file was damaged."""
        done, positions = len(self._run.store.results()), self._noted.get("positions", {})
        return {
            "parts": min(positions.get("parts", 0), done),
            "structures": min(positions.get("structures", 0), done),
            "handoff": positions.get("handoff", -1),
        }

    def finish(self, summary: Summary | None) -> None:
        self._summary = summary
        self._ended.set()

    def _follow(self) -> None:
        try:
            self._begin()
            while not self._ended.is_set():
                self._write()
                self._ended.wait(_LOOK_SECONDS)
            self._write()
            summary = self._summary
            self.tracker.end(summary.state if summary else "failed", _results(summary))
        except ImportError as error:
            self._give_up(self._missing(error.name or str(error)))
        except Exception as error:  # whatever it is, the run is worth more
            self._give_up(" ".join(str(error).split())[:500] or type(error).__name__)
            log.debug("%s", self.tracker.name, exc_info=True)

    def _missing(self, package: str) -> str:
        name = self.tracker.name
        if package == name:
            return f"{name} is not installed: pip install 'partsum[{name}]'"
        return f"{package} is not installed, which {name} needs for this: see docs/trackers.md"

    def _give_up(self, why: str) -> None:
        log.warning("%s is off for the rest of this run, which goes on: %s", self.tracker.name, why)

    def _begin(self) -> None:
        run, config = self._run, self._run.config
        about = TrackedRun(
            name=run.folder.name,
            experiment=config.name,
            folder=run.folder,
            config=config.model_dump(mode="json"),
            started_at=run.clock.started_at,
        )
        self._known = self.tracker.begin(about, self._noted.get("id"), self._positions)
        self._note()
        log.info("%s: %s", self.tracker.name, self._known)

    def _write(self) -> None:
        run = self._run
        points = new_points(run.store, run.board, self._positions, run.clock.started_at)
        if not points:
            return
        self.tracker.write(points)
        for point in points:
            self._positions[point.series] = max(self._positions[point.series], point.step)
        self._note()

    def _note(self) -> None:
        self._run.store.note(**{self._key: {"id": self._known, "positions": self._positions}})


def _results(summary: Summary | None) -> dict[str, float]:
    """What compares runs with each other."""
    if summary is None:
        return {}
    results = {"wall_seconds": summary.wall_seconds}
    for name, value in (("accuracy", summary.final_accuracy), ("loss", summary.final_loss)):
        if value is not None:
            results[name] = value
    for phase in summary.phases:
        results[f"{phase.name}_bytes"] = float(phase.bytes_sent + phase.bytes_received)
    return results
