"""A hand-off's rounds in a run's folder: cut, merged and scored, without a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch

from partsum.coordinator.clock import RunClock, Stages
from partsum.coordinator.cohort import Change
from partsum.coordinator.cutter import blob_of
from partsum.coordinator.folder import new_run
from partsum.coordinator.handoff_end import note_end, score_start, write_final
from partsum.coordinator.handoff_meter import HandoffMeter
from partsum.coordinator.metrics import Metrics
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.run import Run
from partsum.shared.config import parse_config
from partsum.shared.files import file_digest
from partsum.shared.messages import Progress, Update
from partsum.shared.tensors import load_tensors, save_tensors

Make = Callable[[str], Run]

TEXT = """
folder = "{folder}"
[task]
name = "partsum.shared.tasks:digits"
options = {{ widths = [16, 16] }}
[parts]
count = 2
rounds = 0
[handoff]
over = "nodes"
rounds = 2
epochs = 1.0
batch_size = 32
{section}
"""


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    """Opens a run with these keys under [handoff]."""
    with ExitStack() as opened:

        def make(section: str) -> Run:
            text = TEXT.format(folder=tmp_path, section=section)
            config = parse_config(text)
            store = opened.enter_context(closing(new_run(config, text, 1e9)))
            run = Run(config, store, RunClock(1e9))
            run.prepare()
            return run

        yield make


def plan_of(run: Run, round: int) -> RoundPlan:
    return run.workshop_of(round).cutter.plan_round(run.workplan({}), round)


def deliver(run: Run, plan: RoundPlan, part: int, samples: int, change: float) -> None:
    """An update that changed every floating-point weight by so much."""
    start = load_tensors(run.workshop_of(plan.round).cutter.origin_paths(plan)[part])
    moved = {n: t + change if t.is_floating_point() else t for n, t in start.items()}
    path = run.store.spool_path(f"came-{part}")
    save_tensors(path, moved)
    planned = plan.parts[part]
    assert planned.start is not None
    update = Update("", plan.round, part, planned.start.digest, samples, 0, 0, 0, 0, blob_of(path))
    run.take_update(f"node-{part}", update, path, 0.0, Change(1.0, 1, ""))


def commit(run: Run, plan: RoundPlan, missing: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    run.store.open_round(plan, 0.0)
    result, facts = run.workshop_of(plan.round).merge_round(plan, missing, Stages())
    run.store.commit_round(plan.round, result, 0.0, facts)
    run.next_round = plan.round + 1
    return load_tensors(run.store.base_path(result.base))


def test_apart_the_base_takes_nesterov_steps_along_the_mean_change(make_run: Make) -> None:
    run = make_run("outer_learning_rate = 0.5\nouter_momentum = 0.5")
    before = load_tensors(run.store.base_path("base-00000.safetensors"))["head.weight"]
    for round, expected in enumerate((0.5 * 1.5, 0.5 * (1 + 0.5 * 1.5))):
        plan = plan_of(run, round)
        for part, change in enumerate((0.5, 1.5)):
            deliver(run, plan, part, plan.parts[part].num_samples, change)
        after = commit(run, plan)["head.weight"]
        assert torch.allclose(after - before, torch.full_like(after, expected), atol=1e-5)
        before = after


def test_of_a_gang_rank_0_alone_counts_and_a_missing_rank_changes_nothing(make_run: Make) -> None:
    run = make_run('how = "together"')
    plan = plan_of(run, 0)
    assert len({(part.cluster, part.seed) for part in plan.parts}) == 1  # they walk together
    before = load_tensors(run.store.base_path("base-00000.safetensors"))["head.weight"]
    deliver(run, plan, 0, plan.parts[0].num_samples, 1.0)
    deliver(run, plan, 1, 0, 0.0)
    once = commit(run, plan)["head.weight"]
    assert torch.allclose(once - before, torch.ones_like(once), atol=1e-5)
    plan = plan_of(run, 1)
    deliver(run, plan, 0, plan.parts[0].num_samples, 1.0)
    twice = commit(run, plan, missing=(1,))["head.weight"]
    assert torch.allclose(twice - once, torch.ones_like(once), atol=1e-5)


@pytest.mark.parametrize("data", ["shuffled", "clusters"])
def test_nodes_apart_have_all_data_between_them_and_none_twice(make_run: Make, data: str) -> None:
    run = make_run(f'data = "{data}"')
    plan = plan_of(run, 0)
    cutter = run.workshop_of(0).cutter
    found = [np.fromfile(path, dtype="<i8") for path in cutter.cluster_paths()]
    assert len(found) == 2
    assert sorted(np.concatenate(found)) == list(range(1437))
    spoilt = cutter.cluster_paths()[1]
    spoilt.write_bytes(b"12345678")
    cutter.restore_starts(plan)
    assert file_digest(spoilt) == plan.parts[1].cluster.digest


def test_no_node_is_to_have_two_parts_of_the_next_round(make_run: Make) -> None:
    run = make_run("")
    plan = plan_of(run, 0)
    for part in (0, 1):
        deliver(run, plan, part, plan.parts[part].num_samples, 0.1)
    run.store.take_update("node-0", run.store.updates(0)[1].update, 0.0)
    commit(run, plan)
    assert [part.holder for part in plan_of(run, 1).parts] == ["node-0", ""]


def test_the_last_base_becomes_the_final_weights_with_its_scores(
    make_run: Make, tmp_path: Path
) -> None:
    run = make_run("")
    score_start(run)
    plan = plan_of(run, 0)
    for part in (0, 1):
        deliver(run, plan, part, plan.parts[part].num_samples, 0.0)
    base = commit(run, plan)
    final = tmp_path / "final.safetensors"
    note_end(run, final, write_final(run, final))
    assert all(torch.equal(tensor, base[name]) for name, tensor in load_tensors(final).items())
    noted = run.store.fact("handoff")
    assert noted["digest"] == file_digest(final)
    assert noted["start"]["loss"] == pytest.approx(noted["end"]["loss"], rel=1e-5)
    assert [step for step, _, _ in run.store.curve()] == [0]


def point(run: Run, step: int) -> dict[str, float | None]:
    return next(body for at, _, body in run.store.curve() if at == step)


def test_what_nodes_tell_on_the_way_replaces_no_point_that_was_scored(make_run: Make) -> None:
    run = make_run('how = "apart"')
    meter = HandoffMeter(run, Metrics())
    score_start(run)
    plan = plan_of(run, 0)
    assert plan.handoff is not None
    first, all_samples = plan.handoff.batch, plan.parts[0].num_samples
    meter.hear(plan, 0, Progress("r0-p0", first, 2.0, 100.0))  # half a step, of two nodes
    assert point(run, 0)["validation_loss"] is not None
    for part in range(2):
        deliver(run, plan, part, all_samples, 0.01)
        meter.hear(plan, part, Progress(f"r0-p{part}", all_samples, 2.0, 100.0))
    assert [at for at, _, _ in run.store.curve()] == [0]
    commit(run, plan)
    result, _, _ = run.store.results()[0]
    meter.committed(plan, result)
    scored = point(run, plan.handoff.count)
    assert (scored["loss"], scored["validation_loss"]) == (0.0, result.loss)


def test_what_a_gang_that_broke_told_counts_no_more(make_run: Make) -> None:
    run = make_run('how = "together"\nzero_stage = 2')
    meter, plan = HandoffMeter(run, Metrics()), plan_of(run, 0)
    for part in range(2):
        meter.hear(plan, part, Progress(f"r0-p{part}-g1", plan.parts[0].num_samples, 2.0, 1.0))
    meter.hear(plan, 0, Progress("r0-p0-g2", 0, 3.0, 1.0))
    assert run.handoff_progress is not None
    assert (run.handoff_progress.step, run.handoff_progress.loss) == (0, 3.0)


def test_a_round_says_what_the_one_before_began_with(make_run: Make) -> None:
    run = make_run('how = "apart"')
    plan = plan_of(run, 0)
    assert plan.handoff is not None
    assert plan.handoff.start_before == ""
    for part in range(2):
        deliver(run, plan, part, plan.parts[part].num_samples, 0.01)
    commit(run, plan)
    following, start = plan_of(run, 1), plan.parts[0].start
    assert following.handoff is not None
    assert start is not None
    assert following.handoff.start_before == start.digest
