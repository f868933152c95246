"""Secure aggregation at the coordinator's real door, with honest members and others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
import torch
from tests.hand_node import HandNode, opened

from partsum.coordinator.clock import RunClock
from partsum.coordinator.folder import open_run
from partsum.coordinator.run import Run
from partsum.coordinator.server import serve
from partsum.coordinator.summary import Summary
from partsum.node import control
from partsum.node.masking import mask_update
from partsum.node.secrets import SecretsFile
from partsum.node.secure import SecureMember
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.files import file_digest
from partsum.shared.masks import to_words
from partsum.shared.messages import Assignment, Blob, Update
from partsum.shared.tensors import load_tensors, save_tensors

TOML = """
name = "masked"
folder = "{folder}"
task = {{ name = "partsum.shared.tasks:digits", options = {{ widths = [12, 12] }} }}
parts = {{ planner = "full", count = 4, rounds = 1, local_epochs = 0.1 }}
rounds = {{ heartbeat_seconds = 0.1, return_seconds = 0.3, refusals = 3 }}
handoff = {{ enabled = false }}
server = {{ port = 0, metrics_port = 0 }}
privacy = {{ secure_aggregation = true }}
"""
NAMES = ("a", "b", "c", "d")
Tensors = dict[str, torch.Tensor]


class MaskedNode:
    """A hand node that is a real member of its sessions; it may be deaf to some questions."""

    def __init__(self, stub: rpc.CoordinatorServiceAsyncStub, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        self.hand = HandNode(stub, self.folder, name)
        rng = random.Random(name)
        self.member = SecureMember(SecretsFile(self.folder / "secrets"), name, rng.randbytes)
        self.deaf: set[str] = set()
        self.spoil = False
        self.runs_away = 0  # how often it leaves a session half made
        self.assignments: asyncio.Queue[Assignment] = asyncio.Queue()
        self.life: asyncio.Task[None] | None = None

    def join(self) -> None:
        """Connect, and from then on answer what is asked."""
        self.hand.hello()
        self.hand.ready()
        self.life = asyncio.create_task(self._live(), name=self.hand.name)

    async def _live(self) -> None:
        beat = asyncio.create_task(self._beat())
        try:
            async for message in self.hand.answers:
                said = control.incoming(message)
                if isinstance(said, Assignment):
                    self.assignments.put_nowait(said)
                elif isinstance(said, control.Secure):
                    answer = self.member.answer(said)
                    if answer and self.spoil:
                        answer.secure_keys.mask_key = bytes(32)  # everybody knows its secrets
                    if answer and answer.WhichOneof("kind") == "secure_shares" and self.runs_away:
                        self.runs_away -= 1
                        self.leave()
                        asyncio.get_running_loop().call_later(0.2, self.join)
                        return
                    if answer and answer.WhichOneof("kind") not in self.deaf:
                        self.hand.outbox.put_nowait(answer)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass  # hung up
        finally:
            beat.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self.hand.outbox.put_nowait(control.heartbeat())

    def leave(self) -> None:
        """As if it had died."""
        self.hand.hang_up()

    async def given(self) -> Assignment:
        """Its next assignment."""
        return await asyncio.wait_for(self.assignments.get(), 20)

    def plain(self, assignment: Assignment) -> Tensors:
        """What it would send to a coordinator that it trusts."""
        tensors = self.hand.tensors(wire.assignment_to_wire(assignment))
        generator = torch.Generator().manual_seed(ord(self.hand.name))
        return {name: t + torch.randn(t.shape, generator=generator) for name, t in tensors.items()}

    async def deliver(self, a: Assignment) -> pb.PushResponse:
        """Mask its update and push it."""
        path, out = self.folder / "plain", self.folder / "masked"
        save_tensors(path, self.plain(a), durable=False)
        assert a.masking is not None
        assert a.start is not None
        masks = self.member.masks(a.masking, file_digest(path))
        update = Update(
            a.id, a.round, a.part_index, a.start.digest, a.num_samples, 1, 1, 1, 1, Blob("", 0)
        )
        masked = mask_update(update, path, a.masking, masks, out)
        offer = pb.OfferRequest(node=self.hand.name, update=wire.update_to_wire(masked))
        return await self.hand.push(offer, [wire.chunk_to_wire(0, out.read_bytes())])


Test = Callable[[dict[str, MaskedNode], Run], Awaitable[None]]


async def served(run: Run, folder: Path, test: Test) -> Summary:
    """Serve a run while the test's nodes speak to it, to its end."""
    run.store.note(address=None)
    serving = asyncio.create_task(serve(run))
    while not (address := run.store.fact("address")):
        await asyncio.sleep(0.01)
    async with grpc.aio.insecure_channel(address) as channel:
        nodes = {n: MaskedNode(rpc.CoordinatorServiceStub(channel), folder, n) for n in NAMES}
        try:
            await test(nodes, run)
            return await asyncio.wait_for(serving, 30)
        finally:
            serving.cancel()
            for node in nodes.values():
                if node.life is not None:
                    node.leave()
                    await node.life


