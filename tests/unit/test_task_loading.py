"""A task is found by its name, or the user is told why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from partsum.shared.errors import DataError, PartsumError, TaskError
from partsum.shared.messages import TaskSpec
from partsum.shared.task import data_digest, load_samples, load_task, task_digest, walk

SOURCE = """
from partsum.shared.errors import DataError
from partsum.shared.task import Task

limit = 3

def good(size: int = 4, name: str = "x") -> Task:
    return Task(None, None, None, None)

def declared_in_full() -> "partsum.shared.task.Task":
    return good()

def not_a_task() -> Task:
    return 5

def fails() -> Task:
    raise ZeroDivisionError("of course")

def fails_in_words() -> Task:
    raise DataError("no data here; fetch it")

def undeclared(word: str = ""):
    raise SystemExit("it was called")

def of_another_kind(word: str = "") -> None:
    raise SystemExit("it was called")

class Maker:
    def __init__(self) -> None:
        raise SystemExit("it was called")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a module of tasks, and modules that cannot be imported."""
    (tmp_path / "tasks_of_mine.py").write_text(SOURCE)
    (tmp_path / "tasks_broken.py").write_text("def oops(:\n")
    (tmp_path / "tasks_raising.py").write_text("raise RuntimeError('not today')\n")
    (tmp_path / "tasks_leaving.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "tasks_importing.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("tasks_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("here")
def test_a_task_is_loaded_with_its_options() -> None:
    load_task(TaskSpec("tasks_of_mine:good"))
    load_task(TaskSpec("tasks_of_mine:declared_in_full"))
    load_task(TaskSpec("tasks_of_mine:good", {"size": 5, "name": "y"}))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "not of the form package.module:function"),
        ("tasks_of_mine", "not of the form"),
        (":good", "not of the form"),
        ("tasks_of_mine:", "not of the form"),
        ("tasks_of_yours:good", "'tasks_of_yours': ModuleNotFoundError.*must be installed"),
        ("tasks_importing:good", "surely_not_installed"),
        ("tasks_broken:oops", "'tasks_broken': SyntaxError"),
        ("tasks_raising:oops", "'tasks_raising': RuntimeError: not today"),
        (".tasks_of_mine:good", "not of the form"),
        ("tasks_leaving:oops", "'tasks_leaving': SystemExit: 3"),
        ("../tasks_of_mine:good", "not of the form"),
        ("/etc/passwd:good", "not of the form"),
        ("tasks_of_mine:good.__globals__", "not of the form"),
        ("tasks_of_mine:__builtins__", "not of the form"),
        ("unittest.__main__:main", "not of the form"),
        ("tasks_of_mine:good\n", "not of the form"),
        ("os:system", "os is a module of Python's own library"),
        ("idlelib.idle:main", "idlelib is a module of Python's own library"),
        ("tasks_of_mine:undeclared", "not declared as a task, so it is not called"),
        ("tasks_of_mine:of_another_kind", "not declared as a task, so it is not called"),
        ("tasks_of_mine:Maker", "not declared as a task, so it is not called"),
        ("torch:compile", "not declared as a task, so it is not called"),
        ("partsum.shared.files:write_file", "not declared as a task, so it is not called"),
        ("tasks_of_mine:goood", "has no function 'goood'; it has .*good"),
        ("tasks_of_mine:limit", "has no function 'limit'"),
        ("tasks_of_mine:not_a_task", "returned int; it must return a partsum.shared.task.Task"),
        ("tasks_of_mine:fails", "failed: ZeroDivisionError: of course"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_an_error_in_words(name: str, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        load_task(TaskSpec(name))


@pytest.mark.usefixtures("here")
def test_an_error_in_words_from_a_task_is_passed_on_as_it_is() -> None:
    with pytest.raises(DataError, match=r"^no data here; fetch it$"):
        load_task(TaskSpec("tasks_of_mine:fails_in_words"))


@pytest.mark.usefixtures("here")
def test_options_that_do_not_fit_are_refused_with_those_that_do() -> None:
    with pytest.raises(TaskError, match=r"'sise'.*good\(size: int = 4"):
        load_task(TaskSpec("tasks_of_mine:good", {"sise": 5}))


def test_a_tasks_digest_follows_its_name_options_and_source(here: Path) -> None:
    spec = TaskSpec("tasks_of_mine:good", {"size": 5, "name": "y"})
    digest = task_digest(spec)
    assert task_digest(TaskSpec(spec.name, {"name": "y", "size": 5})) == digest
    assert task_digest(TaskSpec(spec.name, {"size": 6})) != digest
    assert task_digest(TaskSpec("tasks_of_mine:fails", spec.options)) != digest
    (here / "tasks_of_mine.py").write_text(SOURCE + "\nchanged = True\n")
    del sys.modules["tasks_of_mine"]
    assert task_digest(spec) != digest


class Squares(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, size: int, last: int = 0) -> None:
        self.size, self.last = size, last

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        extra = self.last if index == self.size - 1 else 0
        return torch.tensor([float(index)]), index**2 % 97 + extra


def test_a_data_sets_digest_follows_its_values_its_types_and_its_size() -> None:
    inputs, targets = torch.ones(5, 2), torch.arange(5)
    digest = data_digest(TensorDataset(inputs, targets))
    assert data_digest(TensorDataset(inputs.clone(), targets.clone())) == digest
    changed = inputs.clone()
    changed[3, 1] = 2
    others = [
        TensorDataset(changed, targets),
        TensorDataset(inputs, targets.int()),
        TensorDataset(inputs[:4], targets[:4]),
        TensorDataset(inputs.view(5, 2, 1), targets),
    ]
    assert len({digest, *(data_digest(other) for other in others)}) == 5


def test_any_map_style_data_set_has_a_digest_and_a_huge_one_too() -> None:
    assert data_digest(Squares(100)) == data_digest(Squares(100))
    assert data_digest(Squares(100)) != data_digest(Squares(101))
    assert data_digest(Squares(100)) != data_digest(Squares(100, last=1))
    data_digest(Squares(1))
    data_digest(Squares(33_554_436))  # its last index is no float32


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield 1


def test_data_that_is_missing_empty_or_endless_is_an_error_in_words() -> None:
    def missing() -> TensorDataset:
        raise FileNotFoundError("/data/train.idx")

    with pytest.raises(DataError, match=r"training data is not on this machine: /data/train.idx"):
        load_samples(missing, "training")
    with pytest.raises(DataError, match="validation data set is empty"):
        load_samples(lambda: TensorDataset(torch.ones(0, 2), torch.ones(0)), "validation")
    with pytest.raises(DataError, match="has no length"):
        load_samples(Endless, "training")
    assert issubclass(DataError, PartsumError)


def test_a_walk_that_is_cut_anywhere_goes_on_where_it_was() -> None:
    cluster = torch.arange(10, 17)
    whole = torch.cat(list(walk(3, cluster, 0, 40, 6)))
    pieces = [torch.cat(list(walk(3, cluster, at, 8, 3))) for at in range(0, 40, 8)]
    assert torch.equal(whole, torch.cat(pieces))
    for epoch in torch.split(whole[:35], 7):
        assert epoch.sort().values.equal(cluster)
    assert not whole[:7].equal(whole[7:14])
    assert list(walk(3, cluster, 5, 0, 4)) == []
