"""Real nodes that go on training while their updates travel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from partsum.coordinator.clock import RunClock
from partsum.coordinator.folder import new_run
from partsum.coordinator.run import Run
from partsum.coordinator.terms import assignment
from partsum.node.trainer import Job, Trained, train
from partsum.shared.config import parse_config

if TYPE_CHECKING:
    from tests.cluster import Cluster

Make = Callable[..., "Cluster"]
ROUNDS = 5


async def calm_weights(text: str, folder: Path) -> bytes:
    """The last base of a run of mode block whose nodes wait for each assignment."""
    text = f'folder = "{folder}"\n{text}'
    config = parse_config(text)
    with closing(new_run(config, text, 1e9)) as store:
        run = Run(config, store, RunClock(1e9))
        run.prepare()
        before: dict[int, Trained] = {}
        for round in range(ROUNDS):
            plan, _, _ = await run.open_round(round, {})
            blobs = run.workshop.cutter.blob_paths(plan)
            for part in range(len(plan.parts)):
                given = assignment(config, plan, part)
                job = Job(
                    assignment=given,
                    start=before[part].path if round else None,
                    optimizer=before[part].optimizer if round else None,
                    cluster=torch.from_numpy(np.fromfile(blobs[given.cluster.digest], "<i8")),
                    samples=run.train,
                    output=folder / given.id,
                    device=torch.device("cpu"),
                )
                found = before[part] = train(run.task, job, lambda progress: None, lambda: False)
                assert found.path is not None
                copy = store.spool_path(given.id)
                copy.write_bytes(found.path.read_bytes())
                change = run.workshop.inspector.check(copy, plan, part)
                run.take_update("calm", found.update, copy, run.clock.now(), change)
            await run.close_round(plan, ())
        return max(store.folder.glob("bases/base-*")).read_bytes()


def test_nodes_that_go_ahead_in_mode_block_make_the_bytes_of_nodes_that_wait(
    make_cluster: Make, tmp_path: Path
) -> None:
    cluster = make_cluster(rounds=ROUNDS, local_epochs=3.0)
    text = (cluster.folder / "run.toml").read_text()
    ahead = text.replace("[training]\n", "[training]\nahead = true\n")
    (cluster.folder / "run.toml").write_text(ahead)
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)
    expected = asyncio.run(calm_weights(text, tmp_path))
    assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
    said = sum(cluster.log(name).count("were done ahead") for name in ("a", "b"))
    assert 0 < said <= 2 * (ROUNDS - 1)  # nobody is ahead of the first round
    assert cluster.weights() == expected
