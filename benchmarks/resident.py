"""Memory of the processes that a benchmark starts, looked at from outside while they run."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

import psutil

_SECONDS = 0.2  # between two looks; each takes 5 to 10 ms of a core

Side = Callable[[Sequence[str]], str]
"""Says from a child's command line whose memory it is; what it starts itself belongs to it too."""


class Resident:
    """While this is entered: the most resident memory of each side, and of all together.

    Memory that processes share counts for each of them. On leaving, every process that was seen
    and still lives is killed.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._seen: set[psutil.Process] = set()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes: Counter[str] = Counter()
        """By side: the most at one moment."""
        self.whole_peak_bytes = 0
        """Of all sides: the most at one moment."""

    def __enter__(self) -> Resident:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join()
        for process in self._seen:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil knows a number used again
                process.kill()

    def _watch(self) -> None:
        while not self._left.wait(_SECONDS):
            now: Counter[str] = Counter()
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    side = self._side(child.cmdline())
                    for process in (child, *child.children(recursive=True)):
                        self._seen.add(process)
                        with contextlib.suppress(psutil.NoSuchProcess):
                            now[side] += process.memory_info().rss
            self.peak_bytes |= now
            self.whole_peak_bytes = max(self.whole_peak_bytes, now.total())
