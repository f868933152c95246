"""Runs that start from trained models: resumed to the byte, and parts that go on from theirs."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tests.unit.test_workshop import (
    EQUAL,
    TASK,
    base_outputs,
    close_round,
    deliver,
    mean_outputs,
    model,
    opened,
    workshop_of,
)
from torch import Tensor

from partsum.coordinator.base import Base
from partsum.coordinator.cutter import base_name
from partsum.coordinator.folder import copied_models, new_run, open_run
from partsum.coordinator.growth.start import check_models
from partsum.coordinator.planner.complement import block_parts
from partsum.coordinator.recovery import Recovery
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.shared.cli import main
from partsum.shared.config import RunConfig, parse_config
from partsum.shared.errors import ConfigError, WidthError
from partsum.shared.part import cut_module, fresh_module
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tensors import load_tensors, save_tensors

UNEVEN = Workplan((0.7, 0.3), ("", ""), 0.25)
BASE = Base(TASK, torch.device("cpu"))


def models(folder: Path, fractions: tuple[float, ...] = (0.5, 0.5)) -> list[dict[str, Tensor]]:
    """Trained models as wide as these parts, written to a.safetensors, b.safetensors ..."""
    made = []
    for k, part in enumerate(block_parts(BASE.widths, fractions)):
        narrow = fresh_module(cut_module(model(), BASE.widths, part), 40 + k)
        save_tensors(folder / f"{'abcd'[k]}.safetensors", narrow.state_dict())
        made.append(dict(narrow.state_dict()))
    return made


def config_of(text: str = "") -> RunConfig:
    return parse_config(
        "seed = 3\nparts = { count = 2, rounds = 2, fractions = [0.7, 0.3] }\n"
        f"start = {{ models = ['a.safetensors', 'b.safetensors'] }}\n{text}"
    )


def folder_of(tmp_path: Path, config: RunConfig) -> Path:
    """A run's folder with its copies of the models."""
    folder = tmp_path / "run"
    for path in copied_models(config, folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / path.name.partition("-")[2], path)
    return folder


def test_in_mode_block_part_k_goes_on_from_model_k(tmp_path: Path) -> None:
    given, config = models(tmp_path, (0.7, 0.3)), config_of()
    with closing(Store(folder_of(tmp_path, config))) as store:
        shop = workshop_of(config, store)
        plan = opened(shop, UNEVEN, 0)
        torch.testing.assert_close(
            base_outputs(shop, plan, 0), mean_outputs(shop, plan, dict(enumerate(given)))
        )
        for planned, state in zip(plan.parts, given, strict=True):
            assert planned.start is not None
            start = load_tensors(shop.cutter.blob_paths(plan)[planned.start.digest])
            assert all(torch.equal(start[name], state[name]) for name in state)
        # A first round without part 1: its model stands for it.
        sent = deliver(shop, plan, 0)
        close_round(shop, plan, missing=(1,))
        kept = store.fact("parts")["1"]
        assert kept["file"] == "start-p1.safetensors"
        assert kept["samples"] == 20
        expected = mean_outputs(shop, plan, {0: sent, 1: given[1]})
        torch.testing.assert_close(base_outputs(shop, plan, 1), expected, rtol=0, atol=1e-5)
        assert shop.rebuild_base(0) == store.results()[0][0].digest
        again = opened(shop, UNEVEN, 1)
        assert again.parts[1].start == plan.parts[1].start


def bases(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "bases").glob("base-*"))]


@pytest.mark.parametrize("lost", ["nothing", "base 0", "the first round", "a start"])
def test_a_grown_run_comes_back_from_what_was_lost_with_the_same_bytes(
    tmp_path: Path, lost: str
) -> None:
    models(tmp_path, (0.7, 0.3))
    config = config_of()
    folder = folder_of(tmp_path, config)
    with closing(Store(folder)) as store:
        shop = workshop_of(config, store)
        Recovery(store, lambda round: shop, 0.0).recover_rounds()
        plan = opened(shop, UNEVEN, 0)
        for k in range(2):
            deliver(shop, plan, k)
        if lost == "the first round":
            close_round(shop, plan)
    first = bases(folder)[0]
    match lost:
        case "base 0":
            (folder / "bases" / base_name(0)).write_bytes(b"damaged")
        case "the first round":
            (folder / "bases" / base_name(1)).unlink()
            for path in (folder / "parts").iterdir():
                path.unlink()
        case "a start":
            (folder / "parts" / "start-p1.safetensors").write_bytes(b"damaged")
    with closing(Store(folder)) as store:
        shop = workshop_of(config, store)
        Recovery(store, lambda round: shop, 0.0).recover_rounds()
        assert bases(folder) == [first]
        again = opened(shop, UNEVEN, 0)
        assert again.parts == plan.parts
        for digest, path in shop.cutter.blob_paths(again).items():
            assert path.exists(), digest
        if lost != "the first round":
            return
        for k in range(2):
            deliver(shop, again, k)
        close_round(shop, again)


