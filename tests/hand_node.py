"""A node written by hand, which speaks the protocol as well or as badly as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import torch

from partsum.coordinator.clock import RunClock
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
from partsum.shared.tensors import load_tensors, save_tensors
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
    call: Any = None
    answers: Any = None
    address: str = ""  # of the coordinator

    async def _requests(self) -> AsyncIterator[pb.ControlRequest]:
        while True:
            yield await self.outbox.get()

    def hello(self, **changes: Any) -> None:
        values = {"node": self.name, "instance": "1", "protocol": wire.PROTOCOL, **changes}
        self.outbox.put_nowait(pb.ControlRequest(hello=pb.Hello(**values)))
        self.call = self.stub.Control(self._requests())
        self.answers = aiter(self.call)

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

    def hang_up(self) -> None:
        """End the connection, as if the node had died."""
        self.call.cancel()
        self.outbox = asyncio.Queue()

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
        run = Run(config, store, RunClock(1e9))
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
                stub = rpc.CoordinatorServiceStub(channel)
                await test(HandNode(stub, folder, address=address))
                await asyncio.sleep(0.1)
                parts, rounds = run.config.parts.count, run.config.parts.rounds
                while run.next_round < rounds and len(run.store.updates(run.next_round)) == parts:
                    await asyncio.sleep(0.01)  # all are in, and are being merged
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


FULL = "deterministic = false\n" + TOML.replace(
    "count = 1, rounds = 1", "planner = 'full', count = 3, rounds = {rounds}"
).replace("refusals = 10", "refusals = 2, return_seconds = 0.0")


class Mover(HandNode):
    """Moves every weight of the base by the same amount, for as long as it gets work."""

    by = 0.01

    async def live(self) -> list[str]:
        """Everything that it heard."""
        self.hello()
        await self.heard("welcome")
        self.ready()
        heard = []
        async for message in self.answers:
            kind = message.WhichOneof("kind")
            heard.append(kind)
            if kind == "assignment":
                await self.move(message.assignment)
            if kind == "finished":
                break
        return heard

    async def move(self, given: pb.Assignment) -> None:
        request = pb.PullRequest(node=self.name, digest=given.start.digest)
        data = b"".join([response.chunk.data async for response in self.stub.Pull(request)])
        path = self.folder / f"start-{self.name}"
        path.write_bytes(data)
        moved = {name: tensor + self.by for name, tensor in load_tensors(path).items()}
        answer = await self.deliver(given, moved, start_digest=given.start.digest)
        assert answer.accepted or "is already in" in answer.reason, answer.reason


def played(
    folder: Path, rounds: int, liar_by: float, more: str = ""
) -> tuple[Summary, list[list[str]]]:
    """Node a moves weights by something else than b and c; what each of them heard."""
    heard: list[list[str]] = []

    async def test(node: HandNode) -> None:
        movers = [Mover(node.stub, folder, name) for name in "abc"]
        movers[0].by = liar_by
        heard.extend(await asyncio.gather(*(mover.live() for mover in movers)))

    summary = with_node(folder, test, more + FULL.replace("{rounds}", str(rounds)))
    assert summary is not None
    assert summary.state == "finished"
    return summary, heard
