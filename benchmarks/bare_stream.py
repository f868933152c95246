"""How fast this machine moves bytes over a gRPC stream: one process sends, another counts.

    python benchmarks/bare_stream.py MEGABYTES

Prints MB/s. The same channel options, chunk size, asyncio server and malloc settings as partsum's.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection

import grpc.aio

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared.files import CHUNK_BYTES
from partsum.shared.transport import CHANNEL_OPTIONS, SERVER_OPTIONS, tune_malloc


class Sink(rpc.CoordinatorServiceServicer):
    """Takes chunks and forgets them."""

    async def Push(
        self, request_iterator: AsyncIterator[pb.PushRequest], context: object
    ) -> pb.PushResponse:
        """Count until the stream ends."""
        async for request in request_iterator:
            assert request.chunk.data
        return pb.PushResponse(accepted=True)


def serve(pipe: Connection) -> None:
    """Be the receiver; the port goes into the pipe."""

    async def run() -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_CoordinatorServiceServicer_to_server(Sink(), server)  # type: ignore[abstract]
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    tune_malloc()
    asyncio.run(run())


async def push(port: int, chunks: int) -> float:
    """Send; the seconds that it took."""
    data = bytes(CHUNK_BYTES)

    async def requests() -> AsyncIterator[pb.PushRequest]:
        for number in range(chunks):
            yield pb.PushRequest(chunk=pb.Chunk(offset=number * CHUNK_BYTES, data=data))

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        stub = rpc.CoordinatorServiceStub(channel)
        start = time.perf_counter()
        await stub.Push(requests())
        return time.perf_counter() - start


def main() -> None:
    """Measure three times, print the best."""
    tune_malloc()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    port = ours.recv()
    chunks = int(sys.argv[1]) * 1_000_000 // CHUNK_BYTES
    best = min(asyncio.run(push(port, chunks)) for _ in range(3))
    print(chunks * CHUNK_BYTES / 1e6 / best)
    process.terminate()


if __name__ == "__main__":
    main()
