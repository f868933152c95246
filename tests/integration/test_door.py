"""A node written by hand at the coordinator's real door: what gets in and what is refused."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from partsum.coordinator.folder import new_run
from partsum.coordinator.run import Run
from partsum.coordinator.server import serve
from partsum.coordinator.store import Store
from partsum.coordinator.summary import Summary
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.config import parse_config
from partsum.shared.files import file_digest
from partsum.shared.messages import TaskSpec
from partsum.shared.part import cut_module, fresh_module
from partsum.shared.task import data_digest, load_task, task_digest
from partsum.shared.tensors import save_tensors
from partsum.shared.width import find_widths

SPEC = TaskSpec("partsum.shared.tasks:digits", {"widths": [12, 12]})
TOML = """
name = "door"
folder = "{folder}"
task = {{ name = "partsum.shared.tasks:digits", options = {{ widths = [12, 12] }} }}
parts = {{ count = 1, rounds = 1, local_epochs = 0.1 }}
rounds = {{ heartbeat_seconds = 5.0, refusals = 10 }}
handoff = {{ enabled = false }}
server = {{ port = 0, metrics_port = 0 }}
"""


@dataclass
class HandNode:
    """Speaks the protocol, as well or as badly as a test wants."""

    stub: rpc.CoordinatorServiceAsyncStub
    folder: Path
    name: str = "hand"
    outbox: asyncio.Queue[pb.ControlRequest] = field(default_factory=asyncio.Queue)
    answers: Any = None

    async def _requests(self) -> AsyncIterator[pb.ControlRequest]:
        while True:
            yield await self.outbox.get()

    def hello(self, **changes: Any) -> None:
        values = {"node": self.name, "instance": "1", "protocol": wire.PROTOCOL, **changes}
        self.outbox.put_nowait(pb.ControlRequest(hello=pb.Hello(**values)))
        self.answers = aiter(self.stub.Control(self._requests()))

    def ready(self, **changes: Any) -> None:
        task = load_task(SPEC)
        values = {
            "device": "hand",
            "memory_bytes": 1 << 30,
            "gflops": 1.0,
            "task_digest": task_digest(SPEC),
            "data_digest": data_digest(task.train()),
            **changes,
        }
        self.outbox.put_nowait(pb.ControlRequest(ready=pb.Ready(**values)))

    async def heard(self, kind: str) -> Any:
        """The next message, which must be of that kind."""
        message = await asyncio.wait_for(anext(self.answers), 20)
        assert message.WhichOneof("kind") == kind, message
        return getattr(message, kind)

    def tensors(self, assignment: pb.Assignment) -> dict[str, torch.Tensor]:
        """A right update's tensors."""
        model = load_task(SPEC).model()
        part = wire.part_from_wire(assignment.part)
        return dict(fresh_module(cut_module(model, find_widths(model), part), 5).state_dict())

    def offer(
        self, assignment: pb.Assignment, tensors: dict[str, torch.Tensor], **changes: Any
    ) -> tuple[pb.OfferRequest, bytes]:
        path = self.folder / "update"
        save_tensors(path, tensors, durable=False)
        values = {
            "assignment": assignment.id,
            "round": assignment.round,
            "part_index": assignment.part_index,
            "start_digest": "",
            "num_samples": assignment.num_samples,
            "loss": 1.0,
            "blob": pb.Blob(digest=file_digest(path), size_bytes=path.stat().st_size),
            **changes,
        }
        return pb.OfferRequest(node=self.name, update=pb.Update(**values)), path.read_bytes()

    async def push(self, offer: pb.OfferRequest, chunks: list[pb.Chunk]) -> pb.PushResponse:
        async def requests() -> AsyncIterator[pb.PushRequest]:
            yield pb.PushRequest(offer=offer)
            for chunk in chunks:
                yield pb.PushRequest(chunk=chunk)

        return await self.stub.Push(requests())

    async def deliver(
        self, assignment: pb.Assignment, tensors: dict[str, torch.Tensor], **changes: Any
    ) -> pb.PushResponse:
        offer, data = self.offer(assignment, tensors, **changes)
        return await self.push(offer, [wire.chunk_to_wire(0, data)])


@contextmanager
def opened(folder: Path, text: str) -> Iterator[Run]:
    config = parse_config(text.format(folder=folder))
    store: Store = new_run(config, text, 1e9)
    try:
        run = Run(config, store, 1e9)
        run.prepare()
        yield run
    finally:
        store.close()


