"""A coordinator that asks for int8, and nodes that send other things, or die in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch
from tests.hand_node import TOML, HandNode, joined, with_node

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire
from partsum.shared.encoded import Encoded, file_shapes, restore, write_encoded
from partsum.shared.errors import WireError
from partsum.shared.files import file_digest
from partsum.shared.moments import part_digest
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors

if TYPE_CHECKING:
    from tests.cluster import Cluster

Make = Callable[..., "Cluster"]

INT8 = TOML.replace("count = 1", "planner = 'full', count = 1") + 'wire = {{ up = "int8" }}\n'


class Sender(HandNode):
    """Sends updates in int8, right ones or spoiled ones."""

    async def start(self, given: pb.Assignment) -> Path:
        request = pb.PullRequest(node=self.name, digest=given.start.digest)
        data = b"".join([response.chunk.data async for response in self.stub.Pull(request)])
        path = self.folder / "start"
        path.write_bytes(data)
        return path

    async def send(
        self, given: pb.Assignment, spoil: Callable[[Path], None] | None = None, **changes: Any
    ) -> pb.PushResponse:
        """A change of 0.01 in every number; what ``spoil`` does to its file is digested."""
        path, sent, plain = await self.start(given), self.folder / "sent", self.folder / "plain"
        against, part = given.start.digest, wire.part_from_wire(given.part)
        with TensorFile(path) as start:
            shapes = file_shapes(start)

            def change(name: str) -> torch.Tensor:
                value = start.read(name)
                return torch.full_like(value, 0.01) if value.dim() > 1 else value

            write_encoded(sent, shapes, "int8", against, change)
            with Encoded(sent, shapes, "int8", against) as encoded:
                restore(encoded, start.read, plain, {"part": part_digest(part)})
        if spoil is not None:
            spoil(sent)
        offer, _ = self.offer(given, {}, start_digest=against)
        update = offer.update
        update.blob.CopyFrom(blob_of(plain))
        update.encoded.CopyFrom(blob_of(sent))
        update.encoding = changes.get("encoding", pb.ENCODING_INT8)
        return await self.push(offer, [wire.chunk_to_wire(0, sent.read_bytes())])


def blob_of(path: Path) -> pb.Blob:
    return pb.Blob(digest=file_digest(path), size_bytes=path.stat().st_size)


def spoiled(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Puts something else in place of the first matrix."""

    def spoil(sent: Path) -> None:
        tensors = load_tensors(sent)
        name = min(n for n, t in tensors.items() if t.dtype == torch.int8)
        with TensorFile(sent) as file:
            metadata = file.metadata
        save_tensors(sent, {**tensors, name: value(tensors[name])}, metadata, durable=False)

    return spoil


def with_nan(row: torch.Tensor) -> torch.Tensor:
    return torch.cat([row[:-4], torch.tensor([math.nan]).view(torch.int8)])


def test_bad_encodings_are_refused_with_the_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    async def test(hand: HandNode) -> None:
        hand.hello()
        refused = await hand.heard("refused")
        assert "travel as int8, which this node does not know" in refused.reason
        assert not refused.retry
        node = Sender(hand.stub, hand.folder, "new")
        node.hello(encodings=wire.ENCODINGS)
        await node.heard("welcome")
        node.ready()
        bad = {
            "scale that is negative, too large or not a number": spoiled(with_nan),
            "expected torch.int8 of shape": spoiled(lambda row: row[:-4]),
            "is torch.float32": spoiled(lambda row: row.float()),
            "it decodes to": spoiled(lambda row: torch.cat([-row[:-4], row[-4:]])),
            "is not a safetensors file": lambda sent: sent.write_bytes(b"not tensors") and None,
        }
        for said, spoil in bad.items():
            given = await node.heard("assignment")
            assert given.settings.encoding == pb.ENCODING_INT8
            answer = await node.send(given, spoil)
            assert not answer.accepted
            assert said in answer.reason, answer.reason
        given = await node.heard("assignment")
        with pytest.raises(grpc.aio.AioRpcError, match="does not know encoding 9"):
            await node.send(given, encoding=9)
        assert (await node.send(given)).accepted

    summary = with_node(tmp_path, test, INT8)
    assert summary is not None
    assert summary.state == "finished"


def test_an_assignment_in_an_encoding_of_the_future_names_it(tmp_path: Path) -> None:
    async def test(hand: HandNode) -> None:
        given = await joined(hand)
        given.settings.encoding = 12  # type: ignore[assignment]
        with pytest.raises(WireError, match="this version does not know encoding 12"):
            wire.assignment_from_wire(given)

    with_node(tmp_path, test)


@pytest.mark.timeout(240)
def test_a_node_that_is_killed_in_an_int8_run_ends_with_the_same_bytes(
    make_cluster: Make,
) -> None:
    def play(name: str, hurt: bool) -> Cluster:
        cluster = make_cluster(
            name,
            rounds=4,
            local_epochs=8.0,
            parts='planner = "full"',
            rounds_section="min_nodes = 1\nreturn_seconds = 100.0",
            more='[wire]\nup = "int8"\ndown = "int8"',
        )
        cluster.coordinator()
        cluster.node("a")  # both parts are its own
        if hurt:
            cluster.until("a", "accepted", times=3)
            cluster.kill("a")
            cluster.node("a")
        assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
        return cluster

    calm, hurt = play("calm", False), play("hurt", True)
    assert hurt.weights() == calm.weights()
    parts: Any = calm.summary()["phases"]
    base = (calm.run / "bases" / "base-00004.safetensors").stat().st_size
    assert parts[0]["bytes_received"] < 0.5 * base * 8, "eight updates"
