"""Callers of a coordinator's methods who know the protocol, and keep to it as they please."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import xxhash
from google.protobuf.message import Message
from tests.faults.wild import Wild
from tests.hand_node import SPEC, HandNode

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.task import data_digest, load_task, task_digest

SECONDS = 0.5  # that a call may take: some are never answered, and rightly so
_PACKAGE = pb.DESCRIPTOR.package
METHODS = [
    (service.full_name, method)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


class Caller:
    """Makes one call after the other, mostly in its own name; ``sent`` counts messages by kind."""

    def __init__(
        self, channel: grpc.aio.Channel, name: str, wild: Wild, sent: Counter[str], folder: Path
    ) -> None:
        self._name = name
        self._channel = channel
        self._wild = wild
        self._rng = wild.rng
        self._sent = sent
        self._digests = (task_digest(SPEC), data_digest(load_task(SPEC).train()))
        wild.words = [name, *self._digests]
        self._hand = HandNode(rpc.CoordinatorServiceStub(channel), folder)
        self._given: pb.Assignment | None = None  # the newest one

    async def call(self) -> None:
        """One call of one method: noise, a wild message, or a conversation with changes."""
        if self._rng.random() < 0.5:
            await self._converse()
            return
        service, method = self._rng.choice(METHODS)
        kind, make = self._kind(method)
        many = self._wild.some(make)
        for messages in [many] if method.client_streaming else [[one] for one in many]:
            await self._send(service, method.name, kind, messages)

    def _kind(self, method: Any) -> tuple[str, Callable[[], bytes]]:
        request = method.input_type._concrete_class
        if method.name == "Stop":  # whoever may call it may end the run: only what is no message
            return "noise", lambda: b"\xff" + self._wild.noise()
        if self._rng.random() < 0.3:
            return "noise", self._wild.noise
        return "wild", lambda: bytes(self._wild.message(request).SerializeToString())

    async def _send(self, service: str, method: str, kind: str, messages: list[bytes]) -> None:
        """Send bytes as they are, read a few answers, and hang up."""
        found = next(m for s, m in METHODS if (s, m.name) == (service, method))
        self._sent[f"{method}, {kind}"] += len(messages)
        path = f"/{service}/{method}"

        async def requests() -> AsyncIterator[bytes]:
            for message in messages:
                yield message
            if self._rng.random() < 0.3:
                await asyncio.sleep(SECONDS)  # says no more, and does not hang up either

        outgoing = requests() if found.client_streaming else messages[0]
        ways = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }
        way: Any = ways[found.client_streaming, found.server_streaming](path)
        call = way(outgoing, timeout=SECONDS * self._rng.random())
        try:
            if found.server_streaming:
                async for answer in call:
                    self._note(method, answer)
                    if self._rng.random() < 0.2:
                        break
            else:
                await call
        except grpc.aio.AioRpcError as error:
            # It says UNKNOWN where an exception came through: of protobuf's, or of ours.
            if error.code() == grpc.StatusCode.UNKNOWN and "DecodeError" not in str(error):
                raise
        except asyncio.CancelledError:  # gRPC's word for a call that was answered before its end
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        finally:
            call.cancel()

    def _note(self, method: str, answer: bytes) -> None:
        """Remember what was assigned: updates of it get furthest."""
        if method == "Control":
            said = pb.ControlResponse.FromString(answer)
            if said.HasField("assignment"):
                self._given = said.assignment
                self._wild.words.append(said.assignment.cluster.digest)

    # -- conversations ----------------------------------------------------------------------------

    async def _converse(self) -> None:
        """What a node would say, with changes, doubled, left out and out of order."""
        node = self._name
        said: list[Message] = [
            pb.ControlRequest(hello=pb.Hello(node=node, instance=node, protocol=wire.PROTOCOL)),
            pb.ControlRequest(ready=self._ready()),
            *(self._word() for _ in range(self._rng.randrange(12))),
        ]
        await asyncio.gather(self._send_service("Control", self._shuffled(said)), self._transfers())

    def _word(self) -> pb.ControlRequest:
        part = self._given.id if self._given else "r0-p0"
        progress = pb.Progress(
            assignment=part, samples_done=5, loss=self._rng.choice([1.0, math.nan])
        )
        return self._rng.choice(
            [
                pb.ControlRequest(ready=self._ready()),
                pb.ControlRequest(heartbeat=pb.Heartbeat()),
                pb.ControlRequest(progress=progress),
                pb.ControlRequest(failed=pb.Failed(assignment=part, reason="so")),
            ]
        )

    def _ready(self) -> pb.Ready:
        task, data = self._digests
        return pb.Ready(
            device="fuzz", memory_bytes=1 << 30, gflops=1.0, task_digest=task, data_digest=data
        )

    async def _transfers(self) -> None:
        """Offers and pushes of what it may have been given."""
        await asyncio.sleep(0.1 * self._rng.random())
        for _ in range(self._rng.randrange(3)):
            offer, data = self._offer()
            half = len(data) // 2
            chunks = [wire.chunk_to_wire(0, data[:half]), wire.chunk_to_wire(half, data[half:])]
            pushes: list[Message] = [pb.PushRequest(offer=offer)]
            pushes += [pb.PushRequest(chunk=chunk) for chunk in chunks]
            if self._rng.random() < 0.5:
                await self._send_service("Offer", [self._changed(offer)])
            await self._send_service("Push", self._shuffled(pushes))

    def _offer(self) -> tuple[pb.OfferRequest, bytes]:
        """An update of what was assigned, right but for a few bytes, or of nothing at all."""
        given = self._given or pb.Assignment(id="r0-p0", num_samples=72)
        data = self._rng.randbytes(self._rng.choice([1, 100, 5000]))
        if given.HasField("part") and self._rng.random() < 0.7:
            _, whole = self._hand.offer(given, self._hand.tensors(given))
            data = self._wild.mutated(whole)
        update = pb.Update(
            assignment=given.id,
            round=given.round,
            part_index=given.part_index,
            start_digest=given.start.digest,
            num_samples=given.num_samples,
            loss=1.0,
            blob=pb.Blob(digest=xxhash.xxh3_128_hexdigest(data), size_bytes=len(data)),
        )
        return pb.OfferRequest(node=self._name, update=update), data

    def _shuffled(self, messages: list[Message]) -> list[bytes]:
        found = [self._changed(message) for message in messages]
        for _ in range(self._rng.choice([0, 0, 0, 1, 2])):
            at, to = self._rng.randrange(len(found)), self._rng.randrange(len(found))
            found[at], found[to] = found[to], found[at]
            found.insert(to, found[at])
        return found

    def _changed(self, message: Message) -> bytes:
        wanted = message if self._rng.random() < 0.8 else self._wild.almost(message)
        return bytes(wanted.SerializeToString())

    async def _send_service(self, method: str, messages: list[bytes]) -> None:
        await self._send(f"{_PACKAGE}.CoordinatorService", method, "conversation", messages)
