"""The live page of a daemon, put together."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from partsum.coordinator.access import Access
from partsum.coordinator.daemon import CoordinatorDaemon
from partsum.coordinator.live.chronicle import Chronicle
from partsum.coordinator.live.glimpse import Glimpse, Glimpses, NodeFigures
from partsum.coordinator.live.guard import Guard
from partsum.coordinator.live.pages import LivePages

log = logging.getLogger(__name__)


class LiveDoor:
    """Made and ended in the daemon's loop; ``pages`` answers in other threads."""

    def __init__(self, daemon: CoordinatorDaemon, access: Access | None) -> None:
        config = daemon.run.config.server
        self._glimpses = Glimpses(partial(_look, daemon))
        guard = Guard(access, config, lambda reason: daemon.metrics.denied.labels(reason).inc())
        if advice := guard.advice():
            log.warning("%s", advice)
        self.pages = LivePages(self._glimpses, Chronicle(daemon.run), guard)

    async def end(self) -> None:
        """The run has ended: those who watch are told how, and what follows looks no further."""
        self._glimpses.freeze()
        await asyncio.to_thread(self.pages.end)


def _look(daemon: CoordinatorDaemon) -> Glimpse:
    figures = {
        node.name: NodeFigures(node.updates, node.peak_memory_bytes)
        for node in daemon.desk.registry
    }
    return Glimpse(daemon.status(), figures)
