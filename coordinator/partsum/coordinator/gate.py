"""The gate: every call passes it before anything else happens, and every message after.

Who is there (a token or a certificate that the register knows), what they may call, in whose name
they speak, how often. With auth = "none" only the last is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from partsum.coordinator.access import Access
from partsum.coordinator.rates import RateLimits
from partsum.coordinator.visitor import Denied, Doorman, Visitor
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.config import ServerConfig
from partsum.shared.credentials import Role

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Context = Handler = object

log = logging.getLogger(__name__)

_ROLES: dict[str, Role] = {
    "partsum.protos.v1.CoordinatorService": "node",
    "partsum.protos.v1.OperatorService": "operator",
}
# Says no more than that somebody listens, which is seen anyway. Watching health is for nobody: each
# stranger's stream would keep the name that it asked for, of 4 MiB, in memory.
_OPEN = "/grpc.health.v1.Health/Check"
_CALLS = 16  # of one member at once, which takes four: an unread blob costs 5 MB and an open file
_BURST_SECONDS = 5.0
_TOO_MANY = grpc.StatusCode.RESOURCE_EXHAUSTED
_FAILURES_SHARE = 0.01  # of calls: who is refused may try 2 a second, 20 at once, by default


class Gate(grpc.aio.ServerInterceptor):
    """Stands before all services of a server.

    Args:
        access: the register; None lets everybody in.
        config: who of them may join, and how often they may call.
        now: Unix seconds, for what expires.
        clock: monotonic seconds, for rates.
    """

    def __init__(
        self,
        access: Access | None,
        config: ServerConfig,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._doorman = Doorman(access, config.allow, now)
        self._clock = clock
        self._rate = config.calls_per_second
        self._calls = RateLimits(self._rate, self._rate * _BURST_SECONDS)
        failures = self._rate * _FAILURES_SHARE
        self._failures = RateLimits(failures, failures * 2 * _BURST_SECONDS)
        self._open: Counter[str] = Counter()  # calls, by member
        self.count: Callable[[str], None] = lambda reason: None
        """Told of each call that is turned away, with gRPC's word for why."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Put the gate between a call and what would answer it."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method == _OPEN:
            return handler
        role = _ROLES.get(method.strip("/").partition("/")[0])
        if role is None:
            return None  # what is not in the table is not served
        guard = self._stream if handler.response_streaming else self._single
        return guard(handler, role)

    def _single(self, handler: Handler, role: Role) -> Handler:
        streams = handler.request_streaming
        inner: Any = handler.stream_unary if streams else handler.unary_unary

        async def answer(request: Any, context: Context) -> Any:
            try:
                visitor = self._admit(context, role)
                with self._place(visitor):
                    return await inner(self._heard(visitor, request, streams), context)
            except Denied as error:
                await context.abort(error.code, str(error))

        make: Any = (
            grpc.stream_unary_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        guarded: Handler = make(answer, handler.request_deserializer, handler.response_serializer)
        return guarded

    def _stream(self, handler: Handler, role: Role) -> Handler:
        streams = handler.request_streaming
        inner: Any = handler.stream_stream if streams else handler.unary_stream

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                visitor = self._admit(context, role)
                responses = inner(self._heard(visitor, request, streams), context)
                with self._place(visitor):
                    async with aclosing(responses):
                        async for response in responses:
                            self._check(visitor, response)
                            yield response
            except Denied as error:
                await context.abort(error.code, str(error))

        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if streams
            else grpc.unary_stream_rpc_method_handler
        )
        guarded: Handler = make(answers, handler.request_deserializer, handler.response_serializer)
        return guarded

    def _admit(self, context: Context, role: Role) -> Visitor:
        """Who calls, and may. Raises Denied."""
        visitor = Visitor(str(context.peer()), role)
        try:
            self._doorman.ask(visitor, context)
        except Denied as error:
            if not self._failures.take(visitor.host, self._clock()):
                self._note(visitor, error)
                raise
            self.count(_TOO_MANY.name.lower())
            sentence = "too many refused calls from this address; come back in a minute"
            raise Denied(_TOO_MANY, sentence, retry=True) from error
        if self._calls.take(visitor.name or visitor.address, self._clock()):
            self.count(_TOO_MANY.name.lower())
            sentence = f"more than {self._rate:g} calls a second (server.calls_per_second)"
            raise Denied(_TOO_MANY, f"{sentence}; slow down", retry=True)
        return visitor

    @contextmanager
    def _place(self, visitor: Visitor) -> Iterator[None]:
        """One of the calls that a member may have open. Raises Denied where it has too many."""
        name = visitor.name
        if name and self._open[name] >= _CALLS:
            self.count(_TOO_MANY.name.lower())
            raise Denied(_TOO_MANY, f"{name} has {_CALLS} calls open already", retry=True)
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1

    def _heard(self, visitor: Visitor, request: Any, streams: bool) -> Any:
        if streams:
            return self._each(visitor, request)
        self._check(visitor, request)
        return request

    async def _each(self, visitor: Visitor, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """A stream's messages; who talks too much is listened to more slowly. Raises Denied."""
        async for request in requests:
            self._check(visitor, request)
            if isinstance(request, pb.ControlRequest):
                who = visitor.name or visitor.address
                while wait := self._calls.take(who, self._clock()):
                    await asyncio.sleep(wait)
            yield request

    def _check(self, visitor: Visitor, message: object) -> None:
        """Whether a message, either way, may pass. Raises Denied."""
        try:
            self._doorman.ask_again(visitor)
            visitor.speaks(message)
        except Denied as error:
            self._note(visitor, error)
            raise

    def _note(self, visitor: Visitor, error: Denied) -> None:
        log.warning("turned away %s: %s", visitor.address, error)
        self.count(error.code.name.lower())
