"""Slow links on loopback: a TCP proxy that lets so many bytes a second through, each way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_PIECE_BYTES = 16 << 10
_SLACK_SECONDS = 0.005  # a timer comes late; what it lost so may be caught up


class Lane:
    """One direction of a link; all connections share it."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on until one end hangs up."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                begin = max(loop.time() - _SLACK_SECONDS, self._free_at)
                self._free_at = begin + len(data) / self._rate
                await asyncio.sleep(max(0.0, self._free_at - loop.time()))
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def slow_link(address: str, megabits: float) -> AsyncIterator[str]:
    """The address of a link of its own to ``address``, of so many Mbit/s each way."""
    host, _, port = address.rpartition(":")
    up, down = (Lane(megabits * 1e6 / 8) for _ in range(2))
    open_ends: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ends.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection(host, int(port))
            ways = [up.carry(reader, back), down.carry(there, writer)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in tasks:
                    way.cancel()
                back.close()
        writer.close()
        open_ends.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in open_ends:
            task.cancel()
        await asyncio.gather(*open_ends, return_exceptions=True)