def mean_of(nodes: Sequence[MaskedNode], given: dict[str, Assignment]) -> Tensors:
    """The plain mean, weighted by samples."""
    total = sum(given[n.hand.name].num_samples for n in nodes)
    mean: Tensors = {}
    for n in nodes:
        assignment = given[n.hand.name]
        for name, tensor in n.plain(assignment).items():
            share = tensor.double() * (assignment.num_samples / total)
            mean[name] = mean.get(name, torch.zeros(()).double()) + share
    return mean


def missing(run: Run) -> tuple[int, ...]:
    """The parts that the round closed without."""
    return tuple(run.store.results()[0][0].missing)


def assert_base(run: Run, mean: Tensors) -> None:
    base = load_tensors(run.store.base_path("base-00001.safetensors"))
    for name, tensor in base.items():
        assert torch.allclose(tensor.double(), mean[name], rtol=1e-6, atol=1e-7), name


def test_the_coordinator_has_the_mean_and_nothing_else(tmp_path: Path) -> None:
    async def test(nodes: dict[str, MaskedNode], run: Run) -> None:
        for node in nodes.values():
            node.join()
        given = {name: await node.given() for name, node in nodes.items()}
        assert sorted(a.part_index for a in given.values()) == [0, 1, 2, 3]
        seen = []
        for name in ("a", "b", "c"):
            assert (await nodes[name].deliver(given[name])).accepted
            path = run.workshop.update_path(0, given[name].part_index)
            masking = given[name].masking
            assert masking is not None
            plain = nodes[name].plain(given[name])
            for what, tensor in load_tensors(path).items():
                words = to_words(plain[what].double().reshape(-1).numpy(), masking.share)
                assert not (tensor.reshape(-1).numpy().view(np.uint64) == words).any()
                seen.append(tensor.reshape(-1))
        # Uniform words: their mean lies within six deviations of the middle.
        spread = torch.cat(seen).double() / 2.0**64
        assert abs(float(spread.mean())) < 6 * (1 / (12 * len(spread))) ** 0.5
        assert (await nodes["d"].deliver(given["d"])).accepted
        means.update(mean_of(list(nodes.values()), given))

    means: Tensors = {}
    with opened(tmp_path, TOML) as run:
        summary = asyncio.run(served(run, tmp_path, test))
        assert summary.state == "finished"
        assert_base(run, means)
        assert run.store.fact("unmasking") is None
        assert missing(run) == ()


def test_a_node_that_dies_with_its_masks_on_the_others_is_left_out(tmp_path: Path) -> None:
    async def test(nodes: dict[str, MaskedNode], run: Run) -> None:
        for node in nodes.values():
            node.join()
        given = {name: await node.given() for name, node in nodes.items()}
        nodes["b"].leave()
        for name in ("a", "c", "d"):
            assert (await nodes[name].deliver(given[name])).accepted
        means.update(mean_of([nodes[name] for name in ("a", "c", "d")], given))

    means: Tensors = {}
    with opened(tmp_path, TOML) as run:
        asyncio.run(served(run, tmp_path, test))
        assert_base(run, means)
        assert len(missing(run)) == 1


def test_where_too_few_are_left_the_round_is_opened_again_with_other_masks(tmp_path: Path) -> None:
    async def test(nodes: dict[str, MaskedNode], run: Run) -> None:
        for node in nodes.values():
            node.join()
        given = {name: await node.given() for name, node in nodes.items()}
        assert (await nodes["a"].deliver(given["a"])).accepted
        for name in ("c", "d"):
            nodes[name].leave()
        failed = control.failed(given["b"].id, "out of memory")
        nodes["b"].hand.outbox.put_nowait(failed)
        while nodes["a"].assignments.empty():  # c is back as soon as nobody waits for it any more
            await asyncio.sleep(0.5)
            nodes["c"].leave()
            nodes["c"].join()
        again = {name: await nodes[name].given() for name in ("a", "b", "c")}
        assert again["a"].masking != given["a"].masking
        offer = pb.OfferRequest(node="a", update=wire.update_to_wire(stale_update(given["a"])))
        assert (await nodes["a"].hand.push(offer, [])).reason == (
            "its masks are not those of this round"
        )
        for name, assignment in again.items():
            assert (await nodes[name].deliver(assignment)).accepted
        means.update(mean_of([nodes[name] for name in again], again))

    means: Tensors = {}
    with opened(tmp_path, TOML) as run:
        asyncio.run(served(run, tmp_path, test))
        assert_base(run, means)
        assert len(missing(run)) == 1


