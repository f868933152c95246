"""How long to wait before the next try."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Waits that double from ``first_seconds`` to ``last_seconds``, with jitter.

    The jitter (half to the whole of each wait, drawn from ``rng``) keeps many nodes from coming
    back to a restarted coordinator at the same moment.
    """

    def __init__(
        self, rng: random.Random, first_seconds: float = 0.2, last_seconds: float = 5.0
    ) -> None:
        self._rng = rng
        self._first_seconds = first_seconds
        self._last_seconds = last_seconds
        self._next_seconds = first_seconds

    def reset(self) -> None:
        """It worked: start small again."""
        self._next_seconds = self._first_seconds

    async def wait(self) -> None:
        """Wait, and longer the next time."""
        seconds = self._next_seconds * self._rng.uniform(0.5, 1.0)
        self._next_seconds = min(self._last_seconds, 2 * self._next_seconds)
        await asyncio.sleep(seconds)
