"""The gRPC door: unpacks, hands over to the daemon, packs. No decisions."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import xxhash

from partsum.coordinator.daemon import CoordinatorDaemon
from partsum.coordinator.desk import NodeDesk
from partsum.coordinator.intake import Intake
from partsum.coordinator.registry import Node, Session
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.errors import (
    PartsumError,
    RefusedError,
    StateError,
    UpdateRefusedError,
    WireError,
)
from partsum.shared.files import CHUNK_BYTES, file_digest
from partsum.shared.messages import NodeProfile, Progress, Update

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = object

log = logging.getLogger(__name__)


class CoordinatorService(rpc.CoordinatorServiceServicer):
    """What nodes call."""

    def __init__(self, desk: NodeDesk, intake: Intake) -> None:
        self._desk = desk
        self._intake = intake

    async def Control(
        self, request_iterator: AsyncIterator[pb.ControlRequest], context: Context
    ) -> AsyncIterator[pb.ControlResponse]:
        """A node's life."""
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("kind") != "hello":
            yield _refused(RefusedError("the first message must be Hello"))
            return
        try:
            node, session = self._desk.joins(first.hello)
        except RefusedError as error:
            yield _refused(error)
            return
        reader = asyncio.create_task(self._read(node, session, request_iterator))
        try:
            while (message := await session.outbox.get()) is not None:
                yield message
        finally:
            reader.cancel()
            self._desk.left(node, session)

    async def _read(
        self, node: Node, session: Session, requests: AsyncIterator[pb.ControlRequest]
    ) -> None:
        """Hand over what the node says until it says no more, then end the stream."""
        try:
            async for request in requests:
                if node.session is not session:
                    break  # it is back on another stream: what is left on this one is stale
                node.bytes_received += request.ByteSize()
                self._desk.heard(node)
                self._hand_over(node, request)
        except RefusedError as error:
            log.warning("refused node=%s: %s", node.name, error)
            session.send(_refused(error))
        except (StateError, OSError) as error:  # a full disk: it comes back and says it again
            log.error("cannot note what node %s said: %s", node.name, error)
        except grpc.RpcError:
            pass  # the connection broke; the desk says so
        finally:
            session.close()

    def _hand_over(self, node: Node, request: pb.ControlRequest) -> None:
        match request.WhichOneof("kind"):
            case "ready":
                ready = request.ready
                profile = NodeProfile(
                    device=ready.device,
                    memory_bytes=ready.memory_bytes,
                    gflops=ready.gflops,
                    task_digest=ready.task_digest,
                    data_digest=ready.data_digest,
                )
                self._desk.ready(node, profile)
            case "progress":
                p = request.progress
                progress = Progress(p.assignment, p.samples_done, p.loss, p.samples_per_second)
                self._desk.progress(node, progress)
            case "failed":
                failed = request.failed
                self._desk.failed(node, failed.assignment, failed.reason[:2000])

    async def Pull(
        self, request: pb.PullRequest, context: Context
    ) -> AsyncIterator[pb.PullResponse]:
        """The bytes of a blob."""
        try:
            node = self._intake.known(request.node)
            path = self._intake.blob_path(node, request.digest)
        except PartsumError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        offset = max(0, request.offset)
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while data := file.read(CHUNK_BYTES):
                node.bytes_sent += len(data)
                yield pb.PullResponse(chunk=wire.chunk_to_wire(offset, data))
                offset += len(data)

    async def Offer(self, request: pb.OfferRequest, context: Context) -> pb.OfferResponse:
        """How much of an update is here already."""
        try:
            node, update = self._claim(request)
            reason = self._intake.update_wanted(node, update)
        except UpdateRefusedError as error:
            node = self._intake.known(request.node)
            self._intake.refuse_update(node, wire.update_from_wire(request.update), error)
            return pb.OfferResponse(wanted=False, reason=str(error))
        except PartsumError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        if reason:
            return pb.OfferResponse(wanted=False, reason=reason)
        spool = self._intake.spool(node, update)
        held = spool.stat().st_size if spool.exists() else 0
        return pb.OfferResponse(wanted=True, offset=min(held, update.blob.size_bytes))

    def _claim(self, request: pb.OfferRequest) -> tuple[Node, Update]:
        return self._intake.known(request.node), wire.update_from_wire(request.update)

    async def Push(
        self, request_iterator: AsyncIterator[pb.PushRequest], context: Context
    ) -> pb.PushResponse:
        """An update's bytes."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("kind") != "offer":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a push starts with its offer")
        assert first is not None
        update: Update | None = None
        try:
            node, update = self._claim(first.offer)
            if reason := self._intake.update_wanted(node, update):
                return pb.PushResponse(accepted=False, reason=reason)
            spool = self._intake.spool(node, update)
            await self._gather(node, update, spool, requests)
            await self._intake.take_update(node, update, spool)
        except UpdateRefusedError as error:
            assert update is not None
            self._intake.refuse_update(node, update, error)
            return pb.PushResponse(accepted=False, reason=str(error))
        except WireError as error:
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except (OSError, StateError) as error:  # a full disk: the node keeps the update and retries
            log.error("cannot spool an update from node %s: %s", first.offer.node, error)
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"the coordinator cannot write: {error}"
            )
        except PartsumError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return pb.PushResponse(accepted=True)

    async def _gather(
        self, node: Node, update: Update, spool: Path, requests: AsyncIterator[pb.PushRequest]
    ) -> None:
        """Append chunks to the spool file until it is whole. Raises WireError."""
        size = update.blob.size_bytes
        digest = xxhash.xxh3_128()
        with open(spool, "ab", buffering=0) as file:
            offset = os.fstat(file.fileno()).st_size
            fresh = offset == 0
            async for request in requests:
                data = wire.chunk_from_wire(request.chunk, offset)
                if os.fstat(file.fileno()).st_size != offset:
                    # A push that was thought broken still lives; nothing may be appended twice.
                    raise WireError("another push of this update is under way; try again")
                if offset + len(data) > size:
                    raise WireError(f"more than the announced {size} B came")
                node.bytes_received += len(data)
                digest.update(data)
                offset += file.write(data)
        if offset < size:
            raise WireError(f"the stream ended after {offset} of {size} B")
        whole = digest.hexdigest() if fresh else await asyncio.to_thread(file_digest, spool)
        if whole != update.blob.digest:
            spool.unlink()
            raise WireError("the update's bytes do not match their digest; send it again")


class OperatorService(rpc.OperatorServiceServicer):
    """What people and scripts call."""

    def __init__(self, daemon: CoordinatorDaemon) -> None:
        self._daemon = daemon

    async def Watch(
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        """The run's status, on every change."""
        async for status in self._daemon.statuses():
            yield pb.WatchResponse(status=wire.status_to_wire(status))

    async def Stop(self, request: pb.StopRequest, context: Context) -> pb.StopResponse:
        """End the coordinator cleanly."""
        self._daemon.stop(request.reason or "stopped by an operator")
        return pb.StopResponse()


def _refused(error: RefusedError) -> pb.ControlResponse:
    return pb.ControlResponse(refused=pb.Refused(reason=str(error)))
