"""A light node: the whole protocol of a node, and no training; it gives back what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import xxhash

from partsum.node import control
from partsum.node.swarm.crowd import Crowd
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.errors import PartsumError, RefusedError, WireError
from partsum.shared.files import CHUNK_BYTES
from partsum.shared.messages import Assignment, Blob, Progress, Update
from partsum.shared.transport import BULK_OPTIONS, CHANNEL_OPTIONS, open_channel

_OWN = ("grpc.use_local_subchannel_pool", 1)  # each node has connections of its own
_AWAY_SECONDS = 1.0  # at most, between a drop-out and the return
_MOMENTS = ("assigned", "pulled", "sending")  # in which a node may drop out

_NOTHING = (
    "light nodes give back what they are sent, and this run sends nothing that can be given back: "
    'it needs parts.planner = "full" or parts.mode = "residual", in the clear'
)


class Member:
    """One light node; like a real one it has a connection for control and one for blobs."""

    def __init__(self, crowd: Crowd, name: str) -> None:
        self._crowd = crowd
        self._name = name
        self._rng = random.Random(f"{crowd.orders.seed} {name}")
        self._held: set[str] = set()  # blobs that it has pulled
        self._fated = -1  # the round for which it was last decided whether it drops out
        self._talking = asyncio.Lock()  # a stream takes one message at a time
        self._call: Any = None
        self._bulk: grpc.aio.Channel | None = None

    async def live(self) -> None:
        """Join, work, drop out and come back, until cancelled."""
        while True:
            try:
                await self._visit()
            except (grpc.aio.AioRpcError, WireError) as error:
                self._crowd.note("broken", error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # else it was the call: it has hung up itself
            await asyncio.sleep(self._rng.random() * _AWAY_SECONDS)

    async def _visit(self) -> None:
        """From Hello until the connection ends."""
        beat = work = None
        address = self._crowd.address
        async with (
            open_channel(address, None, [*CHANNEL_OPTIONS, _OWN]) as channel,
            open_channel(address, None, [*BULK_OPTIONS, _OWN]) as self._bulk,
        ):
            self._call = rpc.CoordinatorServiceStub(channel).Control()
            try:
                await self._say(control.hello(self._name, self._name, "swarm"))
                while (said := await self._call.read()) is not grpc.aio.EOF:
                    heard = control.incoming(said)
                    match heard:
                        case control.Welcome():
                            await self._say(pb.ControlRequest(ready=self._crowd.ready))
                            beat = asyncio.create_task(self._beat(heard.heartbeat_seconds))
                            self._crowd.welcome(self._name)
                        case Assignment() if self._crowd.begin(heard.round):
                            work = asyncio.create_task(self._work(heard))
                        case control.Cancel() if work is not None:
                            work.cancel()
                        case control.Finished():
                            self._crowd.end()
                        case control.Refused(reason, retry) if not retry:
                            self._crowd.fail(RefusedError(f"{self._name} was refused: {reason}"))
                        case control.Quarantined(reason):
                            self._crowd.note("quarantined", reason)
            finally:
                for task in filter(None, (beat, work)):
                    task.cancel()

    async def _say(self, message: pb.ControlRequest) -> None:
        async with self._talking:
            await self._call.write(message)

    async def _beat(self, seconds: float) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:  # until the connection ends, of which the reader hears first
                await asyncio.sleep(seconds)
                await self._say(control.heartbeat())

    async def _work(self, given: Assignment) -> None:
        """One assignment; whatever goes wrong, the node hangs up and comes back."""
        try:
            await self._deliver(given, self._fate(given.round))
        except (grpc.aio.AioRpcError, PartsumError) as error:
            self._crowd.note("broken", error)
            self._call.cancel()

    def _fate(self, round: int) -> str:
        """The moment of this round in which it drops out, or ""; decided once a round."""
        if round <= self._fated:
            return ""
        self._fated = round
        drops = self._rng.random() < self._crowd.orders.drop
        return self._rng.choice(_MOMENTS) if drops else ""

    def _drop_out(self) -> None:
        self._crowd.note("drops")
        self._call.cancel()

    async def _deliver(self, given: Assignment, fate: str) -> None:
        if fate == "assigned":
            return self._drop_out()
        if given.start is None or given.masking is not None:
            self._crowd.fail(RefusedError(_NOTHING))
            return None
        for blob in (given.cluster, given.start):
            if blob.digest not in self._held:
                await self._pull(blob)
        if fate == "pulled":
            return self._drop_out()
        await self._say(control.progress(Progress(given.id, given.num_samples, 0.0, 0.0)))
        update = Update(
            assignment_id=given.id,
            round=given.round,
            part_index=given.part_index,
            start_digest=given.start.digest,
            num_samples=given.num_samples,
            loss=0.0,
            train_seconds=0.0,
            samples_per_second=0.0,
            peak_memory_bytes=0,
            blob=given.start,
        )
        return await self._send(update, fate)

    async def _pull(self, blob: Blob) -> None:
        """Fetch a blob, and keep it where no other node of the swarm has it yet."""
        pieces, offset = [], 0
        request = pb.PullRequest(node=self._name, digest=blob.digest)
        async for response in self._stub().Pull(request):
            data = wire.chunk_from_wire(response.chunk, offset)
            pieces.append(data)
            offset += len(data)
        whole = b"".join(pieces)
        if xxhash.xxh3_128_hexdigest(whole) != blob.digest:
            raise WireError(f"blob {blob.digest} came damaged")
        self._crowd.blobs.setdefault(blob.digest, whole)
        self._held.add(blob.digest)
        self._crowd.count["received"] += len(whole)

    async def _send(self, update: Update, fate: str) -> None:
        offer = pb.OfferRequest(node=self._name, update=wire.update_to_wire(update))
        answer = await self._stub().Offer(offer)
        if not answer.wanted:
            self._crowd.note("unwanted", answer.reason)
            return
        pushed = await self._stub().Push(self._pieces(offer, answer.offset, fate == "sending"))
        if pushed.accepted:
            self._crowd.note("accepted")
        else:
            self._crowd.note("unwanted", pushed.reason)

    async def _pieces(
        self, offer: pb.OfferRequest, offset: int, breaks: bool
    ) -> AsyncIterator[pb.PushRequest]:
        """An update from ``offset`` on, or half of that."""
        yield pb.PushRequest(offer=offer)
        data = self._crowd.blobs[offer.update.blob.digest]
        end = (offset + len(data)) // 2 if breaks else len(data)
        while offset < end:
            piece = data[offset : min(end, offset + CHUNK_BYTES)]
            yield pb.PushRequest(chunk=wire.chunk_to_wire(offset, piece))
            offset += len(piece)
            self._crowd.count["sent"] += len(piece)
        if breaks:
            self._drop_out()
            await asyncio.Event().wait()  # for the end, which has begun

    def _stub(self) -> rpc.CoordinatorServiceAsyncStub:
        assert self._bulk is not None
        return rpc.CoordinatorServiceStub(self._bulk)
