"""The daemon's state, handed from its event loop to threads that answer HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from partsum.shared.errors import PartsumError
from partsum.shared.messages import RunStatus

_FRESH_SECONDS = 0.25  # so long all who ask get the same glimpse: the loop has better to do
_PATIENCE_SECONDS = 5.0


class UnavailableError(PartsumError):
    """The daemon does not answer: it is starting, ending, or very busy."""


@dataclass(frozen=True)
class NodeFigures:
    """What the registry knows of a node beside its status."""

    updates: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Glimpse:
    """A run at one moment; nothing in it changes any more."""

    status: RunStatus
    figures: Mapping[str, NodeFigures] = field(default_factory=dict)  # by node


class Glimpses:
    """Takes glimpses; made in the event loop, asked in any thread but the loop's.

    ``look`` is called in the loop only.
    """

    def __init__(self, look: Callable[[], Glimpse]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._guard = threading.Lock()
        self._taken = -_FRESH_SECONDS
        self._last: Glimpse | None = None
        self._final: Glimpse | None = None

    def now(self) -> Glimpse:
        """The run as it is, or was a moment ago. Raises UnavailableError."""
        if self._final is not None:
            return self._final
        if not self._guard.acquire(timeout=_PATIENCE_SECONDS):
            raise UnavailableError("the coordinator is too busy to say how it does")
        try:
            if self._last is None or time.monotonic() - self._taken > _FRESH_SECONDS:
                self._last = self._ask()
                self._taken = time.monotonic()
            return self._last
        finally:
            self._guard.release()

    def _ask(self) -> Glimpse:
        answer: Future[Glimpse] = Future()

        def take() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(self._look())
                except Exception as error:  # raised again in the thread that asked
                    answer.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(take)
            return answer.result(_PATIENCE_SECONDS)
        except TimeoutError:
            answer.cancel()
            raise UnavailableError("the coordinator is too busy to say how it does") from None
        except RuntimeError:  # its loop is closed
            raise UnavailableError("the coordinator is ending") from None

    def freeze(self) -> None:
        """The run has ended: from now on this is what is seen. Called in the loop."""
        self._final = self._look()
