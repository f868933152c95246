"""Seconds of a run, and how long a round's stages take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime


class RunClock:
    """Seconds that a run has been served: a break between two coordinators does not count.

    They come from a clock that cannot be set. The wall clock gives dates for people, and decides
    nothing.

    Args:
        started_at: when the run was started, in wall-clock seconds.
        served: seconds that earlier coordinators served it.
        steady: seconds of a clock that only goes forward.
        wall: wall-clock seconds.
    """

    def __init__(
        self,
        started_at: float,
        served: float = 0.0,
        steady: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.started_at = started_at
        self._steady = steady
        self._wall = wall
        self._zero = steady() - served

    def now(self) -> float:
        """Seconds served."""
        return self._steady() - self._zero

    def dates(self) -> tuple[str, str]:
        """When the run was started, and what it is now: ISO 8601, UTC."""
        first, last = (
            datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
            for seconds in (self.started_at, self._wall())
        )
        return first, last


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
