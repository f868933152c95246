"""What an assignment needs before it can be trained, brought to this node's disk."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from partsum.node.blobs import BlobCache
from partsum.node.client import Client
from partsum.node.orders import Build, Train
from partsum.node.process import TrainingError, WorkerProcess
from partsum.node.state import NodeState
from partsum.shared.messages import Assignment, Blob, Delta

log = logging.getLogger(__name__)

Insist = Callable[[Callable[[], Awaitable[Path]]], Awaitable[Path]]
"""Tries a transfer, over as many connections as it takes."""


class Supplies:
    """Pulls blobs, and builds a start out of an older one where that is here.

    Args:
        client: pulls.
        worker: builds.
        state: knows which update of a part this node finished last.
        blobs: what is on disk.
        insist: how often a transfer is tried.
    """

    def __init__(
        self,
        client: Client,
        worker: WorkerProcess,
        state: NodeState,
        blobs: BlobCache,
        insist: Insist,
    ) -> None:
        self._client = client
        self._worker = worker
        self._state = state
        self._blobs = blobs
        self._insist = insist
        self._said_anew = False  # that error feedback begins anew

    async def order(self, a: Assignment) -> Train:
        """The order to train it, once all that it needs is here."""
        ticket = self._worker.next_ticket()
        # First all that comes: to make room for it, what only lies here may leave.
        start = await self._start(a.start, a.start_delta) if a.start else None
        cluster = await self._fetch(a.cluster)
        samples = await self._fetch(a.samples) if a.samples else None
        return Train(
            ticket=ticket,
            assignment=a,
            start=start,
            optimizer=self._moments(a) if a.start else None,
            cluster=cluster,
            samples=samples,
            output=self._blobs.folder / f"update-{ticket}",
            residual=self._residual(a) if a.start else None,
            folder=self._state.folder,
        )

    async def _start(self, start: Blob, delta: Delta | None) -> Path:
        """Where the start is on this disk; made of an older one where that is here."""
        if delta is not None and self._blobs.path(start) is None:
            against = self._blobs.path(delta.against)
            if against is not None:
                await self._build(start, await self._fetch(delta.blob), against, delta)
        return await self._fetch(start)

    async def _build(self, start: Blob, change: Path, against: Path, delta: Delta) -> None:
        """Make the start; where that fails it is fetched whole."""
        ticket = self._worker.next_ticket()
        output = self._blobs.folder / f"start-{ticket}"
        order = Build(ticket, change, against, delta.against.digest, output)
        try:
            digest = (await self._worker.build(order)).digest
        except TrainingError as error:
            self._blobs.sweep(output)
            log.warning("the start cannot be made of an older one: %s; fetching it whole", error)
            return
        if digest == start.digest:
            self._blobs.add(output, digest)
        else:
            self._blobs.sweep(output)
            log.warning("the start came out different from what it should be; fetching it whole")

    def _moments(self, a: Assignment) -> Path | None:
        """AdamW's moments: those beside the start, or the last update's where they are kept."""
        assert a.start is not None
        last = self._last(a) if a.settings.keep_moments else []
        kept = (self._blobs.companion(blob.digest) for blob in (a.start, *last))
        return next(filter(None, kept), None)

    def _last(self, a: Assignment) -> list[Blob]:
        """This node's update of the part in the round before, if it made one."""
        updates = [known.update for known in self._state.finished()]
        return [u.blob for u in updates if (u.part_index, u.round) == (a.part_index, a.round - 1)]

    def _residual(self, a: Assignment) -> Path | None:
        """What the encoding of the part's last update lost: beside the start where that is it."""
        if a.settings.encoding == "float32" or a.start is None:
            return None
        kept = [self._blobs.residual(blob.digest) for blob in (a.start, *self._last(a))]
        found = next(filter(None, kept), None)
        if found is None and a.round > 0 and not self._said_anew:
            self._said_anew = True
            log.warning(
                "assignment %s begins without what earlier encodings of its part lost: this node "
                "has not trained it last, or no longer has it",
                a.id,
            )
        return found

    async def _fetch(self, blob: Blob) -> Path:
        """Where the blob is on this disk, after pulling it if need be."""
        if path := self._blobs.path(blob):
            return path
        return await self._insist(lambda: self._client.pull(blob, self._blobs))
