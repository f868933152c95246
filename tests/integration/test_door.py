"""A node written by hand at the coordinator's real door: what gets in and what is refused."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from tests.hand_node import TOML, HandNode, joined, opened, with_node

from partsum.coordinator.run import Run
from partsum.coordinator.server import serve
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.files import file_digest


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


def test_an_update_that_is_looked_at_after_its_round_has_closed_is_held_against_nobody(
    tmp_path: Path,
) -> None:
    """Its start, and itself, may have been written over by then: nobody can tell what it was."""
    text = "deterministic = false\n" + TOML.replace("= 1, rounds = 1", "= 2, rounds = 2")
    text = text.replace("refusals = 10", "refusals = 1, deadline_seconds = 1.0, min_nodes = 2")

    async def test(run: Run, nodes: list[HandNode]) -> None:
        first, late = nodes
        for node in nodes:
            node.hello()
            await node.heard("welcome")
        for node in nodes:
            node.ready()
        given, other = [await node.heard("assignment") for node in nodes]
        checks, run._checks = run._checks, asyncio.Semaphore(0)  # it is looked at later
        bad = {name: tensor * math.nan for name, tensor in late.tensors(other).items()}
        offer, data = late.offer(other, bad)
        push = asyncio.ensure_future(late.push(offer, [wire.chunk_to_wire(0, data)]))
        while (await late.stub.Offer(offer)).offset < len(data):
            await asyncio.sleep(0.01)
        (spool,) = (run.folder / "spool").glob("push-r0-p1-*")
        held_up, run._checks = run._checks, checks
        assert (await first.deliver(given, first.tensors(given))).accepted
        while run.next_round == 0:
            await asyncio.sleep(0.01)
        spool.write_bytes(data)  # as if it had been open by then
        held_up.release()
        assert (await push).accepted  # nobody waits for it any more
        kinds = {kind for _, kind, _, _, _ in run.store.events()}
        assert "partial" in kinds
        assert not kinds & {"refused:not_finite", "benched"}

    with_run(tmp_path, test, text)


def test_what_is_looked_at_is_what_was_digested_whatever_else_its_node_sends(
    tmp_path: Path,
) -> None:
    async def test(run: Run, nodes: list[HandNode]) -> None:
        node = nodes[0]
        given = await joined(node)
        good = node.tensors(given)
        other = {name: tensor + 0.01 for name, tensor in good.items()}
        checks, run._checks = run._checks, asyncio.Semaphore(0)  # it is looked at later
        offer, data = node.offer(given, good)
        push = asyncio.ensure_future(node.push(offer, [wire.chunk_to_wire(0, data)]))
        while (await node.stub.Offer(offer)).offset < len(data):
            await asyncio.sleep(0.01)
        # With the count of its bytes behind them these make an update too, of the same digest.
        _, others = node.offer(given, other)
        short = wire.chunk_to_wire(0, others[:-8])
        offer.update.blob.size_bytes -= 8

        async def stalls() -> AsyncIterator[pb.PushRequest]:
            yield pb.PushRequest(offer=offer)
            yield pb.PushRequest(chunk=short)
            await asyncio.Event().wait()

        stalled = node.stub.Push(stalls())
        while (await node.stub.Offer(offer)).offset < len(data) - 8:
            await asyncio.sleep(0.01)
        held_up, run._checks = run._checks, checks
        held_up.release()
        await asyncio.wait({push})
        stalled.cancel()
        offer.update.blob.size_bytes += 8
        if push.exception() is not None:
            answer = await node.push(offer, [wire.chunk_to_wire(0, data)])
            assert answer.accepted
        await node.heard("finished")
        for path, digest in run.workshop.files_of(0).items():
            assert file_digest(path) == digest

    with_run(tmp_path, test, TOML)


def with_run(
    folder: Path, test: Callable[[Run, list[HandNode]], Awaitable[None]], text: str
) -> None:
    """Serve a run, and let the test look into it while its nodes speak to it."""

    async def main(run: Run) -> None:
        serving = asyncio.create_task(serve(run))
        while not (address := run.store.fact("address")):
            await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(address) as channel:
            stub = rpc.CoordinatorServiceStub(channel)
            await asyncio.wait_for(test(run, [HandNode(stub, folder, n) for n in "ab"]), 20)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    with opened(folder, text) as run:
        asyncio.run(main(run))


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
            with pytest.raises(grpc.aio.AioRpcError, match="these bytes come on another stream"):
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
    changed = "refusals = 3, min_nodes = 1, return_seconds = 0.0"
    text = TOML.replace("count = 1", "count = 4").replace("refusals = 10", changed)
    text = "deterministic = false\n" + text

    async def test(node: HandNode) -> None:
        first = await joined(node)
        other = HandNode(node.stub, tmp_path, "other")
        second = await joined(other)
        node.hang_up()
        assert (await other.deliver(second, other.tensors(second))).accepted
        assert (await other.heard("assignment")).id == first.id  # it was free again
        third = await joined(node)
        assert third.id not in {first.id, second.id}
        assert (await node.deliver(first, node.tensors(first))).accepted
        assert (await other.heard("cancel")).assignment == first.id
        fourth = await other.heard("assignment")
        failed = pb.Failed(assignment=third.id, reason="out of memory")
        node.outbox.put_nowait(pb.ControlRequest(failed=failed))
        assert (await other.deliver(fourth, other.tensors(fourth))).accepted
        assert (await other.heard("assignment")).id == third.id

    with_node(tmp_path, test, text)


def test_an_update_of_a_part_that_was_given_to_others_is_not_wanted(tmp_path: Path) -> None:
    text = TOML.replace("count = 1", "count = 2")

    async def test(node: HandNode) -> None:
        other = HandNode(node.stub, tmp_path, "other")
        for each in (node, other):
            each.hello()
            await each.heard("welcome")
            each.ready()
        mine, theirs = await node.heard("assignment"), await other.heard("assignment")
        answer = await node.deliver(theirs, node.tensors(theirs))
        assert not answer.accepted
        assert "was given to others" in answer.reason
        assert (await node.deliver(mine, node.tensors(mine))).accepted
        assert (await other.deliver(theirs, other.tensors(theirs))).accepted

    summary = with_node(tmp_path, test, text)
    assert summary is not None
    assert summary.state == "finished"


def test_a_quarantined_node_delivers_nothing_more(tmp_path: Path) -> None:
    text = TOML.replace("refusals = 10", "refusals = 1").replace("count = 1", "count = 2")

    async def test(node: HandNode) -> None:
        other = HandNode(node.stub, tmp_path, "other")
        for each in (node, other):
            each.hello()
            await each.heard("welcome")
            each.ready()
        mine = await node.heard("assignment")
        await other.heard("assignment")
        tensors = node.tensors(mine)
        bad = {name: torch.full_like(t, math.nan) for name, t in tensors.items()}
        assert "nan or infinity" in (await node.deliver(mine, bad)).reason
        await node.heard("quarantined")
        answer = await node.deliver(mine, tensors)
        assert (answer.accepted, answer.reason) == (False, "this node is quarantined")

    with_node(tmp_path, test, text)


def test_a_node_that_came_back_says_which_task_it_has_before_its_update_counts(
    tmp_path: Path,
) -> None:
    async def test(node: HandNode) -> None:
        assignment = await joined(node)
        node.hang_up()
        node.hello()
        await node.heard("welcome")
        with pytest.raises(grpc.aio.AioRpcError, match="which task and data it has"):
            await node.deliver(assignment, node.tensors(assignment))
        node.ready(task_digest="0" * 32)
        assert "another version of the task" in (await node.heard("refused")).reason
        with pytest.raises(grpc.aio.AioRpcError, match="is not connected"):
            await node.deliver(assignment, node.tensors(assignment))

    with_node(tmp_path, test)


def test_nodes_that_do_not_fit_are_told_why(tmp_path: Path) -> None:
    async def test(node: HandNode) -> None:
        hellos: list[tuple[dict[str, Any], str]] = [
            ({"protocol": 99}, "this node speaks protocol 99"),
            ({"node": ""}, "a node's name must have 1 to 64"),
            ({"instance": "x" * 201}, "instance must have 200 printable"),
            ({"version": "\x1b[2J"}, "version must have 200 printable"),
        ]
        for changes, reason in hellos:
            node.hello(**changes)
            assert reason in (await node.heard("refused")).reason
            node.outbox = asyncio.Queue()
        readies: list[tuple[dict[str, Any], str]] = [
            ({"task_digest": "0" * 32}, "another version of the task"),
            ({"device": "x" * 201}, "device must have 200 printable characters at most"),
            ({"device": "cpu\nWARNING all is well"}, "device must have 200 printable"),
            ({"gflops": math.nan}, "which no device has"),
            ({"memory_bytes": -1}, "which no device has"),
            ({"data_digest": ""}, "has no copy of the training data"),
            ({"data_digest": "0" * 32}, "training data is not the coordinator's"),
        ]
        for changes, reason in readies:
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
