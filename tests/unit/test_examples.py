from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.played import play

from partsum.coordinator.report_tables import config_text
from partsum.coordinator.study.config import study_run
from partsum.shared.config import load_config, parse_config
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_task
from partsum.shared.width import find_widths

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_is_a_valid_config_whose_model_can_be_cut_as_it_says(path: Path) -> None:
    config = load_config(path)
    task = load_task(TaskSpec(config.task.name, {**config.task.options, **alphabet_for(path)}))
    with torch.device("meta"):
        model = task.model()
    for group in find_widths(model).groups:
        assert group.units >= config.parts.count


# Data that nobody downloads, and models that train in a second; all else is as it is written.
REDUCED: dict[str, dict[str, Any]] = {
    "digits": {"widths": [16, 16]},
    "image_mlp": {"widths": [16, 16]},
    "image_vit": {"width": 16, "heads": 4, "layers": 2, "patch": 4},
    "image_residual_mlp": {"width": 16, "heads": 4, "layers": 2, "patch": 4},
    "char_gpt": {"width": 16, "heads": 4, "layers": 1, "context": 16},
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_round_or_two_of_an_example_can_be_played(path: Path, tmp_path: Path) -> None:
    rounds, loss = play(reduced(path, tmp_path), tmp_path)
    assert rounds == 2
    assert loss is not None
    assert math.isfinite(loss)


def reduced(path: Path, folder: Path) -> str:
    """An example on tiny data, as a config of two rounds without a hand-off."""
    config: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    kind = config["task"]["name"].rpartition(":")[2]
    offline = {"image_mlp": "digits", "image_vit": "digits_vit", "image_residual_mlp": "digits_vit"}
    config["task"] = {"name": f"partsum.shared.tasks:{offline.get(kind, kind)}"}
    config["task"]["options"] = dict(REDUCED[kind])
    config["folder"] = str(folder / "runs")
    if "study" in config:
        config["study"] |= {"keep": [1.0, 0.5], "epochs": 0.05, "base_epochs": 0.05, "seeds": [0]}
        return study_run(parse_config(config_text(config)), path)
    if kind == "char_gpt":
        config["task"]["options"] |= {"folder": str(texts(folder / "texts"))}
    config["parts"] |= {"rounds": 2, "local_epochs": 0.1}
    config["handoff"] = {**config.get("handoff", {}), "enabled": False}
    if "structures" in config:
        config["structures"] |= {"candidates": 4, "keep": 2, "validation_samples": 100}
    return config_text(config)


PEOPLE = ("KING", "FOOL", "QUEEN", "DUKE")


def texts(folder: Path) -> Path:
    """A play of four people, and another one."""
    folder.mkdir()
    said = "".join(f"{name}.\nNow is the winter of our discontent.\n\n" for name in PEOPLE)
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(40 * said, encoding="utf-8")
    return folder


def alphabet_for(path: Path) -> dict[str, str]:
    """The one task that asks its data for a size is told it."""
    return {"alphabet": "abc"} if path.stem == "shakespeare_gpt" else {}


def test_the_tutorial_says_what_each_example_shows() -> None:
    tutorial = (EXAMPLES.parent / "docs" / "tutorial.md").read_text()
    examples = sorted(path.name for path in EXAMPLES.glob("*.toml"))
    assert len(examples) >= 9
    assert [name for name in examples if f"| `{name}` |" not in tutorial] == []
