"""What the coordinator's door takes no more of than it must: silence, floods, and odd numbers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import xxhash
from tests.hand_node import HandNode, joined, with_node

from partsum.coordinator import patience
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire


async def silent() -> AsyncIterator[Any]:
    await asyncio.sleep(60)
    yield pb.ControlRequest()


def test_a_caller_that_says_nothing_does_not_keep_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.2)

    async def test(node: HandNode) -> None:
        answers = [answer async for answer in node.stub.Control(silent())]
        assert [answer.refused.reason for answer in answers] == ["nothing came for 0.2 s"]
        with pytest.raises(grpc.aio.AioRpcError, match="nothing came for"):
            await node.stub.Push(silent())
        assignment = await joined(node)
        offer, data = node.offer(assignment, node.tensors(assignment))

        async def stalls() -> AsyncIterator[pb.PushRequest]:
            yield pb.PushRequest(offer=offer)
            yield pb.PushRequest(chunk=wire.chunk_to_wire(0, data[:50]))
            await asyncio.sleep(60)

        with pytest.raises(grpc.aio.AioRpcError, match="nothing came for"):
            await node.stub.Push(stalls())
        assert (await node.stub.Offer(offer)).offset == 50
        rest = wire.chunk_to_wire(50, data[50:])
        assert (await node.push(offer, [rest])).accepted
        await node.heard("finished")

    with_node(tmp_path, test)


def test_a_stream_that_makes_no_sense_ends_in_words_and_the_node_may_come_back(
    tmp_path: Path,
) -> None:
    async def test(node: HandNode) -> None:
        cases = [
            (pb.ControlRequest(hello=pb.Hello(node="hand")), "said Hello already"),
            (progress(loss=math.nan), "loss is nan"),
            (progress(loss=math.inf), "loss is inf"),
            (progress(samples_per_second=math.nan), "samples_per_second is nan"),
            (progress(samples_per_second=-1.0), "samples_per_second is -1.0"),
            (progress(samples_done=-1), "samples_done is -1"),
            (progress(samples_done=2**63 - 1), "samples_done is 9223372036854775807"),
        ]
        for message, reason in cases:
            await joined(node)
            node.outbox.put_nowait(message)
            assert reason in (await node.heard("refused")).reason
            node.hang_up()

    with_node(tmp_path, test)


def progress(**changes: float) -> pb.ControlRequest:
    return pb.ControlRequest(progress=pb.Progress(assignment="r0-p0", **changes))  # type: ignore[arg-type]


def test_claims_of_a_device_that_there_is_not_are_refused(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        for changes in (
            {"gflops": math.nan},
            {"gflops": math.inf},
            {"gflops": -1.0},
            {"gflops": 1e300},
            {"memory_bytes": -1},
            {"memory_bytes": 2**63 - 1},
        ):
            node.hello()
            await node.heard("welcome")
            node.ready(**changes)
            assert "which no device has" in (await node.heard("refused")).reason
            node.hang_up()

    with_node(tmp_path, test)


@pytest.mark.parametrize("offset", [-1, -(2**63), 2**63 - 1, 10**6])
def test_there_is_nothing_to_pull_beyond_a_blobs_ends(tmp_path: Path, offset: int) -> None:
    async def test(node: HandNode) -> None:
        cluster = (await joined(node)).cluster
        request = pb.PullRequest(node="hand", digest=cluster.digest, offset=offset)
        with pytest.raises(grpc.aio.AioRpcError, match=f"no offset {offset}") as caught:
            async for _ in node.stub.Pull(request):
                pass
        assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
        end = pb.PullRequest(node="hand", digest=cluster.digest, offset=cluster.size_bytes)
        assert [response async for response in node.stub.Pull(end)] == []

    with_node(tmp_path, test)


def test_a_push_of_empty_chunks_ends_at_the_first(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        offer, _ = node.offer(assignment, node.tensors(assignment))
        empty = wire.chunk_to_wire(0, b"")
        with pytest.raises(grpc.aio.AioRpcError, match="an empty chunk came at offset 0"):
            await node.push(offer, [empty] * 1000)

    with_node(tmp_path, test)


def test_a_node_that_announces_many_updates_of_a_part_fills_one_file(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        good, data = node.offer(assignment, node.tensors(assignment))
        for k in range(50):
            noise = bytes([k]) * 1000
            offer, _ = node.offer(
                assignment,
                {},
                blob=pb.Blob(digest=xxhash.xxh3_128_hexdigest(noise), size_bytes=1000),
            )
            with pytest.raises(grpc.aio.AioRpcError, match="the stream ended after 999 of 1000 B"):
                await node.push(offer, [wire.chunk_to_wire(0, noise[:999])])
            assert len(list(tmp_path.glob("latest/spool/push-*"))) == 1
        assert (await node.push(good, [wire.chunk_to_wire(0, data)])).accepted
        await node.heard("finished")

    with_node(tmp_path, test)


def test_a_push_whose_place_another_took_ends(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        good, data = node.offer(assignment, node.tensors(assignment))
        waits = asyncio.Event()
        noise = bytes(1000)
        blob = pb.Blob(digest=xxhash.xxh3_128_hexdigest(noise), size_bytes=1000)
        first, _ = node.offer(assignment, {}, blob=blob)

        async def stalls() -> AsyncIterator[pb.PushRequest]:
            yield pb.PushRequest(offer=first)
            yield pb.PushRequest(chunk=wire.chunk_to_wire(0, noise[:500]))
            await waits.wait()
            yield pb.PushRequest(chunk=wire.chunk_to_wire(500, noise[500:]))

        stalled = asyncio.ensure_future(node.stub.Push(stalls()))
        while (await node.stub.Offer(first)).offset < 500:
            await asyncio.sleep(0.01)
        half = wire.chunk_to_wire(0, data[:100])
        with pytest.raises(grpc.aio.AioRpcError, match="the stream ended after 100"):
            await node.push(good, [half])
        waits.set()
        with pytest.raises(grpc.aio.AioRpcError, match="these bytes come on another stream"):
            await stalled
        assert (await node.stub.Offer(good)).offset == 100
        assert (await node.push(good, [wire.chunk_to_wire(100, data[100:])])).accepted
        await node.heard("finished")

    with_node(tmp_path, test)


def test_numbers_at_the_edges_of_their_types_are_refused_and_nothing_breaks(
    tmp_path: Path,
) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        tensors = node.tensors(assignment)
        for part in (-1, -(2**31), 2**31 - 1, 1):
            answer = await node.deliver(assignment, tensors, part_index=part)
            assert (answer.accepted, answer.reason) == (
                False,
                f"part {part} of round 0 is already in",
            )
        for round in (-1, -(2**31), 2**31 - 1):
            answer = await node.deliver(assignment, tensors, round=round)
            assert (answer.accepted, answer.reason) == (False, f"round {round} is not open")
        for blob in (
            pb.Blob(digest="a" * 32, size_bytes=2**63 - 1),
            pb.Blob(digest="a" * 32, size_bytes=-1),
            pb.Blob(digest="x" * 3_000_000),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="is not a blob"):
                await node.deliver(assignment, tensors, blob=blob)
        for name in ("", "x" * 3_000_000):
            offer, _ = node.offer(assignment, tensors)
            offer.node = name
            with pytest.raises(grpc.aio.AioRpcError, match="is not connected"):
                await node.stub.Offer(offer)
        assert (await node.deliver(assignment, tensors)).accepted
        await node.heard("finished")

    with_node(tmp_path, test)


def test_an_update_with_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:

    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        header = b'{"a":[' + b"[],[],[],[]," * 60_000 + b"[]]}"
        data = len(header).to_bytes(8, "little") + header
        blob = pb.Blob(digest=xxhash.xxh3_128_hexdigest(data), size_bytes=len(data))
        offer, _ = node.offer(assignment, {}, blob=blob)
        answer = await node.push(offer, [wire.chunk_to_wire(0, data)])
        assert not answer.accepted
        assert "has a header of" in answer.reason

    with_node(tmp_path, test)
