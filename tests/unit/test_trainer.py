from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.node.model import build_part
from partsum.node.optimizer import make_optimizer
from partsum.node.trainer import Job, StoppedError, Trained, train
from partsum.shared.errors import PartsumError, WireError
from partsum.shared.messages import Assignment, Blob, Part, Progress, TrainSettings
from partsum.shared.task import Samples, Task
from partsum.shared.tensors import load_tensors, save_tensors

CPU = torch.device("cpu")
HALF = Part({"0": tuple(range(8)), "3": tuple(range(8, 16))})
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


def points() -> Samples:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 4, (192,), generator=generator)
    centres = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [-2, -2, -2]])
    return TensorDataset(centres[targets] + torch.randn(192, 3, generator=generator), targets)


def chain(dropout: float = 0.2) -> nn.Module:
    layers = [nn.Linear(3, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def make_task(
    model: Callable[[], nn.Module] = chain,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> Task:
    return Task(model=model, train=points, validation=points, loss=loss)


def assignment(**changes: Any) -> Assignment:
    base = Assignment(
        id="r0-p1",
        round=0,
        part_index=1,
        part=HALF,
        seed=7,
        start=None,
        cluster=Blob("0" * 32, 192 * 8),
        samples=None,
        first_sample=0,
        num_samples=192 * 4,
        progress=(0.0, 0.5),
        settings=SETTINGS,
    )
    return dataclasses.replace(base, **changes)


def run(
    tmp_path: Path,
    a: Assignment,
    task: Task | None = None,
    before: Trained | None = None,
    start: Path | None = None,
    seen: list[Progress] | None = None,
    name: str = "update",
) -> Trained:
    job = Job(
        assignment=a,
        start=before.path if before else start,
        optimizer=before.optimizer if before else None,
        cluster=torch.arange(192),
        samples=points(),
        output=tmp_path / name,
        device=CPU,
    )
    clock = iter(range(1_000_000))
    return train(
        task or make_task(),
        job,
        (seen if seen is not None else []).append,
        lambda: False,
        lambda: next(clock),
    )


def data(trained: Trained) -> bytes:
    assert trained.path is not None
    return trained.path.read_bytes()


def test_training_a_part_lowers_its_loss_and_writes_the_narrow_tensors(tmp_path: Path) -> None:
    seen: list[Progress] = []
    trained = run(tmp_path, assignment(), seen=seen)
    assert trained.path is not None
    assert seen[0].loss > 1.2
    assert seen[-1].loss < 0.8 * seen[0].loss
    assert seen[-1].samples_done == trained.update.num_samples == 768
    shapes = {name: tuple(t.shape) for name, t in load_tensors(trained.path).items()}
    assert shapes["3.weight"] == (8, 8)
    assert shapes["5.weight"] == (4, 8)
    assert trained.update.blob.size_bytes == len(data(trained))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = data(run(tmp_path, assignment(), name="a"))
    torch.rand(3)  # what else the process draws must not matter
    again = data(run(tmp_path, assignment(), name="b"))
    other = data(run(tmp_path, assignment(seed=8), name="c"))
    assert first == again
    assert first != other


def test_a_part_goes_on_with_its_moments_as_if_it_had_not_been_cut_in_two(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task(lambda: chain(dropout=0.0))
    whole = run(tmp_path, assignment(num_samples=384, progress=(0.0, 0.5)), task, name="whole")
    first = run(tmp_path, assignment(num_samples=192, progress=(0.0, 0.25)), task, name="one")
    second = assignment(
        round=1,
        start=first.update.blob,
        first_sample=192,
        num_samples=192,
        progress=(0.25, 0.5),
    )
    going_on = run(tmp_path, second, task, before=first, name="two")
    assert data(going_on) == data(whole)
    assert not caplog.records
    fresh = run(tmp_path, second, task, start=first.path, name="fresh")
    assert data(fresh) != data(whole)
    assert "begins without the optimizer's moments" in caplog.text
    assert "will not be those of an undisturbed run" in caplog.text


def test_moments_of_another_part_are_left_alone(tmp_path: Path) -> None:
    first = run(tmp_path, assignment(num_samples=64), name="one")
    other = Part({"0": tuple(range(8)), "3": tuple(range(8))})
    second = assignment(round=1, part=other, start=first.update.blob, num_samples=64)
    with_moments = run(tmp_path, second, before=first, name="two")
    without = run(tmp_path, second, start=first.path, name="three")
    assert data(with_moments) == data(without)


def test_gradients_are_the_mean_over_all_samples_of_the_assignment(tmp_path: Path) -> None:
    task = make_task(lambda: chain(dropout=0.0))
    start = tmp_path / "start"
    weights = build_part(task.model, HALF, 3, None).module.state_dict()
    digest = save_tensors(start, weights, durable=False)
    settings = dataclasses.replace(SETTINGS, aggregate="gradients", batch_size=50)
    a = assignment(
        start=Blob(digest, start.stat().st_size), num_samples=192, settings=settings, part=HALF
    )
    trained = run(tmp_path, a, task, start=start)
    assert trained.path is not None
    assert trained.optimizer is None
    module = build_part(task.model, HALF, 3, start).module
    inputs, targets = points()[:]
    loss = nn.functional.cross_entropy(module(inputs), targets)
    torch.autograd.backward(loss)
    found = load_tensors(trained.path)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad)
    assert trained.update.loss == pytest.approx(loss.item(), rel=1e-5)


def test_tensors_cut_on_two_sides_train_faster_and_only_matrices_decay() -> None:
    model = build_part(chain, HALF, 0, None)
    optimizer = make_optimizer(model, SETTINGS, CPU)
    names = {id(p): name for name, p in model.module.named_parameters()}
    peaks = {names[id(p)]: g["peak"] for g in optimizer.param_groups for p in g["params"]}
    decays = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert peaks["3.weight"] == pytest.approx(1e-2 * 2**0.5)
    assert peaks["0.weight"] == peaks["5.weight"] == peaks["3.bias"] == 1e-2
    assert decays["0.weight"] == 0.01
    assert decays["0.bias"] == 0.0


def test_no_samples_return_the_start_and_its_bytes(tmp_path: Path) -> None:
    fresh = run(tmp_path, assignment(num_samples=0), name="fresh")
    expected = build_part(chain, HALF, 7, None).module.state_dict()
    assert fresh.path is not None
    found = load_tensors(fresh.path)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    again = assignment(num_samples=0, start=fresh.update.blob)
    trained = run(tmp_path, again, start=fresh.path)
    assert trained.path is None
    assert trained.update.blob == fresh.update.blob


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path) -> None:
    calls = iter(range(100))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(outputs, targets)
        return value * float("nan") if next(calls) == 4 else value

    with pytest.raises(PartsumError, match="loss became nan at step 5 of assignment r0-p1"):
        run(tmp_path, assignment(), make_task(loss=loss))
    assert not list(tmp_path.iterdir())


def test_training_stops_when_told_to(tmp_path: Path) -> None:
    job = Job(assignment(), None, None, torch.arange(192), points(), tmp_path / "u", CPU)
    asked = iter([False, False, True])
    with pytest.raises(StoppedError):
        train(make_task(), job, lambda progress: None, lambda: next(asked))
    assert not list(tmp_path.iterdir())


def test_bfloat16_trains_with_float32_weights(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, precision="bfloat16")
    seen: list[Progress] = []
    trained = run(tmp_path, assignment(settings=settings), seen=seen)
    assert trained.path is not None
    assert seen[-1].loss < 0.9 * seen[0].loss
    assert {t.dtype for t in load_tensors(trained.path).values()} == {torch.float32}


class Positions(nn.Module):
    """Owns a parameter and a buffer that nothing but building it fills."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((3,), 0.5))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0]), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        mask: Tensor = self.get_buffer("mask")
        return (inputs + self.shift) * mask


class Odd(nn.Module):
    """A model that cannot be filled after it was built without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = Positions()
        self.body = chain()

    def width_groups(self) -> Any:
        from partsum.shared.width import chain_widths

        found = chain_widths(self.body)
        prefixed = [
            dataclasses.replace(
                g,
                slots=tuple(dataclasses.replace(s, tensor=f"body.{s.tensor}") for s in g.slots),
            )
            for g in found.groups
        ]
        return dataclasses.replace(
            found, groups=tuple(prefixed), readouts=tuple(f"body.{r}" for r in found.readouts)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(self.positions(inputs))
        return outputs


def test_a_model_with_tensors_that_only_building_fills_is_built_for_real(tmp_path: Path) -> None:
    for start in (None, tmp_path / "start"):
        module = build_part(Odd, HALF, 1, start).module
        assert module.get_parameter("positions.shift").tolist() == [0.5, 0.5, 0.5]
        assert module.get_buffer("positions.mask").tolist() == [1, 0, 1]
        assert module.get_parameter("body.3.weight").shape == (8, 8)
        save_tensors(tmp_path / "start", module.state_dict(), durable=False)


def test_weights_of_another_shape_are_refused_in_words(tmp_path: Path) -> None:
    save_tensors(tmp_path / "start", chain().state_dict(), durable=False)
    with pytest.raises(WireError, match="do not fit this part"):
        build_part(chain, HALF, 1, tmp_path / "start")


@pytest.mark.parametrize("units", [{"0": (0, 16)}, {"0": (3, 5000)}, {"other": (0,)}])
def test_a_part_of_another_model_is_refused_in_words(units: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(WireError, match="of which this model has"):
        build_part(chain, Part(units), 1, None)
