"""The node's end of gRPC: dials the coordinator, moves blobs, and puts what fails in words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
import grpc.aio

from partsum.node import control
from partsum.node.blobs import BlobCache
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import limits, wire
from partsum.shared.credentials import Credentials, read_credentials
from partsum.shared.errors import ConfigError, PartsumError, RefusedError, WireError
from partsum.shared.files import read_chunks
from partsum.shared.frames import Frame, frame_of, pull_from_bytes, push_to_bytes
from partsum.shared.handshake import refusal
from partsum.shared.messages import Blob, Update
from partsum.shared.partial import Partial
from partsum.shared.spares import Spares
from partsum.shared.transport import BULK_OPTIONS, CHANNEL_OPTIONS, open_channel

_DAMAGED_TRIES = 3
_SERVICE = f"/{pb.DESCRIPTOR.services_by_name['CoordinatorService'].full_name}/"
# A channel of its own for each dial: a shared one would sit out its own back-off on top of ours.
_OWN = ("grpc.use_local_subchannel_pool", 1)
_REFUSALS = {
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
}


class UnreachableError(PartsumError):
    """No answer, or the connection broke: worth another try."""


@dataclass(frozen=True)
class Offered:
    """The coordinator's answer to an offer: send from ``offset``, or why it is not wanted."""

    wanted: bool
    offset: int
    reason: str


Count = Callable[[Literal["received", "sent"], int], None]
"""(direction, bytes): called as blob bytes move."""