def with_node(
    folder: Path, test: Callable[[HandNode], Awaitable[None]], text: str = TOML
) -> Summary | None:
    """Serve a run, let the test speak to it; the summary, if the run ended by itself."""

    async def main(run: Run) -> Summary | None:
        serving = asyncio.create_task(serve(run))
        while not (address := run.store.fact("address")):
            await asyncio.sleep(0.01)
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                await test(HandNode(rpc.CoordinatorServiceStub(channel), folder))
                await asyncio.sleep(0.1)
        finally:
            if run.next_round < run.config.parts.rounds:
                serving.cancel()
        try:
            return await asyncio.wait_for(serving, 20)
        except asyncio.CancelledError:
            return None

    with opened(folder, text) as run:
        return asyncio.run(main(run))


async def joined(node: HandNode) -> pb.Assignment:
    """Join and get the first assignment."""
    node.hello()
    await node.heard("welcome")
    node.ready()
    assignment: pb.Assignment = await node.heard("assignment")
    return assignment


def test_every_bad_update_is_refused_with_its_reason_and_a_good_one_still_counts(
    tmp_path: Path,
) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        good = node.tensors(assignment)
        name = next(iter(good))
        flat = good[name].flatten()
        cases: list[tuple[dict[str, torch.Tensor], dict[str, Any], str]] = [
            ({**good, name: torch.full_like(good[name], math.nan)}, {}, "holds nan or infinity"),
            ({n: t for n, t in good.items() if n != name}, {}, f"tensor '{name}' is missing"),
            ({**good, "more": flat}, {}, "tensor 'more' is not in this model"),
            ({**good, name: flat}, {}, "has shape"),
            ({**good, name: good[name].double()}, {}, "is torch.float64"),
            (good, {"start_digest": "f" * 32}, "this round starts from a fresh part"),
            (good, {"num_samples": 7}, "it counts 7 samples"),
            (good, {"loss": math.inf}, "its training loss is inf"),
            (good, {"train_seconds": math.inf}, "its train_seconds is inf"),
        ]
        for tensors, changes, reason in cases:
            answer = await node.deliver(assignment, tensors, **changes)
            assert not answer.accepted
            assert reason in answer.reason
            again: pb.Assignment = await node.heard("assignment")
            assert again.id == assignment.id
        other = await node.deliver(assignment, good, round=7)
        assert (other.accepted, other.reason) == (False, "round 7 is not open")
        assert (await node.deliver(assignment, good)).accepted
        assert (await node.heard("finished")).reason == "the run is done"

    summary = with_node(tmp_path, test)
    assert summary is not None
    assert summary.state == "finished"
    kinds = [refusal.kind for refusal in summary.rounds[0].refused]
    expected = ["not_finite", "missing", "extra", "shape", "dtype", "base", "samples"]
    assert kinds == [*expected, "not_finite", "not_finite"]


