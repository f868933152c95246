"""Streams of bytes that stall, never end or make no sense: each ends, and nobody else suffers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from tests.hand_node import TOML, HandNode, joined, with_node

from partsum.coordinator import patience
from partsum.node.client import Client
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.errors import WireError
from partsum.shared.files import CHUNK_BYTES
from partsum.shared.messages import Blob, TaskSpec, Update
from partsum.shared.task import task_digest
from partsum.shared.tensors import load_tensors

WIDE_SPEC = TaskSpec("partsum.shared.tasks:digits", {"widths": [2000, 2000]})
WIDE = (
    TOML.replace("[12, 12]", "[2000, 2000]")  # 17 MB: more than sockets and windows hold
    .replace("count = 1, rounds = 1", "planner = 'full', count = 1, rounds = 1")
    .replace("local_epochs = 0.1", "local_epochs = 0.0, evaluate_every = 0")
)


def test_chunks_twice_or_out_of_order_or_past_the_end_are_refused_and_what_was_whole_is_kept(
    tmp_path: Path,
) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        offer, data = node.offer(assignment, node.tensors(assignment))
        size, held = len(data), 0
        first, second, last = (
            wire.chunk_to_wire(begin, data[begin:end])
            for begin, end in itertools.pairwise((0, size // 3, 2 * size // 3, size))
        )
        beyond = wire.chunk_to_wire(size + 1, b"more")
        for chunks, complaint, now_held in (
            ([last], f"offset {last.offset} came where 0 was next", 0),
            ([first, first], f"offset 0 came where {second.offset} was next", second.offset),
            ([second, last, last], f"came where {size} was next", size),
            ([beyond], f"offset {size + 1} came where {size} was next", size),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=complaint):
                await node.push(offer, chunks)
            held = (await node.stub.Offer(offer)).offset
            assert held == now_held
        assert (await node.push(offer, [])).accepted
        await node.heard("finished")

    with_node(tmp_path, test)


def test_an_update_larger_than_any_part_is_refused_before_a_byte_of_it_is_read(
    tmp_path: Path,
) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        blob = pb.Blob(digest="a" * 32, size_bytes=1 << 40)
        offer, _ = node.offer(assignment, node.tensors(assignment), blob=blob)
        asked = await node.stub.Offer(offer)
        assert not asked.wanted
        assert "it announces 1099511627776 B, more than the base's" in asked.reason
        await node.heard("assignment")
        answer = await node.push(offer, [wire.chunk_to_wire(0, bytes(1000))])
        assert not answer.accepted
        assert "it announces 1099511627776 B" in answer.reason
        assert not list(tmp_path.glob("latest/spool/push-*"))

    with_node(tmp_path, test)


def test_a_push_that_never_ends_is_ended_and_fills_no_disk(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        offer, data = node.offer(assignment, node.tensors(assignment))
        sent = 0

        async def endless() -> AsyncIterator[pb.PushRequest]:
            nonlocal sent
            yield pb.PushRequest(offer=offer)
            yield pb.PushRequest(chunk=wire.chunk_to_wire(0, data))
            for offset in itertools.count(len(data), CHUNK_BYTES):
                sent += CHUNK_BYTES
                yield pb.PushRequest(chunk=wire.chunk_to_wire(offset, bytes(CHUNK_BYTES)))

        # gRPC's client forgets the reason where the end meets it in the middle of sending.
        reason = f"more than the announced {len(data)} B|Internal error from Core"
        with pytest.raises(grpc.aio.AioRpcError, match=reason):
            await node.stub.Push(endless())
        stopped = sent
        await asyncio.sleep(0.2)
        assert sent == stopped  # nobody reads on
        spooled = sum(path.stat().st_size for path in tmp_path.glob("latest/spool/push-*"))
        assert spooled <= len(data) + 4096
        assert (await node.push(offer, [])).accepted
        await node.heard("finished")

    with_node(tmp_path, test)


def test_a_push_that_dribbles_is_ended_and_another_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.5)

    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        offer, data = node.offer(assignment, node.tensors(assignment))

        async def dribbles() -> AsyncIterator[pb.PushRequest]:
            yield pb.PushRequest(offer=offer)
            for offset in itertools.count():
                yield pb.PushRequest(chunk=wire.chunk_to_wire(offset, data[offset : offset + 1]))
                await asyncio.sleep(0.1)

        with pytest.raises(grpc.aio.AioRpcError, match=r"only \d+ B came in 0.5 s"):
            await asyncio.wait_for(node.stub.Push(dribbles()), 20)
        held = (await node.stub.Offer(offer)).offset
        assert 0 < held < 100
        assert (await node.push(offer, [wire.chunk_to_wire(held, data[held:])])).accepted
        await node.heard("finished")

    with_node(tmp_path, test)


def open_files(name: str) -> list[str]:
    return [file.path for file in psutil.Process().open_files() if name in file.path]


async def read_out(call: Any) -> bytes:
    pieces = []
    while (response := await call.read()) is not grpc.aio.EOF:
        pieces.append(response.chunk.data)
    return b"".join(pieces)


def test_pulls_that_nobody_reads_end_by_themselves_in_bounded_memory_while_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    pulls = 20

    async def test(node: HandNode) -> None:
        node.hello()
        await node.heard("welcome")
        node.ready(task_digest=task_digest(WIDE_SPEC))
        assignment = await node.heard("assignment")
        request = pb.PullRequest(node="hand", digest=assignment.start.digest)
        # A client that holds little itself: both ends are in this process.
        small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10)]
        async with grpc.aio.insecure_channel(node.address, options=small) as channel:
            stub = rpc.CoordinatorServiceStub(channel)
            before = psutil.Process().memory_info().rss
            stalled: list[Any] = [stub.Pull(request) for _ in range(pulls)]
            for call in stalled:
                assert (await call.read()).chunk.offset == 0  # and no more
            grown = psutil.Process().memory_info().rss - before
            assert grown < pulls * assignment.start.size_bytes / 2
            whole = await read_out(node.stub.Pull(request))
            while open_files("base-00000"):
                await asyncio.sleep(0.05)
            for call in stalled:
                with pytest.raises(grpc.aio.AioRpcError, match="nothing was read for 1 s"):
                    await read_out(call)
        (tmp_path / "start").write_bytes(whole)
        start = load_tensors(tmp_path / "start")
        offer, data = node.offer(assignment, start, start_digest=assignment.start.digest)
        pieces = range(0, len(data), CHUNK_BYTES)
        chunks = [wire.chunk_to_wire(k, data[k : k + CHUNK_BYTES]) for k in pieces]
        assert (await node.push(offer, chunks)).accepted
        await node.heard("finished")

    summary = with_node(tmp_path, test, WIDE)
    assert summary is not None
    assert summary.state == "finished"


def test_a_pull_that_outlives_its_blob_ends_and_brings_no_byte_of_another(tmp_path: Path) -> None:
    text = "keep_bases = 2\n" + WIDE.replace("rounds = 1", "rounds = 4", 1)

    async def test(node: HandNode) -> None:
        node.hello()
        await node.heard("welcome")
        node.ready(task_digest=task_digest(WIDE_SPEC))
        assignment = await node.heard("assignment")
        request = pb.PullRequest(node="hand", digest=assignment.start.digest)
        small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10)]
        async with grpc.aio.insecure_channel(node.address, options=small) as channel:
            slow: Any = rpc.CoordinatorServiceStub(channel).Pull(request)
            got = (await slow.read()).chunk.data
            first = await read_out(node.stub.Pull(request))
            for round in range(4):  # the base that it reads from is written over meanwhile
                path = tmp_path / "start"
                request = pb.PullRequest(node="hand", digest=assignment.start.digest)
                path.write_bytes(await read_out(node.stub.Pull(request)))
                moved = {name: tensor + 0.01 for name, tensor in load_tensors(path).items()}
                start = assignment.start.digest
                offer, data = node.offer(assignment, moved, start_digest=start)
                pieces = range(0, len(data), CHUNK_BYTES)
                chunks = [wire.chunk_to_wire(k, data[k : k + CHUNK_BYTES]) for k in pieces]
                assert (await node.push(offer, chunks)).accepted
                assignment = await node.heard("assignment" if round < 3 else "finished")

            async def rest() -> None:
                nonlocal got
                while (response := await slow.read()) is not grpc.aio.EOF:
                    got += response.chunk.data

            with pytest.raises(grpc.aio.AioRpcError, match="the blob has gone"):
                await rest()
        assert got == first[: len(got)]
        assert len(got) < len(first)

    summary = with_node(tmp_path, test, text)
    assert summary is not None
    assert summary.state == "finished"
    assert not list((tmp_path / "latest" / "spool").glob("spare-*"))


def test_a_node_believes_no_offset_beyond_its_update(tmp_path: Path) -> None:
    class Liar(rpc.CoordinatorServiceServicer):
        async def Offer(self, request: pb.OfferRequest, context: object) -> pb.OfferResponse:
            return pb.OfferResponse(wanted=True, offset=request.update.blob.size_bytes + 1)

    async def test() -> None:
        server = grpc.aio.server()
        rpc.add_CoordinatorServiceServicer_to_server(Liar(), server)  # type: ignore[abstract]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = Client(f"127.0.0.1:{port}", "node")
        await client.dial()
        blob = Blob("a" * 32, 100)
        try:
            with pytest.raises(WireError, match="the offset to send from is 101"):
                await client.offer(Update("r0-p0", 0, 0, "", 1, 0.5, 1.0, 1.0, 1, blob))
        finally:
            await client.close()
            await server.stop(None)

    asyncio.run(test())