@pytest.mark.parametrize("parts", ["planner = 'full'", "mode = 'residual'"])
@pytest.mark.parametrize("grow", ["models = ['a.safetensors']", "models = ['a.safetensors', 'b']"])
def test_where_parts_share_the_base_they_start_from_the_grown_one(
    tmp_path: Path, parts: str, grow: str
) -> None:
    models(tmp_path)
    (tmp_path / "b.safetensors").rename(tmp_path / "b")
    how = "fuse" if "'b'" in grow else "widen"
    config = parse_config(
        f"parts = {{ count = 2, rounds = 2, {parts} }}\nstart = {{ {grow}, grow = '{how}' }}"
    )
    with closing(Store(folder_of(tmp_path, config))) as store:
        shop = workshop_of(config, store)
        assert store.fact("parts") is None
        base = load_tensors(store.base_path(base_name(0)))
        plan = opened(shop, EQUAL, 0)
        start = plan.parts[0].start
        assert start is not None
        found = load_tensors(shop.cutter.blob_paths(plan)[start.digest])
        units = list(plan.parts[0].part.units.get("0", range(6)))
        assert torch.equal(found["0.weight"], base["0.weight"][units])


def test_without_rounds_the_hand_off_gets_the_fused_base_and_its_slices(tmp_path: Path) -> None:
    models(tmp_path)
    config = parse_config(
        "parts = { rounds = 0 }\nstart = { models = ['a.safetensors', 'b.safetensors'] }"
    )
    with closing(Store(folder_of(tmp_path, config))) as store:
        shop = workshop_of(config, store)
        assert [len(part.units["0"]) for part in shop.norm_parts(None)] == [3, 3]
        assert store.fact("parts") is None
    fresh = config.model_copy(update={"start": RunConfig().start})
    with closing(Store(tmp_path / "fresh")) as store:
        assert workshop_of(fresh, store).norm_parts(None) == []


def test_a_run_keeps_copies_of_its_models(tmp_path: Path) -> None:
    models(tmp_path)
    text = (
        f"folder = '{tmp_path}/runs'\nparts = {{ count = 2 }}\n"
        "start = { models = ['a.safetensors', 'b.safetensors'] }"
    )
    config = parse_config(text)
    with closing(new_run(config, text, 1e9, tmp_path / "run.toml")) as store:
        folder = store.folder
    for name in "ab":
        (tmp_path / f"{name}.safetensors").unlink()
    config, store = open_run(folder)
    with closing(store):
        workshop_of(config, store)
        assert store.base_path(base_name(0)).exists()
    with pytest.raises(ConfigError, match=r"start.models: cannot copy .*a.safetensors: No such"):
        new_run(config, text, 1e9, tmp_path / "run.toml")


def test_models_that_do_not_fit_are_found_before_there_is_a_run(tmp_path: Path) -> None:
    models(tmp_path)
    check_models(parse_config("parts = { rounds = 0 }" + START), TASK, tmp_path / "run.toml")
    parts = "parts = { count = 2, fractions = [0.7, 0.3] }"
    with pytest.raises(WidthError, match=r"part 0 has 4 units of width group '0', but a.safet"):
        check_models(parse_config(parts + START), TASK, tmp_path / "run.toml")


START = "\nstart = { models = ['a.safetensors', 'b.safetensors'] }"


def test_the_command_writes_what_a_run_would_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = fresh_module(Mlp(64, [4, 4], 10), 1)
    save_tensors(tmp_path / "small.safetensors", small.state_dict())
    path, out = tmp_path / "run.toml", tmp_path / "grown.safetensors"
    path.write_text(
        "[task]\nname = 'partsum.shared.tasks:digits'\noptions = { widths = [8, 6] }\n"
        "[parts]\nplanner = 'full'\n[start]\nmodels = ['small.safetensors']\ngrow = 'widen'\n"
    )
    assert main(["grow", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: base 0 is widened from small.safetensors" in said
    wide = Mlp(64, [8, 6], 10)
    wide.load_state_dict(load_tensors(out))
    assert main(["plan", str(path)]) == 0
    assert "base 0: widened from small.safetensors" in capsys.readouterr().out
    inputs = torch.rand(5, 64)
    torch.testing.assert_close(wide(inputs), small(inputs))
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, path.name, "small.safetensors"]
    assert main(["grow", str(path), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["grow", str(path), "--out", str(tmp_path / "no" / "where")]) == 2
    assert "cannot write" in capsys.readouterr().err
    path.write_text("")
    assert main(["grow", str(path), "--out", str(tmp_path / "other")]) == 2
    assert "has no [start]" in capsys.readouterr().err
