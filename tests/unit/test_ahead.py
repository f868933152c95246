"""Training ahead: what is done before its assignment comes counts as if it had come first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.node.ahead import Ahead, following, put_right
from partsum.node.blobs import BlobCache
from partsum.node.trainer import Job, Trained, train
from partsum.shared.messages import Assignment, Blob, Part, Progress, TrainSettings
from partsum.shared.task import Samples, Task
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors

STEPS = 6  # of an assignment; its last batch is a short one
SETTINGS = TrainSettings(
    batch_size=16,
    learning_rate=1e-2,
    width_lr_power=0.5,
    weight_decay=0.01,
    betas=(0.9, 0.99),
    gradient_clip=1.0,
    warmup=0.01,
    precision="float32",
    aggregate="weights",
    deterministic=True,
)
FIRST = Assignment(
    id="r0-p1",
    round=0,
    part_index=1,
    part=Part({"0": tuple(range(8)), "3": tuple(range(8, 16))}),
    seed=7,
    start=None,
    cluster=Blob("0" * 32, 64 * 8),
    samples=None,
    first_sample=0,
    num_samples=90,
    progress=(0.0, 0.3),
    settings=SETTINGS,
    ahead_to=0.6,
)


def points() -> Samples:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 3, generator=generator)
    return TensorDataset(inputs, inputs.argmax(1))


def chain() -> nn.Module:
    layers = [nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 3))


def make_task(loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy) -> Task:
    return Task(model=chain, train=points, validation=points, loss=loss)


def job(folder: Path, a: Assignment, before: Trained | None = None) -> Job:
    """Where the assignment starts from an update, its moments are at hand."""
    return Job(
        assignment=a,
        start=before.path if before else None,
        optimizer=before.optimizer if before else None,
        cluster=torch.arange(64),
        samples=points(),
        output=folder / f"update-{a.round}-{len(list(folder.iterdir()))}",
        device=torch.device("cpu"),
    )


def second(before: Trained, **changes: Any) -> Assignment:
    a = dataclasses.replace(following(FIRST), id="r1-p1", start=before.update.blob)
    return dataclasses.replace(a, **changes)


def nothing(progress: Progress) -> None:
    """For who wants no progress."""


def never() -> bool:
    return False


def after(steps: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) >= steps


def begun(folder: Path, steps: int, a: Assignment = FIRST) -> tuple[Ahead, Trained]:
    """The first assignment, and so many steps beyond it."""
    ahead = Ahead()
    sent = ahead.train(make_task(), job(folder, a), nothing, never)
    ahead.go_on(after(steps))
    return ahead, sent


def files(trained: Trained) -> list[bytes]:
    assert trained.path is not None
    assert trained.optimizer is not None
    return [trained.path.read_bytes(), trained.optimizer.read_bytes()]


@pytest.mark.parametrize("steps", [0, 2, STEPS, STEPS + 5])
def test_from_what_was_sent_it_is_undisturbed_training_to_the_last_bit(
    tmp_path: Path, steps: int
) -> None:
    ahead, sent = begun(tmp_path, steps)
    found = ahead.train(make_task(), job(tmp_path, second(sent), sent), nothing, never)
    plain = train(make_task(), job(tmp_path, FIRST), nothing, never)
    expected = train(make_task(), job(tmp_path, second(plain), plain), nothing, never)
    assert files(sent) == files(plain)
    assert files(found) == files(expected)
    assert found.ahead == min(16 * steps, 90)
    assert found.update.num_samples == 90
    assert found.update.loss == pytest.approx(expected.update.loss)


def test_it_goes_on_in_as_many_stretches_as_it_is_left_alone_in(tmp_path: Path) -> None:
    ahead, sent = begun(tmp_path, 2)
    torch.rand(3)  # what else the process draws must not matter
    ahead.go_on(after(0))
    ahead.go_on(after(3))
    found = ahead.train(make_task(), job(tmp_path, second(sent), sent), nothing, never)
    expected = train(make_task(), job(tmp_path, second(sent), sent), nothing, never)
    assert found.ahead == 80
    assert files(found) == files(expected)


def test_from_another_start_only_what_was_done_ahead_is_added_to_it(tmp_path: Path) -> None:
    free = dataclasses.replace(FIRST, settings=dataclasses.replace(SETTINGS, deterministic=False))
    ahead, sent = begun(tmp_path, STEPS, free)
    assert sent.path is not None
    base = {name: t + 0.25 for name, t in load_tensors(sent.path).items()}
    path = tmp_path / "base"
    start = Blob(save_tensors(path, base, durable=False), path.stat().st_size)
    given = job(tmp_path, second(sent, start=start, settings=free.settings))
    found = ahead.train(make_task(), dataclasses.replace(given, start=path), nothing, never)
    undisturbed = train(make_task(), job(tmp_path, second(sent), sent), nothing, never)
    assert found.ahead == 90
    assert found.update.start_digest == start.digest
    assert found.path is not None
    assert undisturbed.path is not None
    wanted = load_tensors(undisturbed.path)
    for name, tensor in load_tensors(found.path).items():
        torch.testing.assert_close(tensor, wanted[name] + 0.25, rtol=0, atol=1e-6)


def test_an_update_that_leaves_the_disk_meanwhile_is_still_what_was_sent(tmp_path: Path) -> None:
    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 600), nn.ReLU(), nn.Linear(600, 600), nn.Linear(600, 3))

    task = Task(wide, points, points, nn.functional.cross_entropy)
    settings = dataclasses.replace(SETTINGS, deterministic=False)
    a = dataclasses.replace(FIRST, part=Part({}), settings=settings, num_samples=16)
    found = []
    for leaves in (False, True):
        cache = BlobCache(tmp_path / str(leaves), limit_bytes=0)
        ahead = Ahead()
        sent = ahead.train(task, job(cache.folder, a), nothing, never)
        ahead.go_on(never)
        assert sent.path is not None
        base = {name: t + 0.25 for name, t in load_tensors(sent.path).items()}
        path = tmp_path / "base"
        start = Blob(save_tensors(path, base, durable=False), path.stat().st_size)
        if leaves:
            cache.add(sent.path, sent.update.blob.digest)
            cache.hold([])
            for spare in cache.folder.glob("spare-*"):  # another blob is written over it
                with open(spare, "r+b") as file:
                    file.write(bytes(spare.stat().st_size))
        following_a = dataclasses.replace(following(a), start=start)
        given = dataclasses.replace(job(cache.folder, following_a), start=path)
        trained = ahead.train(task, given, nothing, never)
        assert trained.ahead == 16
        assert trained.path is not None
        found.append(load_tensors(trained.path))
        assert not (cache.folder / "sent").exists()
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_start_that_cannot_be_read_leaves_nothing_half_put_right(tmp_path: Path) -> None:
    free = dataclasses.replace(FIRST, settings=dataclasses.replace(SETTINGS, deterministic=False))
    ahead, sent = begun(tmp_path, 2, free)
    assert sent.path is not None
    base = {name: t + 0.25 for name, t in load_tensors(sent.path).items()}
    start = Blob(save_tensors(tmp_path / "base", base, durable=False), 1)
    given = job(tmp_path, second(sent, start=start, settings=free.settings), sent)
    cut = tmp_path / "cut"
    save_tensors(cut, {name: t for name, t in base.items() if name != "5.bias"}, durable=False)
    with pytest.raises(KeyError):  # after some of its tensors
        ahead.train(make_task(), dataclasses.replace(given, start=cut), nothing, never)
    ahead.go_on(after(1))
    given = dataclasses.replace(given, start=tmp_path / "base")
    found = ahead.train(make_task(), given, nothing, never)
    expected = train(make_task(), given, nothing, never)
    assert found.ahead == 0
    assert files(found) == files(expected)


def test_weights_and_counters_are_put_right_and_statistics_left(tmp_path: Path) -> None:
    def saved(name: str, weight: float, variance: float, count: int) -> TensorFile:
        norm = nn.BatchNorm1d(1)
        nn.init.constant_(norm.weight, weight)
        norm.get_buffer("running_var").fill_(variance)
        norm.get_buffer("num_batches_tracked").fill_(count)
        save_tensors(tmp_path / name, norm.state_dict(), durable=False)
        return TensorFile(tmp_path / name)

    here = nn.BatchNorm1d(1)  # it went on from 2.0 to 2.5, in four batches
    nn.init.constant_(here.weight, 2.5)
    here.get_buffer("running_var").fill_(0.5)
    here.get_buffer("num_batches_tracked").fill_(14)
    with saved("start", 3.0, 1.0, 30) as start, saved("sent", 2.0, 9.0, 10) as sent:
        put_right(here, start, sent)
    assert here.weight.item() == 3.5
    assert here.get_buffer("running_var").item() == 0.5
    assert here.get_buffer("num_batches_tracked").item() == 34


OTHER = Part({"0": tuple(range(8, 16)), "3": tuple(range(8, 16))})


@pytest.mark.parametrize(
    "changes",
    [
        {"part": OTHER, "part_index": 0},
        {"seed": 8},
        {"round": 2},
        {"cluster": Blob("1" * 32, 64 * 8)},
        {"first_sample": 180},
        {"num_samples": 45},
        {"progress": (0.3, 0.5)},
        {"settings": dataclasses.replace(SETTINGS, learning_rate=2e-2)},
        {"start": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_fit_the_next_assignment_is_thrown_away(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    ahead, sent = begun(tmp_path, 2)
    a = second(sent, **changes)
    before = None if a.start is None or a.part == OTHER else sent
    found = ahead.train(make_task(), job(tmp_path, a, before), nothing, never)
    expected = train(make_task(), job(tmp_path, a, before), nothing, never)
    assert found.ahead == 0
    assert files(found) == files(expected)


def test_a_deterministic_run_goes_on_only_from_what_was_sent(tmp_path: Path) -> None:
    ahead, sent = begun(tmp_path, 2)
    assert sent.path is not None
    path = tmp_path / "base"
    moved = {name: t + 0.25 for name, t in load_tensors(sent.path).items()}
    start = Blob(save_tensors(path, moved, durable=False), path.stat().st_size)
    given = dataclasses.replace(job(tmp_path, second(sent, start=start)), start=path)
    assert ahead.train(make_task(), given, nothing, never).ahead == 0


def test_progress_goes_on_from_what_is_done_and_counts_nothing_twice(tmp_path: Path) -> None:
    now = 0.0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal now
        now += 1.0  # a batch takes a second
        return nn.functional.cross_entropy(outputs, targets)

    ahead, task = Ahead(lambda: now), make_task(loss)
    sent = ahead.train(task, job(tmp_path, FIRST), nothing, never)
    now += 100
    ahead.go_on(after(2))
    now += 100
    seen: list[Progress] = []
    found = ahead.train(task, job(tmp_path, second(sent), sent), seen.append, never)
    assert [(p.assignment_id, p.samples_done) for p in seen] == [
        ("r1-p1", done) for done in (48, 64, 80, 90)
    ]
    assert (found.update.assignment_id, found.update.round) == ("r1-p1", 1)
    assert found.update.train_seconds == STEPS  # what nothing was trained in does not count
    assert found.update.samples_per_second == 90 / STEPS


def test_nobody_goes_ahead_of_the_last_assignment(tmp_path: Path) -> None:
    last = dataclasses.replace(FIRST, ahead_to=0.0)
    ahead, sent = begun(tmp_path, STEPS, last)
    found = ahead.train(make_task(), job(tmp_path, second(sent), sent), nothing, never)
    assert found.ahead == 0


def test_an_error_ahead_costs_only_what_was_done_ahead(tmp_path: Path) -> None:
    calls = itertools.count()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == STEPS + 2:
            raise RuntimeError("out of luck")
        return nn.functional.cross_entropy(outputs, targets)

    ahead, task = Ahead(), make_task(loss)
    sent = ahead.train(task, job(tmp_path, FIRST), nothing, never)
    with pytest.raises(RuntimeError, match="out of luck"):
        ahead.go_on(never)
    ahead.go_on(never)
    found = ahead.train(task, job(tmp_path, second(sent), sent), nothing, never)
    assert found.ahead == 0
    expected = train(make_task(), job(tmp_path, second(sent), sent), nothing, never)
    assert files(found) == files(expected)
