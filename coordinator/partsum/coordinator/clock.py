"""Seconds of a run, and how long a round's stages take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class RunClock:
    """Seconds since a run was started, on wall-clock time so that it goes on over restarts."""

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at

    def now(self) -> float:
        """Seconds since the start."""
        return time.time() - self.started_at


class Stages:
    """Seconds by stage of the open round; of several nodes the slowest counts."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def note(self, stage: str, seconds: float) -> None:
        """A stage took this long somewhere."""
        self._seconds[stage] = max(seconds, self._seconds.get(stage, 0.0))

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Note how long the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.note(stage, time.perf_counter() - start)

    def take(self) -> dict[str, float]:
        """What was noted, and start anew."""
        taken, self._seconds = self._seconds, {}
        return taken