def test_a_push_that_breaks_off_goes_on_where_it_was_and_damage_is_noticed(
    tmp_path: Path,
) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        offer, data = node.offer(assignment, node.tensors(assignment))
        half = len(data) // 2
        damaged = wire.chunk_to_wire(0, data[:half])
        damaged.data = b"x" + damaged.data[1:]
        for chunk, complaint in (
            (damaged, "damaged on its way"),
            (wire.chunk_to_wire(5, data[5:]), "came where 0 was next"),
            (wire.chunk_to_wire(0, data + b"more"), "more than the announced"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=complaint):
                await node.push(offer, [chunk])
            assert (await node.stub.Offer(offer)).offset == 0
        with pytest.raises(grpc.aio.AioRpcError, match="the stream ended after"):
            await node.push(offer, [wire.chunk_to_wire(0, data[:half])])
        held = await node.stub.Offer(offer)
        assert (held.wanted, held.offset) == (True, half)
        answer = await node.push(offer, [wire.chunk_to_wire(half, data[half:])])
        assert answer.accepted

    summary = with_node(tmp_path, test)
    assert summary is not None
    assert summary.state == "finished"


def test_of_two_pushes_of_one_update_only_one_appends(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        offer, data = node.offer(assignment, node.tensors(assignment))
        half = len(data) // 2
        waits = asyncio.Event()

        async def stalls() -> AsyncIterator[pb.PushRequest]:
            yield pb.PushRequest(offer=offer)
            yield pb.PushRequest(chunk=wire.chunk_to_wire(0, data[:half]))
            await waits.wait()
            yield pb.PushRequest(chunk=wire.chunk_to_wire(half, data[half:]))

        async def goes_on() -> AsyncIterator[pb.PushRequest]:
            yield pb.PushRequest(offer=offer)
            middle = half + 100
            yield pb.PushRequest(chunk=wire.chunk_to_wire(half, data[half:middle]))
            while (await node.stub.Offer(offer)).offset < middle:  # until that is spooled
                await asyncio.sleep(0.01)
            waits.set()
            with pytest.raises(grpc.aio.AioRpcError, match="another push of this update"):
                await stalled
            yield pb.PushRequest(chunk=wire.chunk_to_wire(middle, data[middle:]))

        stalled = asyncio.ensure_future(node.stub.Push(stalls()))
        while (await node.stub.Offer(offer)).offset < half:
            await asyncio.sleep(0.01)
        assert (await node.stub.Push(goes_on())).accepted

    summary = with_node(tmp_path, test)
    assert summary is not None
    assert summary.state == "finished"


def test_a_failure_counts_also_after_an_older_update_of_the_same_node_came_in(
    tmp_path: Path,
) -> None:
    text = TOML.replace("count = 1", "count = 3").replace("refusals = 10", "min_nodes = 1")

    async def test(node: HandNode) -> None:
        first = await joined(node)
        other = HandNode(node.stub, tmp_path, "other")
        second = await joined(other)
        older, data = node.offer(second, node.tensors(second))
        answer = await node.push(older, [wire.chunk_to_wire(0, data)])
        assert answer.accepted
        assert (await other.heard("cancel")).assignment == second.id
        third = await other.heard("assignment")
        failed = pb.Failed(assignment=first.id, reason="out of memory")
        node.outbox.put_nowait(pb.ControlRequest(failed=failed))
        assert (await other.deliver(third, other.tensors(third))).accepted
        assert (await other.heard("assignment")).id == first.id

    with_node(tmp_path, test, text)


def test_nodes_that_do_not_fit_are_told_why(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        for changes, reason in (
            ({"protocol": 99}, "this node speaks protocol 99"),
            ({"node": ""}, "a node's name must have 1 to 64"),
        ):
            node.hello(**changes)
            assert reason in (await node.heard("refused")).reason
            node.outbox = asyncio.Queue()
        for changes, reason in (
            ({"task_digest": "0" * 32}, "another version of the task"),
            ({"data_digest": ""}, "has no copy of the training data"),
            ({"data_digest": "0" * 32}, "training data is not the coordinator's"),
        ):
            node.outbox = asyncio.Queue()
            node.hello()
            await node.heard("welcome")
            node.ready(**changes)
            assert reason in (await node.heard("refused")).reason

    with_node(tmp_path, test)


def test_nobody_gets_a_blob_that_is_not_of_its_assignment(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        cluster = (await joined(node)).cluster
        got = [r async for r in node.stub.Pull(pb.PullRequest(node="hand", digest=cluster.digest))]
        assert sum(len(response.chunk.data) for response in got) == cluster.size_bytes
        for request in (
            pb.PullRequest(node="hand", digest="0" * 32),
            pb.PullRequest(node="hand", digest="../../../etc/passwd"),
            pb.PullRequest(node="stranger", digest=cluster.digest),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in node.stub.Pull(request):
                    pass
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED

    with_node(tmp_path, test)


def test_a_node_that_falls_silent_is_gone_and_its_namesake_is_refused_before(
    tmp_path: Path,
) -> None:
    text = TOML.replace("heartbeat_seconds = 5.0", "heartbeat_seconds = 0.2")

    async def test(node: HandNode) -> None:
        await joined(node)
        double = HandNode(node.stub, tmp_path)
        double.hello(instance="2")
        assert (
            "is already connected from another state folder"
            in (await double.heard("refused")).reason
        )
        with pytest.raises(StopAsyncIteration):  # three missed heartbeats end the stream
            await asyncio.wait_for(anext(node.answers), 10)
        double = HandNode(node.stub, tmp_path)
        double.hello(instance="2")
        await double.heard("welcome")

    with_node(tmp_path, test, text)
