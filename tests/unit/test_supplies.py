"""What an assignment needs, found on the node's disk: no network, and no worker, is asked."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from partsum.node.blobs import BlobCache
from partsum.node.client import Client
from partsum.node.orders import Train
from partsum.node.process import WorkerProcess
from partsum.node.state import Finished, NodeState
from partsum.node.supplies import Supplies
from partsum.shared.files import file_digest
from partsum.shared.messages import Assignment, Blob, Part, TrainSettings, Update

SETTINGS = TrainSettings(
    batch_size=8,
    learning_rate=1e-3,
    width_lr_power=0.5,
    weight_decay=0.0,
    betas=(0.9, 0.99),
    gradient_clip=0.0,
    warmup=0.0,
    precision="float32",
    aggregate="weights",
    deterministic=True,
    encoding="int8",
)


def given(round: int, start: Blob, cluster: Blob) -> Assignment:
    return Assignment(
        id=f"r{round}-p0",
        round=round,
        part_index=0,
        part=Part({}),
        seed=1,
        start=start,
        cluster=cluster,
        samples=None,
        first_sample=0,
        num_samples=8,
        progress=(0.0, 0.1),
        settings=SETTINGS,
    )


class Disk:
    """A node's folder, in one of its lives."""

    def __init__(self, folder: Path) -> None:
        self.state = NodeState(folder)
        self.blobs = BlobCache(self.state.blobs, 1 << 20)
        worker = WorkerProcess(print, random.Random(1))
        self.supplies = Supplies(Client("nowhere:1", "n"), worker, self.state, self.blobs, _never)

    def put(self, data: bytes, residual: bytes = b"") -> Blob:
        file, beside = self.blobs.folder / "new", self.blobs.folder / "beside"
        file.write_bytes(data)
        if residual:
            beside.write_bytes(residual)
        blob = Blob(file_digest(file), len(data))
        self.blobs.add(file, blob.digest, residual=beside if residual else None)
        return blob

    def order(self, assignment: Assignment) -> Train:
        return asyncio.run(self.supplies.order(assignment))


async def _never(transfer: Callable[[], Awaitable[Path]]) -> Path:
    raise AssertionError("all is here already")


def finished(round: int, blob: Blob) -> Finished:
    return Finished(
        "key", Update(f"r{round}-p0", round, 0, "", 8, 1.0, 1.0, 1.0, 1, blob, "", blob)
    )


def test_what_an_encoding_lost_is_found_again_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing((first := Disk(tmp_path)).state):
        update = first.put(b"an update", residual=b"what was lost")
        base, cluster = first.put(b"the base"), first.put(b"12345678")
        first.state.finish(finished(4, update))
    with closing((second := Disk(tmp_path)).state), caplog.at_level(logging.WARNING):
        # The base is new each round: the last update of the part says whose residual it is.
        order = second.order(given(5, base, cluster))
        assert order.residual is not None
        assert order.residual.read_bytes() == b"what was lost"
        # In mode block the start is that update.
        assert second.order(given(9, update, cluster)).residual == order.residual
        assert not caplog.messages
        for _ in range(2):  # another node has trained the part since
            assert second.order(given(7, base, cluster)).residual is None
        assert [text for text in caplog.messages if "lost" in text] == caplog.messages
        assert len(caplog.messages) == 1, "it is said once"


def test_in_float32_nothing_is_lost_or_looked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing((disk := Disk(tmp_path)).state), caplog.at_level(logging.WARNING):
        update, cluster = disk.put(b"an update", residual=b"lost"), disk.put(b"12345678")
        plain = dataclasses.replace(SETTINGS, encoding="float32")
        order = disk.order(dataclasses.replace(given(3, update, cluster), settings=plain))
        assert order.residual is None
        assert not caplog.messages


def test_moments_of_the_last_update_are_kept_only_where_the_assignment_says_so(
    tmp_path: Path,
) -> None:
    with closing(NodeState(tmp_path)) as state:
        blobs = BlobCache(state.blobs, 1 << 20)
        worker = WorkerProcess(print, random.Random(1))
        supplies = Supplies(Client("nowhere:1", "n"), worker, state, blobs, _never)

        def put(data: bytes, moments: bytes = b"") -> Blob:
            file, beside = blobs.folder / "new", blobs.folder / "beside"
            file.write_bytes(data)
            if moments:
                beside.write_bytes(moments)
            blob = Blob(file_digest(file), len(data))
            blobs.add(file, blob.digest, beside if moments else None)
            return blob

        cluster, start = put(b"cluster"), put(b"the mean of all")
        update = Update("r2-p0", 2, 0, "", 8, 0.5, 1.0, 8.0, 1, put(b"mine", b"moments"))
        state.finish(Finished("key", update))
        plain = given(3, start, cluster)
        kept = dataclasses.replace(plain, settings=dataclasses.replace(SETTINGS, keep_moments=True))
        assert asyncio.run(supplies.order(plain)).optimizer is None
        found = asyncio.run(supplies.order(kept)).optimizer
        assert found is not None
        assert found.read_bytes() == b"moments"
        for other in ({"round": 4}, {"part_index": 1}):
            order = asyncio.run(supplies.order(dataclasses.replace(kept, **other)))  # type: ignore[arg-type]
            assert order.optimizer is None


def test_moments_that_left_the_disk_for_what_was_fetched_are_not_promised(tmp_path: Path) -> None:
    async def fetch(transfer: Callable[[], Awaitable[Path]]) -> Path:
        file = tmp_path / "fetched"
        file.write_bytes(b"cluster!")
        return blobs.add(file, cluster.digest)

    with closing(NodeState(tmp_path / "node")) as state:
        blobs = BlobCache(state.blobs, 40)
        worker = WorkerProcess(print, random.Random(1))
        supplies = Supplies(Client("nowhere:1", "n"), worker, state, blobs, fetch)
        (tmp_path / "update").write_bytes(b"the last update")
        start = Blob(file_digest(tmp_path / "update"), 15)
        for name in ("moments", "lost"):
            (tmp_path / name).write_bytes(b"much of it")
        blobs.add(tmp_path / "update", start.digest, tmp_path / "moments", tmp_path / "lost")
        (tmp_path / "cluster").write_bytes(b"cluster!")
        cluster = Blob(file_digest(tmp_path / "cluster"), 8)
        keep = dataclasses.replace(SETTINGS, keep_moments=True)
        state.finish(finished(2, start))
        (tmp_path / "base").write_bytes(b"base")
        base = Blob(file_digest(tmp_path / "base"), 4)
        blobs.add(tmp_path / "base", base.digest)
        blobs.hold([base, cluster])
        a = dataclasses.replace(given(3, base, cluster), settings=keep)
        order = asyncio.run(supplies.order(a))
        for promised in (order.optimizer, order.residual):
            assert promised is None or promised.exists()
