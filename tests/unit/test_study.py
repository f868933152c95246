"""A study without a network: its models start, train and are judged as its config says."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from partsum.coordinator import events as e
from partsum.coordinator.clock import RunClock
from partsum.coordinator.cohort import Change
from partsum.coordinator.folder import new_run, open_run, unfinished_run
from partsum.coordinator.planner.sweep import cells
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.relevance.scores import magnitude_scores
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.run import Run
from partsum.coordinator.study.config import study_run
from partsum.coordinator.study.cutter import StudyCutter, studied
from partsum.coordinator.study.estimate import estimates
from partsum.coordinator.study.results import Row, csv_text, from_json
from partsum.coordinator.study_command import rows_of
from partsum.coordinator.terms import assignment, round_settings
from partsum.node.trainer import Job, train
from partsum.shared.config import parse_config
from partsum.shared.errors import ConfigError, StateError, UpdateRefusedError, WidthError
from partsum.shared.part import WHOLE, cut_tensors
from partsum.shared.task import num_samples
from partsum.shared.tensors import load_tensors, save_tensors
from partsum.shared.width import WidthGroup, Widths

CONFIG = """
name = "tiny"
seed = 5
folder = "{folder}"
task = {{ name = "partsum.shared.tasks:digits", options = {{ widths = [12, 8] }} }}
training = {{ batch_size = 32, learning_rate = 1e-2 }}
[study]
keep = [0.5, 1.0]
selections = ["strong", "weak"]
data = [0.2, 1.0]
starts = [{starts}]
epochs = 0.2
base_epochs = 0.5
{study}
"""


STARTS = '"scratch", "rewound", "tuned"'


@contextmanager
def opened(folder: Path, study: str = 'depth = "all"\n', starts: str = STARTS) -> Iterator[Run]:
    given = parse_config(CONFIG.format(folder=folder, study=study, starts=starts))
    text = study_run(given, folder / "study.toml")
    config = parse_config(text)
    found = unfinished_run(config)
    config, store = open_run(found) if found else (config, new_run(config, text, 1e9))
    with closing(store):
        run = Run(config, store, RunClock(1e9, store.seconds()))
        run.prepare()
        yield run


def open_next(run: Run) -> tuple[RoundPlan, list[int]]:
    plan, _, done = asyncio.run(run.open_round(run.next_round, {}))
    return plan, done


def deliver(run: Run, plan: RoundPlan, k: int) -> None:
    """What a node makes of an assignment."""
    paths = run.workshop.cutter.blob_paths(plan)
    a = assignment(run.config, plan, k)
    raw = bytearray(paths[a.cluster.digest].read_bytes())
    output = run.store.spool_path(f"trained-{k}")
    start = paths[a.start.digest] if a.start else None
    job = Job(
        assignment=a,
        start=start,
        optimizer=None,
        cluster=torch.frombuffer(raw, dtype=torch.int64),
        samples=run.train,
        output=output,
        device=torch.device("cpu"),
    )
    update = train(run.task, job, lambda _: None, lambda: False).update
    run.workshop.inspector.check(output, plan, k)
    run.take_update("node", update, output, run.clock.now(), Change(1.0, 1, ""))


def close(run: Run, plan: RoundPlan, missing: tuple[int, ...] = ()) -> None:
    asyncio.run(run.close_round(plan, missing))


def carry_out(run: Run, leave_out: tuple[int, ...] = ()) -> list[Row]:
    """All rounds that are left; the rows."""
    while run.next_round < run.config.parts.rounds:
        plan, done = open_next(run)
        last = run.next_round + 1 == run.config.parts.rounds
        missing = leave_out if last else ()
        for k in set(range(len(plan.parts))) - set(done) - set(missing):
            deliver(run, plan, k)
        close(run, plan, missing)
    return from_json(run.store.fact("study"))


def without_times(rows: list[Row]) -> list[str]:
    return [line.rpartition(",")[0] for line in csv_text(rows).splitlines()]


def test_a_study_that_is_stopped_in_its_sweep_goes_on_to_the_same_figures(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "calm") as run:
        calm = carry_out(run)
    with opened(tmp_path / "stopped") as run:
        plan, _ = open_next(run)
        deliver(run, plan, 0)
        close(run, plan)
        plan, _ = open_next(run)
        for k in (0, 4):
            deliver(run, plan, k)
    with opened(tmp_path / "stopped") as run:
        plan, done = open_next(run)
        assert done == [0, 4]
        stopped = carry_out(run)
    assert without_times(stopped) == without_times(calm)
    assert [row.start for row in calm].count("base") == 1
    assert all(row.accuracy is not None for row in calm)
    assert all((tmp_path / "calm" / "latest" / row.model).is_file() for row in calm)


def test_what_a_model_starts_from_is_what_its_row_says(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        cutter = run.workshop.cutter
        assert isinstance(cutter, StudyCutter)
        plan, _ = open_next(run)
        assert [part.part for part in plan.parts] == [WHOLE]
        fresh = run.base.fresh_part(WHOLE, plan.parts[0].seed)
        deliver(run, plan, 0)
        close(run, plan)
        plan, _ = open_next(run)
        base, paths = load_tensors(run.store.part_path(0, 0)), cutter.origin_paths(plan)
        scores = magnitude_scores(run.base.model(run.store.part_path(0, 0)), run.base.widths)
        for k, (cell, planned) in enumerate(zip(cutter.cells, plan.parts, strict=True)):
            if cell.start == "scratch":
                assert planned.start is None
                continue
            whole = base if cell.start == "tuned" else fresh
            cut = cut_tensors(whole, run.base.widths, planned.part)
            found = load_tensors(paths[k])
            assert all(torch.equal(found[name], cut[name]) for name in cut)
            for name, units in planned.part.units.items():
                others = set(range(len(scores[name]))) - set(units)
                kept = scores[name][list(units)]
                left = scores[name][sorted(others)]
                assert (kept.min() >= left.max()) == (cell.selection == "strong")


def test_all_models_are_trained_on_as_many_samples_and_see_what_their_row_says(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as run:
        cutter = run.workshop.cutter
        assert isinstance(cutter, StudyCutter)
        plan, _ = open_next(run)
        total = num_samples(run.train)
        assert plan.parts[0].num_samples == round(0.5 * total)
        deliver(run, plan, 0)
        close(run, plan)
        plan, _ = open_next(run)
        assert {part.num_samples for part in plan.parts} == {round(0.2 * total)}
        seen = {}
        for k, (cell, planned) in enumerate(zip(cutter.cells, plan.parts, strict=True)):
            path = cutter.blob_paths(plan)[planned.cluster.digest]
            indices = np.frombuffer(path.read_bytes(), dtype="<i8")
            assert len(indices) == round(cell.data * total)
            assert len(np.unique(indices)) == len(indices)
            samples, blob = cutter.cluster_samples(plan.round, k)
            assert len(load_tensors(samples)["targets"]) == len(indices)
            assert blob.size_bytes == samples.stat().st_size
            seen[cell.data] = set(indices.tolist())
        assert seen[0.2] < seen[1.0]


def test_a_model_that_failed_everywhere_is_a_row_without_figures(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        rows = carry_out(run, leave_out=(2,))
    failed = [row for row in rows if row.accuracy is None]
    assert len(failed) == 1
    assert failed[0].parameters > 0
    assert (failed[0].model, failed[0].train_seconds) == ("", None)


def test_a_model_that_cannot_be_evaluated_is_refused_so_that_its_node_does_not_send_it_for_ever(
    tmp_path: Path,
) -> None:
    with opened(tmp_path, starts='"scratch"') as run:
        plan, _ = open_next(run)
        deliver(run, plan, 0)
        path = run.workshop.update_path(plan.round, 0)

        def refuse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            raise ValueError("only one class is there")

        run.base.task = dataclasses.replace(run.task, metrics={"roc": refuse})
        with pytest.raises(UpdateRefusedError, match="ValueError: only one class is there"):
            run.workshop.check_update(path, plan, 0)


def test_a_part_that_failed_on_every_node_is_left_out_and_the_rest_goes_on() -> None:
    config = parse_config(study_run(parse_config("[study]\nkeep = [1.0]\n"), Path("s.toml")))
    machine = RoundMachine(round_settings(config), 1, 0.0)
    for node in ("a", "b"):
        machine.handle(e.NodeReady(node), 0.0)
    assert machine.handle(e.Planned(["", ""]), 0.0).actions == (e.Assign("a", 0), e.Assign("b", 1))
    assert machine.handle(e.JobFailed("a", 0, "nan"), 1.0).actions == ()  # b may still make it
    assert machine.handle(e.UpdateIn("b", 1), 2.0).actions == (e.Assign("b", 0),)
    assert machine.handle(e.JobFailed("b", 0, "nan"), 3.0).actions == (e.Merge((0,)),)


def test_a_base_that_is_given_is_taken_as_it_is(tmp_path: Path) -> None:
    with opened(tmp_path / "first") as run:
        plan, _ = open_next(run)
        deliver(run, plan, 0)
        given = run.workshop.update_path(0, 0)
        given.rename(tmp_path / "base.safetensors")
    study = f'base = "{tmp_path}/base.safetensors"\n'
    with opened(tmp_path / "second", study, '"scratch", "tuned"') as run:
        rows = carry_out(run)
    assert rows[0].start == "base"
    assert (rows[0].samples, rows[0].train_seconds) == (0, None)
    whole = [row for row in rows if row.start == "tuned" and row.keep == 1]
    assert {row.cut_accuracy for row in whole} == {rows[0].accuracy}


def test_a_base_of_another_model_is_refused_in_words(tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.safetensors", {"other": torch.zeros(1)})
    study = f'base = "{tmp_path}/other.safetensors"\n'
    with (
        pytest.raises(ConfigError, match=r"does not fit: only the model has 'head\.bias'"),
        opened(tmp_path, study, '"tuned"'),
    ):
        pass


def test_a_study_whose_parts_were_counted_by_hand_is_refused_in_words(tmp_path: Path) -> None:
    text = study_run(parse_config(f'folder = "{tmp_path}"\n'), tmp_path)
    config = parse_config(text.replace("count = 17", "count = 4"))
    with (
        closing(new_run(config, text, 1e9)) as store,
        pytest.raises(ConfigError, match=r"parts\.count is 4, but \[study\] has 17 cells"),
    ):
        Run(config, store, RunClock(1e9))


def test_each_score_picks_units_of_its_own(tmp_path: Path) -> None:
    strong = set()
    for score in ("magnitude", "taylor", "activation"):
        with opened(tmp_path / score, f'depth = "all"\nscores = "{score}"') as run:
            plan, _ = open_next(run)
            deliver(run, plan, 0)
            close(run, plan)
            plan, _ = open_next(run)
            strong |= {
                planned.part
                for cell, planned in zip(cells(run.config.study), plan.parts, strict=True)
                if cell.selection == "strong"
            }
    assert len(strong) == 3


def test_the_residual_stream_stays_whole_where_hidden_groups_alone_are_cut(tmp_path: Path) -> None:
    with opened(tmp_path, "", '"scratch"') as run:
        plan, _ = open_next(run)
        assert {tuple(planned.part.units) for planned in plan.parts} == {(), ("linear1",)}


def test_a_model_without_hidden_groups_is_refused_where_they_are_to_be_cut() -> None:
    group = WidthGroup("stream", 4, "stream", ())
    assert studied(Widths((group,)), "all").groups == (group,)
    with pytest.raises(WidthError, match="no hidden width groups"):
        studied(Widths((group,)), "hidden")


def test_a_dry_run_counts_each_widths_cost_and_times_a_few_steps(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        ticks = count()
        found = estimates(run.config, run.base, run.train, lambda: float(next(ticks)))
    assert set(found) == {0.5, 1.0}
    assert found[0.5].parameters < found[1.0].parameters
    assert found[0.5].flops < found[1.0].flops
    assert found[1.0].seconds == pytest.approx(round(0.2 * 1437) / 32)  # of one second a step


def test_a_run_that_is_no_study_has_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="holds no study"):
        rows_of(tmp_path)
