"""A coordinator that says anything, and the node that must come back to an honest one."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import psutil
import xxhash
from tests.cluster import Cluster
from tests.faults.wild import Wild

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire

TASK = "partsum.shared.tasks:digits"
CLUSTERS = [b"".join(k.to_bytes(8, "little") for k in range(j, j + 40)) for j in range(50)]
BLOBS = {xxhash.xxh3_128_hexdigest(cluster): cluster for cluster in CLUSTERS}
OPTIONS = '{"widths": [12, 12]}'
HONEST = """
name = "honest"
task = {{ name = "{task}", options = {{ widths = [12, 12] }} }}
parts = {{ count = 1, rounds = 1, local_epochs = 0.1 }}
handoff = {{ enabled = false }}
server = {{ port = {port}, metrics_port = 0 }}
"""


class WildCoordinator(rpc.CoordinatorServiceServicer):
    """Welcomes a node as it should, and then loses its manners. ``told`` counts what it said."""

    def __init__(self, wild: Wild, told: Counter[str]) -> None:
        self._wild = wild
        self._rng = wild.rng
        self._told = told

    async def Control(
        self, request_iterator: AsyncIterator[pb.ControlRequest], context: Any
    ) -> AsyncIterator[pb.ControlResponse]:
        requests = aiter(request_iterator)
        await anext(requests)
        welcome = pb.Welcome(run="wild", task=TASK, task_options=OPTIONS, heartbeat_seconds=1.0)
        if self._rng.random() < 0.2:
            yield self._count(self._message())
        yield pb.ControlResponse(welcome=welcome)
        if self._rng.random() < 0.8:
            async for request in requests:
                if request.HasField("ready"):
                    break
        for _ in range(self._rng.randrange(1, 6)):
            yield self._count(self._message())
            await asyncio.sleep(0.05 * self._rng.random())

    def _count(self, message: pb.ControlResponse) -> pb.ControlResponse:
        self._told[f"to the node, {message.WhichOneof('kind') or 'nothing'}"] += 1
        return message

    def _message(self) -> pb.ControlResponse:
        """Anything but what rightly ends a node: Finished, Refused, and a task that it has not."""
        while True:
            if self._rng.random() < 0.6:
                return pb.ControlResponse(assignment=self._wild.almost(self._assignment()))
            message: pb.ControlResponse = self._wild.message(pb.ControlResponse)
            if message.HasField("welcome"):
                message.welcome.task, message.welcome.task_options = TASK, OPTIONS
            if message.WhichOneof("kind") not in {"finished", "refused"}:
                return message

    def _assignment(self) -> pb.Assignment:
        digest, cluster = self._rng.choice(list(BLOBS.items()))
        blob = pb.Blob(digest=digest, size_bytes=len(cluster))
        return pb.Assignment(
            id="r0-p0",
            part=pb.Part(units={"linear1": pb.UnitRanges(starts=[0], ends=[6])}),
            seed=1,
            cluster=blob,
            num_samples=32,
            progress_end=0.5,
            settings=pb.TrainSettings(
                batch_size=16,
                learning_rate=1e-3,
                beta1=0.9,
                beta2=0.99,
                precision=pb.PRECISION_FLOAT32,
                aggregate=pb.AGGREGATE_WEIGHTS,
            ),
        )

    async def Pull(self, request: pb.PullRequest, context: Any) -> AsyncIterator[pb.PullResponse]:
        self._told["to the node, Pull"] += 1
        if request.digest in BLOBS and self._rng.random() < 0.6:  # right, so that some get to train
            data = BLOBS[request.digest][request.offset :]
            yield pb.PullResponse(chunk=wire.chunk_to_wire(request.offset, data))
            return
        if self._rng.random() < 0.3:
            while True:  # without an end
                data = self._rng.randbytes(self._rng.choice([0, 1, 100_000]))
                yield pb.PullResponse(chunk=wire.chunk_to_wire(request.offset, data))
        for _ in range(self._rng.randrange(4)):
            yield self._wild.message(pb.PullResponse)

    async def Offer(self, request: pb.OfferRequest, context: Any) -> pb.OfferResponse:
        self._told["to the node, Offer"] += 1
        answer: pb.OfferResponse = self._wild.message(pb.OfferResponse)
        return answer

    async def Push(
        self, request_iterator: AsyncIterator[pb.PushRequest], context: Any
    ) -> pb.PushResponse:
        self._told["to the node, Push"] += 1
        answer: pb.PushResponse = self._wild.message(pb.PushResponse)
        return answer


async def tell_node(cluster: Cluster, rng: random.Random, messages: int, told: Counter[str]) -> str:
    """Tell a node so many wild things; then it must do an honest coordinator's work.

    Returns a word on its memory.
    """
    server = grpc.aio.server()
    rpc.add_CoordinatorServiceServicer_to_server(WildCoordinator(Wild(rng), told), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    cluster.node("told", f"127.0.0.1:{port}")
    process = psutil.Process(cluster.processes["told"].pid)
    idle = peak = 0
    while told.total() < messages:
        assert cluster.processes["told"].poll() is None, cluster.log("told")
        peak = max(peak, process.memory_info().rss)
        idle = idle or (peak if told else 0)
        await asyncio.sleep(0.1)
    await server.stop(0)
    (cluster.folder / "run.toml").write_text(HONEST.format(task=TASK, port=port))
    cluster.coordinator()
    assert await asyncio.to_thread(cluster.wait, "coordinator") == 0, cluster.log("coordinator")
    assert await asyncio.to_thread(cluster.wait, "told") == 0, cluster.log("told")
    assert "Traceback" not in cluster.log("told"), cluster.log("told")
    assert peak - idle < 300 << 20
    return f"{idle >> 20} MiB idle, {peak >> 20} MiB peak"
