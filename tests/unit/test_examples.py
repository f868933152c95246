from __future__ import annotations

from pathlib import Path

import pytest
import torch

from partsum.shared.config import load_config
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


def alphabet_for(path: Path) -> dict[str, str]:
    """The one task that asks its data for a size is told it."""
    return {"alphabet": "abc"} if path.stem == "shakespeare_gpt" else {}


def test_the_tutorial_says_what_each_example_shows() -> None:
    tutorial = (EXAMPLES.parent / "docs" / "tutorial.md").read_text()
    examples = sorted(path.name for path in EXAMPLES.glob("*.toml"))
    assert len(examples) >= 9
    assert [name for name in examples if f"| `{name}` |" not in tutorial] == []
