"""The tutorial's own code: its files are written and its blocks are run, in order."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from partsum.shared.config import load_config

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(
    r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?(?P<after> run=after-training)?\n"
    r"(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
MODULES = ("mytask", "mymodel", "mylm")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, importable from and gone to, as the tutorial's reader has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def stand_in_for_training(folder: Path) -> None:
    """Leave final weights where a run leaves them."""
    from mytask import model  # type: ignore[import-not-found]

    (folder / "runs" / "latest").mkdir(parents=True)
    save_file(model().state_dict(), folder / "runs" / "latest" / "final.safetensors")


def test_the_tutorials_code_runs_in_order_and_prints_what_it_says(folder: Path) -> None:
    torch.manual_seed(0)
    blocks = list(BLOCK.finditer(TUTORIAL.read_text(encoding="utf-8")))
    printed = []
    for block in blocks:
        if block["after"]:
            stand_in_for_training(folder)
        if block["file"]:
            (folder / block["file"]).write_text(block["code"], encoding="utf-8")
        elif block["language"] == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block["code"], "tutorial.md", "exec"), {"__name__": "tutorial"})
            printed.append(output.getvalue())
        elif block["language"] == "text":
            assert printed[-1] == block["code"]
    assert [b["file"] for b in blocks if b["file"]] == [
        "mytask.py",
        "run.toml",
        "mymodel.py",
        "check.py",
        "mylm.py",
    ]
    assert [text.split()[:1] for text in printed] == [["0:"], ["accuracy"], [], ["stream:"]]
    assert load_config(folder / "run.toml").task.name == "mytask:task"
