"""How long to wait before the next try."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from partsum.shared.errors import PartsumError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_FULL = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
_FULL_TRIES = 8  # about a minute; then the part may go to a node that has room


class DiskFullError(PartsumError):
    """There is no room on this node's disk."""


class Backoff:
    """Waits that double from ``first_seconds`` to ``last_seconds``, with jitter.

    The jitter (half to the whole of each wait, drawn from ``rng``) keeps many nodes from coming
    back to a restarted coordinator at the same moment. The longest wait is how long a coordinator
    that is back may stay without its nodes; a thousand of them that knock every 2 seconds are no
    load for it.
    """

    def __init__(
        self, rng: random.Random, first_seconds: float = 0.2, last_seconds: float = 2.0
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


async def despite_a_full_disk(work: Callable[[], Awaitable[Result]], rng: random.Random) -> Result:
    """Do the work, and try for a minute while this disk is full: somebody may make room.

    Raises whatever the work raises for another reason, or at the last try.
    """
    backoff = Backoff(rng, first_seconds=1.0, last_seconds=15.0)
    for _ in range(_FULL_TRIES - 1):
        try:
            return await work()
        except Exception as error:
            full = isinstance(error, DiskFullError) or any(w in str(error) for w in _FULL)
            if not full:
                raise
            log.error("this node's disk is full, trying again: %s", error)
        await backoff.wait()
    return await work()
