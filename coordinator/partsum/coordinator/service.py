"""The gRPC door: unpacks, hands over to the daemon, packs. No decisions."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from partsum.coordinator.daemon import CoordinatorDaemon
from partsum.coordinator.desk import NodeDesk
from partsum.coordinator.intake import Intake
from partsum.coordinator.patience import Pace, Reader, next_of
from partsum.coordinator.registry import Node, Session
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import limits, wire
from partsum.shared.errors import (
    PartsumError,
    RefusedError,
    StateError,
    UpdateRefusedError,
    WireError,
)
from partsum.shared.files import CHUNK_BYTES, is_at
from partsum.shared.frames import Frame, frame_of, pull_to_bytes, push_from_bytes
from partsum.shared.messages import NodeProfile, Progress, Update
from partsum.shared.partial import held_bytes

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Context = Handler = object

log = logging.getLogger(__name__)


def add_coordinator_service(service: CoordinatorService, server: grpc.aio.Server) -> None:
    """Let a server answer nodes. Not by the generated function: blobs travel as frames."""
    handlers: dict[str, Handler] = {
        "Control": grpc.stream_stream_rpc_method_handler(
            service.Control, pb.ControlRequest.FromString, pb.ControlResponse.SerializeToString
        ),
        "Pull": grpc.unary_stream_rpc_method_handler(
            service.Pull, pb.PullRequest.FromString, pull_to_bytes
        ),
        "Offer": grpc.unary_unary_rpc_method_handler(
            service.Offer, pb.OfferRequest.FromString, pb.OfferResponse.SerializeToString
        ),
        "Push": grpc.stream_unary_rpc_method_handler(
            service.Push, push_from_bytes, pb.PushResponse.SerializeToString
        ),
    }
    name = pb.DESCRIPTOR.services_by_name["CoordinatorService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


class CoordinatorService:
    """What nodes call."""

    def __init__(self, desk: NodeDesk, intake: Intake) -> None:
        self._desk = desk
        self._intake = intake

    async def Control(
        self, request_iterator: AsyncIterator[pb.ControlRequest], context: Context
    ) -> AsyncIterator[pb.ControlResponse]:
        """A node's life."""
        try:
            first = await next_of(aiter(request_iterator))
            if first is None or first.WhichOneof("kind") != "hello":
                raise RefusedError("the first message must be Hello")
            node, session = self._desk.joins(first.hello)
        except (RefusedError, WireError) as error:
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
        except (RefusedError, WireError) as error:
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
                    deepspeed=ready.deepspeed,
                )
                self._desk.ready(node, profile)
            case "progress":
                self._desk.progress(node, _progress(request.progress))
            case "failed":
                failed = request.failed
                reason = limits.in_words(failed.reason)
                self._desk.failed(node, failed.assignment, reason, failed.gang)
            case "gang_opened":
                self._desk.meets(node, request.gang_opened)
            case "hello":
                raise RefusedError("this node has said Hello already")
            case "secure_keys" | "secure_shares" | "secure_reveal" if self._desk.secrecy:
                self._desk.secrecy.hear(node, request)

    async def Pull(self, request: pb.PullRequest, context: Context) -> AsyncIterator[Frame]:
        """The bytes of a blob."""
        try:
            node = self._intake.known(request.node)
            path = self._intake.blob_path(node, request.digest)
        except PartsumError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:  # its round has just closed: the next assignment names another
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the blob cannot be read: {error}")
        with file:
            offset, size = request.offset, os.fstat(file.fileno()).st_size
            if not 0 <= offset <= size:
                words = f"the blob has {size} B, and no offset {offset}"
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, words)
            file.seek(offset)
            reader = Reader(node.name, context)
            while data := file.read(CHUNK_BYTES):
                if not is_at(path, file.fileno()):  # it may be written over: with anybody's bytes
                    words = "the blob has gone: its round has closed"
                    await context.abort(grpc.StatusCode.UNAVAILABLE, words)
                node.bytes_sent += len(data)
                with reader.reads_in_time():
                    yield frame_of(offset, data)
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
        if self._intake.follows(update):
            self._intake.take_following(node, update)
            return pb.OfferResponse(wanted=False, reason="it is in; it holds nothing new")
        spool = self._intake.spool(node, update)
        held = held_bytes(spool, update.sent.size_bytes)
        return pb.OfferResponse(wanted=True, offset=held)

    def _claim(self, request: pb.OfferRequest) -> tuple[Node, Update]:
        return self._intake.known(request.node), wire.update_from_wire(request.update)

    async def Push(
        self, request_iterator: AsyncIterator[pb.PushRequest | Frame], context: Context
    ) -> pb.PushResponse:
        """An update's bytes."""
        requests = aiter(request_iterator)
        try:
            first = await next_of(requests)
        except WireError as error:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
        if not isinstance(first, pb.PushRequest) or not first.HasField("offer"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a push starts with its offer")
        update: Update | None = None
        try:
            node, update = self._claim(first.offer)
            if reason := self._intake.update_wanted(node, update):
                return pb.PushResponse(accepted=False, reason=reason)
            spool = self._intake.begin_spool(node, update)
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
        self,
        node: Node,
        update: Update,
        spool: Path,
        requests: AsyncIterator[pb.PushRequest | Frame],
    ) -> None:
        """Gather chunks in the spool file until it is whole. Raises WireError."""
        with self._intake.gather(spool, update) as partial:
            pace = Pace()
            while (request := await next_of(requests)) is not None:
                if not isinstance(request, Frame):
                    raise WireError("after its offer a push holds nothing but chunks")
                data = wire.chunk_from_wire(request, partial.held)
                partial.append(data)
                node.bytes_received += len(data)
                pace.came(len(data))
            digest = await asyncio.to_thread(partial.finish)
        if digest != update.sent.digest:
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
        self._daemon.stop(limits.in_words(request.reason) or "stopped by an operator")
        return pb.StopResponse()


def _refused(error: RefusedError | WireError) -> pb.ControlResponse:
    retry = isinstance(error, RefusedError) and error.retry
    return pb.ControlResponse(refused=pb.Refused(reason=str(error), retry=retry))


def _progress(progress: pb.Progress) -> Progress:
    """Raises WireError for figures that no training has: they would spoil metrics and reports."""
    largest = sys.float_info.max
    return Progress(
        progress.assignment,
        limits.within(progress.samples_done, 0, limits.COUNT, "samples_done"),
        limits.within(progress.loss, -largest, largest, "loss"),
        limits.within(progress.samples_per_second, 0, largest, "samples_per_second"),
    )
