"""Aggregation of gradients is AdamW on the base, whoever sent which gradient."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.coordinator.gradients import GradientStep
from partsum.coordinator.merge import AVERAGE, Contribution, Merger, Tensors
from partsum.shared.config import TrainingConfig
from partsum.shared.part import WHOLE, Part
from partsum.shared.schedule import rate
from partsum.shared.tensors import load_tensors, save_tensors
from partsum.shared.width import Slot, WidthGroup, Widths

TRAINING = TrainingConfig(learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.99), warmup=0.1)
WIDTHS = Widths((WidthGroup("g", 4, "hidden", (Slot("w", 0), Slot("b", 0))),), scales=("scale",))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def start() -> dict[str, Tensor]:
    return {
        "w": noise(1, 4, 3),
        "b": noise(2, 4),
        "shared": noise(3, 2, 2),
        "frozen": noise(4, 2, 2),
        "statistics": noise(5, 3),
        "steps": torch.tensor(3),
        "scale": torch.tensor(0.5),
    }


def gradients(seed: int, rows: int = 4) -> dict[str, Tensor]:
    return {
        "w": noise(seed, rows, 3),
        "b": noise(seed + 1, rows),
        "shared": noise(seed + 2, 2, 2),
        "frozen": torch.zeros(2, 2),
        "statistics": torch.full((3,), float(seed)),
        "steps": torch.tensor(seed),
        "scale": torch.tensor(9.0),
    }


def hollow() -> nn.Module:
    model = nn.Module()
    for name, tensor in start().items():
        if name in {"steps", "scale", "statistics"}:
            model.register_buffer(name, tensor)
        else:
            setattr(model, name, nn.Parameter(tensor, requires_grad=name != "frozen"))
    return model


def base_path(folder: Path, round: int) -> Path:
    return folder / f"base-{round:05d}.safetensors"


def step(folder: Path, round: int, shares: list[Contribution], progress: float = 0.3) -> None:
    old, new = base_path(folder, round), base_path(folder, round + 1)
    merger = Merger(WIDTHS, shares, AVERAGE)
    GradientStep(TRAINING, hollow(), folder, progress).apply(old, merger, new, round)


def test_steps_on_full_gradients_equal_torchs_adamw(tmp_path: Path) -> None:
    save_tensors(base_path(tmp_path, 0), start(), durable=False)
    expected = {n: nn.Parameter(t) for n, t in start().items() if n in {"w", "b", "shared"}}
    adamw = torch.optim.AdamW(
        [
            {"params": [expected["w"], expected["shared"]], "weight_decay": 0.1},
            {"params": [expected["b"]], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.99),
    )
    for round in range(5):
        sent = [gradients(10 + 9 * round), gradients(1000 + 9 * round)]
        shares = [
            Contribution(WHOLE, Tensors(tensors), weight)
            for tensors, weight in zip(sent, (30.0, 10.0), strict=True)
        ]
        step(tmp_path, round, shares, progress=round / 10)
        for group in adamw.param_groups:
            group["lr"] = 0.01 * rate(round / 10, 0.1)
        for name, parameter in expected.items():
            parameter.grad = 0.75 * sent[0][name] + 0.25 * sent[1][name]
        adamw.step()
    found = load_tensors(base_path(tmp_path, 5))
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-6, atol=1e-6)


def test_elements_that_no_part_holds_keep_their_value_and_their_moments(tmp_path: Path) -> None:
    save_tensors(base_path(tmp_path, 0), start(), durable=False)
    upper = Part({"g": (0, 1)})
    for round in range(2):
        step(tmp_path, round, [Contribution(upper, Tensors(gradients(5, rows=2)), 8.0)])
    found, before = load_tensors(base_path(tmp_path, 2)), start()
    for name in ("w", "b"):
        assert torch.equal(found[name][2:], before[name][2:])
        assert (found[name][:2] != before[name][:2]).all()
    assert (found["shared"] != before["shared"]).all()
    assert found["scale"] == before["scale"]
    moments = load_tensors(tmp_path / "moments-00002.safetensors")
    assert not moments["w.first"][2:].any()
    assert not moments["w.second"][2:].any()
    assert moments["w.second"][:2].all()


def test_complementary_parts_step_every_element_by_its_own_gradient(tmp_path: Path) -> None:
    save_tensors(base_path(tmp_path, 0), start(), durable=False)
    whole = gradients(5)
    rows = [(0, 2), (1, 3)]
    shares = []
    for units in rows:
        own = {n: t[list(units)] if n in {"w", "b"} else t for n, t in whole.items()}
        shares.append(Contribution(Part({"g": units}), Tensors(own), 4.0))
    step(tmp_path, 0, shares)
    by_parts = load_tensors(base_path(tmp_path, 1))
    step(tmp_path, 0, [Contribution(WHOLE, Tensors(whole), 1.0)])
    at_once = load_tensors(base_path(tmp_path, 1))
    for name in ("w", "b", "shared"):
        assert torch.equal(by_parts[name], at_once[name])


def test_a_step_made_twice_from_the_same_base_gives_the_same_bytes(tmp_path: Path) -> None:
    save_tensors(base_path(tmp_path, 0), start(), durable=False)
    for round in range(3):
        step(tmp_path, round, [Contribution(WHOLE, Tensors(gradients(round)), 1.0)])
    once = base_path(tmp_path, 3).read_bytes()
    step(tmp_path, 2, [Contribution(WHOLE, Tensors(gradients(2)), 1.0)])
    assert base_path(tmp_path, 3).read_bytes() == once


def test_a_gradient_of_zero_still_decays_the_weights(tmp_path: Path) -> None:
    save_tensors(base_path(tmp_path, 0), start(), durable=False)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in gradients(0).items()}
    step(tmp_path, 0, [Contribution(WHOLE, Tensors(zeros), 1.0)])
    found = load_tensors(base_path(tmp_path, 1))
    decay = 1 - 0.01 * rate(0.3, 0.1) * 0.1
    torch.testing.assert_close(found["w"], start()["w"] * decay)
    assert torch.equal(found["b"], start()["b"])


def test_buffers_are_averaged_and_frozen_parameters_stay(tmp_path: Path) -> None:
    save_tensors(base_path(tmp_path, 0), start(), durable=False)
    shares = [Contribution(WHOLE, Tensors(gradients(seed)), 1.0) for seed in (2, 4)]
    step(tmp_path, 0, shares)
    found = load_tensors(base_path(tmp_path, 1))
    assert found["statistics"].tolist() == [3.0, 3.0, 3.0]
    assert found["steps"] == 4
    assert torch.equal(found["frozen"], start()["frozen"])