def stale_update(a: Assignment) -> Update:
    assert a.masking is not None
    assert a.start is not None
    return Update(
        a.id,
        a.round,
        a.part_index,
        a.start.digest,
        a.num_samples,
        loss=1,
        train_seconds=1,
        samples_per_second=1,
        peak_memory_bytes=1,
        blob=Blob("0" * 32, 8),
        session=a.masking.session,
    )


def plays_without(
    folder: Path, absent: str, change: Callable[[dict[str, MaskedNode]], None]
) -> None:
    """A round that goes on without one node, which is not as it should be."""

    async def test(nodes: dict[str, MaskedNode], run: Run) -> None:
        change(nodes)
        for node in nodes.values():
            node.join()
        given = {name: await nodes[name].given() for name in NAMES if name != absent}
        for name, assignment in given.items():
            assert (await nodes[name].deliver(assignment)).accepted
        means.update(mean_of([nodes[name] for name in given], given))

    means: Tensors = {}
    with opened(folder, TOML) as run:
        asyncio.run(served(run, folder, test))
        assert_base(run, means)
        assert len(missing(run)) == 1


def test_who_does_not_answer_is_not_waited_for_long(tmp_path: Path) -> None:
    def change(nodes: dict[str, MaskedNode]) -> None:
        nodes["a"].deaf.add("secure_keys")
        nodes["b"].deaf.add("secure_reveal")

    plays_without(tmp_path, "a", change)


def test_a_node_whose_keys_are_none_spoils_the_round_for_nobody_else(tmp_path: Path) -> None:
    def change(nodes: dict[str, MaskedNode]) -> None:
        nodes["d"].spoil = True

    plays_without(tmp_path, "d", change)


def test_a_node_that_keeps_leaving_half_made_sessions_holds_nobody_up(tmp_path: Path) -> None:
    def change(nodes: dict[str, MaskedNode]) -> None:
        nodes["a"].runs_away = 1000

    plays_without(tmp_path, "a", change)


def test_an_update_without_masks_is_refused(tmp_path: Path) -> None:
    async def test(nodes: dict[str, MaskedNode], run: Run) -> None:
        for node in nodes.values():
            node.join()
        given = {name: await node.given() for name, node in nodes.items()}
        assert given["a"].start is not None
        assert given["a"].masking is not None
        answer = await nodes["a"].hand.deliver(
            wire.assignment_to_wire(given["a"]),
            nodes["a"].plain(given["a"]),
            start_digest=given["a"].start.digest,
            session=given["a"].masking.session,
        )
        assert "is torch.float32, expected torch.int64" in answer.reason
        for name in ("b", "c", "d"):
            assert (await nodes[name].deliver(given[name])).accepted

    with opened(tmp_path, TOML) as run:
        asyncio.run(served(run, tmp_path, test))
        assert missing(run) == (given_part(run),)


def given_part(run: Run) -> int:
    """The part whose update was refused."""
    return next(part for _, kind, _, part, _ in run.store.events() if kind == "refused:dtype")


@pytest.mark.parametrize("damaged", [False, True])
def test_once_the_masks_can_be_taken_off_a_restart_needs_no_node_but_for_what_is_damaged(
    tmp_path: Path, damaged: bool
) -> None:
    async def first(nodes: dict[str, MaskedNode], run: Run) -> None:
        for node in nodes.values():
            node.join()
        given = {name: await node.given() for name, node in nodes.items()}
        means.update(mean_of(list(nodes.values()), given))
        # A folder where the merged base is to be written: the merge fails as on a full disk.
        block = run.store.base_path("base-00001.safetensors")
        block.mkdir()
        for name, assignment in given.items():
            assert (await nodes[name].deliver(assignment)).accepted

    async def second(nodes: dict[str, MaskedNode], run: Run) -> None:
        for node in nodes.values():
            node.join()
        if damaged:
            for node in nodes.values():
                assert (await node.deliver(await node.given())).accepted

    means: Tensors = {}
    with opened(tmp_path, TOML) as run:
        summary = asyncio.run(served(run, tmp_path, first))
        assert summary.state == "failed"
        assert run.store.fact("unmasking")["round"] == 0
        folder = run.folder
        if damaged:
            run.workshop.update_path(0, 2).write_bytes(b"damaged")
    (folder / "bases" / "base-00001.safetensors").rmdir()
    (folder / "config.toml").write_text(TOML.format(folder=tmp_path))
    config, store = open_run(folder)
    try:
        run = Run(config, store, RunClock(1e9))
        run.prepare()
        summary = asyncio.run(served(run, tmp_path, second))
        assert summary.state == "finished"
        assert_base(run, means)
    finally:
        store.close()
