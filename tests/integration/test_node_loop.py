"""A real node with a real worker against a small coordinator that speaks the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
import torch
import xxhash

from partsum.node.blobs import BlobCache
from partsum.node.client import Client
from partsum.node.loop import Node
from partsum.node.metrics import NodeMetrics
from partsum.node.process import WorkerProcess
from partsum.node.state import NodeState
from partsum.node.trainer import Job, train
from partsum.node.worker import WorkerSettings, serve
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.errors import RefusedError, StateError, TaskError
from partsum.shared.messages import Assignment, Blob, Part, TaskSpec, TrainSettings
from partsum.shared.task import load_task
from partsum.shared.transport import SERVER_OPTIONS

SETTINGS = TrainSettings(
    16, 1e-2, 0.5, 0.01, (0.9, 0.99), 0.0, 0.01, "float32", "weights", deterministic=True
)
CLUSTER = np.arange(0, 256, 2, dtype="<i8").tobytes()


def blob_of(data: bytes) -> Blob:
    return Blob(xxhash.xxh3_128_hexdigest(data), len(data))


class Peer(rpc.CoordinatorServiceServicer):
    """A coordinator by script: what it hears goes to ``heard``, what it says is put by tests."""

    def __init__(self, task: str = "node_task:task", **options: Any) -> None:
        self.task, self.options, self.run = task, options, "test"
        self.heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.say: asyncio.Queue[pb.ControlResponse | None] = asyncio.Queue()
        self.greeting: pb.ControlResponse | None = None  # instead of Welcome
        self.blobs = {blob_of(CLUSTER).digest: CLUSTER}
        self.spools: dict[str, bytearray] = {}
        self.pulled: list[tuple[str, int]] = []  # digest, offset
        self.offsets: list[int] = []  # that offers were answered with
        self.damage_chunks = 0  # of the next pulls
        self.cut_push_at: int | None = None  # bytes
        self.refuse: Callable[[], None] | None = None  # the next push, after this was called
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_CoordinatorServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)

    async def Control(self, requests: Any, context: Any) -> AsyncIterator[pb.ControlResponse]:
        say: asyncio.Queue[pb.ControlResponse | None] = asyncio.Queue()
        self.say = say
        reader = asyncio.create_task(self._read(requests))
        try:
            yield self.greeting or self._welcome()
            while (message := await say.get()) is not None:
                yield message
        finally:
            reader.cancel()

    def _welcome(self) -> pb.ControlResponse:
        return pb.ControlResponse(
            welcome=pb.Welcome(
                run=self.run,
                task=self.task,
                task_options=json.dumps(self.options),
                heartbeat_seconds=0.1,
            )
        )

    async def _read(self, requests: AsyncIterator[pb.ControlRequest]) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
            async for request in requests:
                kind = request.WhichOneof("kind")
                assert kind is not None
                await self.heard.put((kind, getattr(request, kind)))

    async def Pull(self, request: Any, context: Any) -> AsyncIterator[pb.PullResponse]:
        self.pulled.append((request.digest, request.offset))
        data = self.blobs[request.digest]
        for offset in range(request.offset, len(data), 1 << 20):
            chunk = wire.chunk_to_wire(offset, data[offset : offset + (1 << 20)])
            if self.damage_chunks and offset:
                self.damage_chunks -= 1
                chunk.data = b"!" + chunk.data[1:]
            yield pb.PullResponse(chunk=chunk)

    async def Offer(self, request: Any, context: Any) -> pb.OfferResponse:
        held = len(self.spools.setdefault(request.update.blob.digest, bytearray()))
        self.offsets.append(held)
        return pb.OfferResponse(wanted=True, offset=held)

    async def Push(self, requests: Any, context: Any) -> pb.PushResponse:
        update: pb.Update | None = None
        async for request in requests:
            if update is None:
                update = request.offer.update
                spool = self.spools[update.blob.digest]
                continue
            spool += wire.chunk_from_wire(request.chunk, len(spool))
            if self.cut_push_at is not None and len(spool) >= self.cut_push_at:
                self.cut_push_at = None
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        assert update is not None
        assert blob_of(bytes(spool)) == wire.blob_from_wire(update.blob)
        if self.refuse is not None:
            refuse, self.refuse = self.refuse, None
            refuse()
            await asyncio.sleep(0.2)
            return pb.PushResponse(accepted=False, reason="it holds nan")
        await self.heard.put(("update", wire.update_from_wire(update)))
        return pb.PushResponse(accepted=True)

    async def hear(self, kind: str, seconds: float = 30.0) -> Any:
        """The next message of that kind; others are passed over."""
        async with asyncio.timeout(seconds):
            while True:
                found, message = await self.heard.get()
                if found == kind:
                    return message

    def assign(self, assignment: Assignment) -> None:
        self.say.put_nowait(pb.ControlResponse(assignment=wire.assignment_to_wire(assignment)))

    def finish(self) -> None:
        self.say.put_nowait(pb.ControlResponse(finished=pb.Finished(reason="all done")))


def assignment(**changes: Any) -> Assignment:
    base = Assignment(
        id="r0-p0",
        round=0,
        part_index=0,
        part=Part({"0": tuple(range(8)), "3": tuple(range(8))}),
        seed=5,
        start=None,
        cluster=blob_of(CLUSTER),
        samples=None,
        first_sample=0,
        num_samples=640,
        progress=(0.0, 0.5),
        settings=SETTINGS,
    )
    return dataclasses.replace(base, **changes)


class Daemon:
    """The node as the command puts it together."""

    def __init__(self, folder: Path, port: int) -> None:
        rng = random.Random(0)
        self.state = NodeState(folder)
        self.metrics = NodeMetrics(folder)
        self.worker = WorkerProcess(
            functools.partial(serve, settings=WorkerSettings("cpu", threads=1)),
            rng,
            self.metrics.worker_restarts.inc,
        )
        self.blobs = BlobCache(self.state.blobs, 1 << 30)
        client = Client(f"127.0.0.1:{port}", "n1")
        self.node = Node(client, self.worker, self.state, self.blobs, self.metrics, "n1", rng)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"partsum_node_{name}", labels) or 0.0


@contextlib.asynccontextmanager
async def living(folder: Path, port: int) -> AsyncIterator[tuple[Daemon, asyncio.Task[str]]]:
    daemon = Daemon(folder, port)
    life = asyncio.create_task(daemon.node.run())
    try:
        yield daemon, life
    finally:
        life.cancel()
        await asyncio.wait({life})
        await daemon.worker.close()
        daemon.state.close()


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers inherit the path, and find node_task on it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 90))


def test_a_node_joins_trains_goes_on_after_broken_transfers_and_ends_when_told(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        peer = Peer(hidden=1500, dropout=0.0)
        await peer.start()
        async with living(tmp_path, peer.port) as (daemon, life):
            hello = await peer.hear("hello")
            assert (hello.node, hello.protocol) == ("n1", wire.PROTOCOL)
            ready = await peer.hear("ready")
            assert ready.data_digest
            assert ready.memory_bytes > 0
            assert ready.gflops > 0
            known = {"node": "n1", "device": ready.device, "version": hello.version}
            assert daemon.metric("info", **known) == 1
            assert daemon.metric("disk_free_bytes") > 0
            await peer.hear("heartbeat")
            whole = assignment(part=Part({}), num_samples=32)
            peer.cut_push_at = 3 << 20
            peer.assign(whole)
            first = await peer.hear("update")
            assert peer.offsets == [0, 3 << 20]
            assert daemon.metric("retries_total", why="broken") == 1

            # Round 1 starts from the update, which is here: nothing is pulled but what is new.
            peer.pulled.clear()
            second = dataclasses.replace(whole, id="r1-p0", round=1, start=first.blob)
            peer.assign(second)
            update = await peer.hear("update")
            assert update.start_digest == first.blob.digest
            assert peer.pulled == []

            # A base that must be pulled comes with a damaged chunk: fetched again from there.
            base = bytes(peer.spools[update.blob.digest])
            (daemon.state.blobs / update.blob.digest).unlink()
            peer.blobs[update.blob.digest] = base
            peer.damage_chunks = 1
            third = dataclasses.replace(second, id="r2-p0", round=2, start=update.blob)
            peer.assign(third)
            assert (await peer.hear("update")).round == 2
            assert [offset for _, offset in peer.pulled] == [0, 1 << 20]
            peer.assign(dataclasses.replace(third, id="r3-p0", num_samples=0))
            assert (await peer.hear("update")).blob == update.blob
            assert daemon.metric("assignments_total", outcome="accepted") >= 3
            peer.finish()
            assert await life == "all done"
        await peer.stop()

    run(scenario())


def test_training_goes_on_while_the_coordinator_restarts_and_is_not_done_twice(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        peer = Peer()
        await peer.start()
        async with living(tmp_path, peer.port) as (daemon, life):
            await peer.hear("ready")
            long = assignment(num_samples=40_000)
            peer.assign(long)
            await peer.hear("progress")
            await peer.stop()
            await asyncio.sleep(0.3)
            await peer.start()
            await peer.hear("hello", 10)
            await peer.hear("ready")
            peer.assign(long)  # as a restarted coordinator does
            update = await peer.hear("update")
            assert update.num_samples == 40_000
            assert daemon.metric("samples_total") == 40_000
            assert daemon.metric("dials_total") >= 2
            assert daemon.metric("train_seconds_count") == 1

            # It is finished: asked again, the node offers what it has.
            peer.spools.clear()
            peer.assign(long)
            assert (await peer.hear("update")) == update
            assert daemon.metric("train_seconds_count") == 1

            # Another one is cancelled, and the next is taken at once.
            peer.assign(assignment(id="r1-p0", num_samples=10_000_000))
            await peer.hear("progress")
            peer.say.put_nowait(
                pb.ControlResponse(cancel=pb.Cancel(assignment="r1-p0", reason="late"))
            )
            peer.assign(assignment(id="r2-p0", round=2))
            assert (await peer.hear("update", 5)).assignment_id == "r2-p0"
            assert daemon.metric("assignments_total", outcome="cancelled") == 1
            assert not life.done()
        await peer.stop()

    run(scenario())


def test_a_refused_update_is_trained_anew_also_where_that_word_overtakes_the_refusal(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        peer = Peer()
        await peer.start()
        async with living(tmp_path, peer.port) as (daemon, _):
            await peer.hear("ready")
            peer.refuse = lambda: peer.assign(assignment())
            peer.assign(assignment())
            first = await peer.hear("update")
            assert daemon.metric("train_seconds_count") == 2

            peer.spools.clear()
            peer.refuse = lambda: None
            peer.assign(assignment(id="r1-p0", round=1))
            while daemon.metric("assignments_total", outcome="refused") < 1:
                await asyncio.sleep(0.02)
            peer.assign(assignment(id="r1-p0", round=1))
            second = await peer.hear("update")
            assert (first.round, second.round) == (0, 1)
            assert daemon.metric("train_seconds_count") == 4
        await peer.stop()

    run(scenario())


def test_what_another_run_asked_for_is_not_offered_to_the_next_one(tmp_path: Path) -> None:
    """Though both call it "r0-p0": a new run whose settings differ would refuse it, thrice."""

    async def scenario() -> None:
        peer = Peer()
        await peer.start()
        async with living(tmp_path, peer.port) as (daemon, _):
            await peer.hear("ready")
            peer.assign(assignment(num_samples=40_000))
            await peer.hear("progress")
            await peer.stop()
            while daemon.metric("train_seconds_count") < 1:
                await asyncio.sleep(0.02)
            peer.run = "another"
            await peer.start()
            await peer.hear("ready")
            peer.assign(assignment(num_samples=320))
            peer.assign(assignment(num_samples=320))
            assert (await peer.hear("update")).num_samples == 320
            assert peer.offsets == [0]
            assert daemon.metric("assignments_total", outcome="cancelled") == 1
        await peer.stop()

    run(scenario())


def test_a_killed_worker_is_reported_at_once_and_its_successor_makes_the_same_bytes(
    tmp_path: Path,
) -> None:
    first = assignment(num_samples=320, progress=(0.0, 0.25))
    second = dataclasses.replace(first, id="r1-p0", round=1, first_sample=320, progress=(0.25, 0.5))

    async def scenario() -> None:
        peer = Peer()
        await peer.start()
        async with living(tmp_path / "node", peer.port) as (daemon, _):
            await peer.hear("ready")
            peer.assign(first)
            one = await peer.hear("update")
            peer.assign(assignment(id="r9-p0", num_samples=10_000_000))
            await peer.hear("progress")
            pid = daemon.worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            failed = await peer.hear("failed", 2.0)
            assert failed.assignment == "r9-p0"
            assert "killed (SIGKILL)" in failed.reason
            peer.assign(dataclasses.replace(second, start=one.blob))
            two = await peer.hear("update")
            assert daemon.worker.pid != pid
            assert daemon.metric("worker_restarts_total") == 1
            assert [one.blob, two.blob] == undisturbed(tmp_path)
        await peer.stop()

    def undisturbed(folder: Path) -> list[Blob]:
        """Both rounds in this process, with no node around them."""
        torch.set_num_threads(1)
        task = load_task(TaskSpec("node_task:task"))
        cluster = torch.from_numpy(np.frombuffer(CLUSTER, dtype="<i8").copy())
        job = Job(first, None, None, cluster, task.train(), folder / "1", torch.device("cpu"))
        one = train(task, job, lambda progress: None, lambda: False)
        job = dataclasses.replace(
            job,
            assignment=dataclasses.replace(second, start=one.update.blob),
            start=one.path,
            optimizer=one.optimizer,
            output=folder / "2",
        )
        two = train(task, job, lambda progress: None, lambda: False)
        return [one.update.blob, two.update.blob]

    run(scenario())


def test_a_node_without_the_data_says_so_and_trains_on_streamed_samples(tmp_path: Path) -> None:
    async def scenario() -> None:
        from safetensors.torch import save

        inputs, targets = load_task(TaskSpec("node_task:task")).train()[:100]
        samples = save({"inputs": inputs, "targets": targets})
        peer = Peer("node_task:no_data")
        peer.blobs[blob_of(samples).digest] = samples
        await peer.start()
        async with living(tmp_path, peer.port):
            assert (await peer.hear("ready")).data_digest == ""
            peer.assign(assignment())
            assert "no copy of the data set" in (await peer.hear("failed")).reason
            peer.assign(assignment(samples=blob_of(samples)))
            assert (await peer.hear("update")).num_samples == 640
        await peer.stop()

    run(scenario())


def test_a_task_that_does_not_resolve_ends_the_node_in_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        peer = Peer("node_task:nothing")
        await peer.start()
        async with living(tmp_path, peer.port) as (_, life):
            with pytest.raises(TaskError, match="has no function 'nothing'; it has"):
                await life
        await peer.stop()

    run(scenario())


def test_a_refused_node_ends_with_the_reason_unless_it_may_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        peer = Peer()
        peer.greeting = pb.ControlResponse(refused=pb.Refused(reason="not yet", retry=True))
        await peer.start()
        async with living(tmp_path, peer.port) as (_, life):
            await peer.hear("hello")
            await peer.hear("hello")
            peer.greeting = pb.ControlResponse(refused=pb.Refused(reason="another data set"))
            with pytest.raises(RefusedError, match="says: another data set"):
                await life
        await peer.stop()

    run(scenario())


def test_a_node_with_no_coordinator_says_so_once_and_keeps_trying(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            peer = Peer()
            peer.port = unused.getsockname()[1]
        async with living(tmp_path, peer.port) as (daemon, _):
            with caplog.at_level(logging.WARNING, "partsum"):
                await asyncio.sleep(1.0)
            said = [r.getMessage() for r in caplog.records]
            where = f"127.0.0.1:{peer.port}"
            assert said == [f"no coordinator answers at {where} (connection refused); trying again"]
            assert daemon.node.health()[0] is False
            await peer.start()
            await peer.hear("hello", 5)
        await peer.stop()

    run(scenario())


def command(tmp_path: Path, port: int) -> subprocess.Popen[str]:
    code = "import sys; from partsum.shared.cli import main; sys.exit(main())"
    flags = ["--coordinator", f"127.0.0.1:{port}", "--device", "cpu", "--name", "n1"]
    flags += ["--state-dir", str(tmp_path), "--metrics-port", "0"]
    return subprocess.Popen(
        [sys.executable, "-c", code, "node", *flags],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )


def test_the_command_stops_cleanly_and_when_killed_leaves_no_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        peer = Peer()
        await peer.start()
        process = command(tmp_path, peer.port)
        await peer.hear("ready")
        workers = psutil.Process(process.pid).children()
        with pytest.raises(StateError, match="another node daemon uses"):
            NodeState(tmp_path)
        peer.assign(assignment(num_samples=10_000_000))
        await peer.hear("progress")
        process.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, 5.0)
        assert alive == []
        process.communicate()

        process = command(tmp_path, peer.port)
        await peer.hear("ready")
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        _, said = await asyncio.to_thread(process.communicate, None, 10.0)
        assert process.returncode == 130
        assert "Traceback" not in said
        assert re.search(r"metrics on http://127.0.0.1:\d+/metrics", said)
        assert psutil.wait_procs(children, 5.0)[1] == []
        await peer.stop()

    run(scenario())


def test_a_coordinator_that_welcomes_a_node_twice_is_left_and_dialled_again(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        peer = Peer()
        await peer.start()
        async with living(tmp_path, peer.port) as (_, life):
            await peer.hear("ready")
            peer.say.put_nowait(peer._welcome())
            await peer.hear("hello")
            await peer.hear("ready")
            peer.finish()
            assert await life == "all done"
        await peer.stop()

    run(scenario())
