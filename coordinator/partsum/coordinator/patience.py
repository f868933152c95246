"""How long the door waits for a caller: who stalls or dribbles keeps no stream, file or memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from partsum.shared.errors import WireError

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = object

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0  # for a stream's first message, and for each chunk, either way
LEAST_BYTES = 32 << 10  # of a push, in each such time

Request = TypeVar("Request")

_last_words: set[asyncio.Future[None]] = set()


async def next_of(requests: AsyncIterator[Request]) -> Request | None:
    """A stream's next message, or None at its end. Raises WireError where none comes for long."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await anext(requests, None)
    except TimeoutError as error:
        raise WireError(f"nothing came for {PATIENCE_SECONDS:g} s") from error


class Pace:
    """Looks after a stream that never falls silent, and never gets anywhere."""

    def __init__(self) -> None:
        self._since = asyncio.get_running_loop().time()
        self._came = 0

    def came(self, size_bytes: int) -> None:
        """Count bytes. Raises WireError where they are too few for the time that they took."""
        now = asyncio.get_running_loop().time()
        self._came += size_bytes
        if now - self._since < PATIENCE_SECONDS:
            return
        if self._came < LEAST_BYTES:
            raise WireError(f"only {self._came} B came in {PATIENCE_SECONDS:g} s")
        self._since, self._came = now, 0


class Reader:
    """Whoever reads a stream of ours; one who does not, for long, finds it ended when they do.

    gRPC by itself would wait for ever, and keep what the stream holds open.
    """

    def __init__(self, name: str, context: Context) -> None:
        self._name = name
        self._context = context

    @contextmanager
    def reads_in_time(self) -> Iterator[None]:
        """Around the ``yield`` of a message."""
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._leave, task)
        try:
            yield
        finally:
            timer.cancel()

    def _leave(self, stream: asyncio.Task[object]) -> None:
        words = f"nothing was read for {PATIENCE_SECONDS:g} s"
        log.warning("node %s: %s; the stream ends", self._name, words)
        last_word = asyncio.ensure_future(self._end(words))  # it waits until it is read
        _last_words.add(last_word)
        last_word.add_done_callback(_last_words.discard)
        stream.cancel()

    async def _end(self, words: str) -> None:
        with suppress(grpc.aio.AbortError, grpc.RpcError):
            await self._context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, words)