class Client:
    """One coordinator, dialled as often as it takes.

    All methods raise UnreachableError where the connection breaks, RefusedError where the
    coordinator says no, and WireError where bytes are not what was announced.

    Blobs move on a connection of their own: behind one, on a slow link, heartbeats come too late
    (a push of 1 MB at 1 Mbit/s: the node was taken for dead, over and over).

    Args:
        address: HOST:PORT.
        node: this node's name.
        count: told of blob bytes as they move.
        credentials: shown over TLS; without any, all goes in the clear.
    """

    def __init__(
        self,
        address: str,
        node: str,
        count: Count = lambda direction, size: None,
        credentials: Credentials | None = None,
    ) -> None:
        self.address = address
        self._node = node
        self._count = count
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._bulk: grpc.aio.Channel | None = None

    async def dial(self) -> None:
        """Start over with a new connection; calls on the old one end as unreachable."""
        await self.close()
        self._credentials = self._newest_credentials()
        self._channel = self._open(CHANNEL_OPTIONS)
        self._bulk = self._open(BULK_OPTIONS)

    def _open(self, options: list[tuple[str, int]]) -> grpc.aio.Channel:
        return open_channel(self.address, self._credentials, [*options, _OWN])

    def _newest_credentials(self) -> Credentials | None:
        """As their file has them now: they may be renewed while a node runs."""
        shown = self._credentials
        try:
            return read_credentials(shown.path) if shown else None
        except ConfigError:
            return shown  # the file has gone; what was read still holds, or is refused in words

    async def close(self) -> None:
        """Hang up."""
        channels = (self._channel, self._bulk)
        self._channel = self._bulk = None
        for channel in filter(None, channels):
            await channel.close()

    def _stub(self) -> rpc.CoordinatorServiceAsyncStub:
        return rpc.CoordinatorServiceStub(self._opened(self._channel))

    def _opened(self, channel: grpc.aio.Channel | None) -> grpc.aio.Channel:
        if channel is None:
            raise UnreachableError(f"not connected to {self.address}")
        return channel

    async def control(
        self, outgoing: AsyncIterator[pb.ControlRequest]
    ) -> AsyncGenerator[control.Incoming, None]:
        """What the coordinator says, while ``outgoing`` is sent; ends when it hangs up."""
        heard = False
        try:
            with self._in_words():
                call = self._stub().Control(outgoing)
                try:
                    async for response in call:
                        heard = True
                        yield control.incoming(response)
                finally:
                    call.cancel()
        except RefusedError as error:
            if self._newest_credentials() == self._credentials:
                raise
            raise UnreachableError("there are newer credentials to show") from error
        except UnreachableError as error:
            if heard:
                raise
            reason = await asyncio.to_thread(refusal, self.address, self._credentials)
            if reason:
                raise RefusedError(reason) from error
            raise

    async def pull(self, blob: Blob, blobs: BlobCache) -> Path:
        """Fetch a blob into the cache; goes on where an earlier, broken pull ended.

        A blob whose digest is wrong is thrown away and fetched again, three times in all.
        """
        partial = blobs.partial(blob)
        reason = ""
        for _ in range(_DAMAGED_TRIES):
            try:
                if await self._gather(blob, partial, blobs.spares) == blob.digest:
                    return blobs.add(partial, blob.digest)
                partial.unlink()
                reason = "its digest is wrong"
            except WireError as error:
                reason = str(error)
        raise WireError(
            f"blob {blob.digest} came damaged {_DAMAGED_TRIES} times ({reason}); the copy on the "
            "coordinator's disk may be at fault"
        )

    async def _gather(self, blob: Blob, path: Path, spares: Spares) -> str:
        """Gather the rest of a blob in its partial file; returns the digest of the whole."""
        with Partial(path, blob.size_bytes, spares) as partial:
            request = pb.PullRequest(node=self._node, digest=blob.digest, offset=partial.held)
            with self._in_words():
                pull = self._opened(self._bulk).unary_stream(
                    _SERVICE + "Pull", pb.PullRequest.SerializeToString, pull_from_bytes
                )
                call = pull(request)
                try:
                    async for response in call:
                        data = wire.chunk_from_wire(response, partial.held)
                        partial.append(data)
                        self._count("received", len(data))
                finally:
                    call.cancel()
            if partial.held < blob.size_bytes:
                come = f"{partial.held} of {blob.size_bytes} B"
                raise UnreachableError(f"the stream ended after {come}")
            return await asyncio.to_thread(partial.finish)

    async def offer(self, update: Update) -> Offered:
        """Ask how much of an update the coordinator holds already."""
        with self._in_words():
            answer = await self._stub().Offer(self._offer(update))
        offset = limits.within(answer.offset, 0, update.sent.size_bytes, "the offset to send from")
        return Offered(answer.wanted, offset, limits.in_words(answer.reason))

    async def push(self, update: Update, path: Path, offset: int) -> str:
        """Send an update's bytes from ``offset`` on; once this returns, it is in the journal.

        Returns:
            Empty, or why the update was not accepted.
        """
        with self._in_words():
            pieces = self._pieces(update, path, offset)
            push = self._opened(self._bulk).stream_unary(
                _SERVICE + "Push", push_to_bytes, pb.PushResponse.FromString
            )
            answer = await push(pieces)
        return "" if answer.accepted else limits.in_words(answer.reason) or "no reason was given"

    async def _pieces(
        self, update: Update, path: Path, offset: int
    ) -> AsyncIterator[pb.PushRequest | Frame]:
        yield pb.PushRequest(offer=self._offer(update))
        for data in read_chunks(path, offset):
            yield frame_of(offset, data)
            offset += len(data)
            self._count("sent", len(data))

    def _offer(self, update: Update) -> pb.OfferRequest:
        return pb.OfferRequest(node=self._node, update=wire.update_to_wire(update))

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """gRPC's errors as ours."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _explain(error, self.address) from error
        except asyncio.CancelledError as error:
            # gRPC also says "cancelled" when the other side, or our own dial, ended the call.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise UnreachableError(f"the call to {self.address} was cut off") from error


def _explain(error: grpc.aio.AioRpcError, address: str) -> PartsumError:
    details = error.details() or ""
    if error.code() in _REFUSALS:
        return RefusedError(details or f"the coordinator said {error.code().name}")
    if error.code() == grpc.StatusCode.DATA_LOSS:
        return WireError(details or "the coordinator received damaged bytes")
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return RefusedError(f"what answers at {address} is not a partsum coordinator")
    return UnreachableError(_cause(details) or error.code().name.lower().replace("_", " "))


def _cause(details: str) -> str:
    """The telling end of gRPC's details, for example "connection refused"."""
    if "Failed parsing HTTP/2" in details:
        return "what answers there is not a coordinator: is it the metrics port?"
    found = re.search(
        r"(Connection refused|No route to host|Network is unreachable|"
        r"Connection timed out|Connection reset|DNS resolution failed|"
        r"Socket closed|Domain name not found)",
        details,
    )
    return found.group(1).lower() if found else details.strip()[-200:]
