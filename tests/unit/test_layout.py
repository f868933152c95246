"""The house: portions of one namespace, files of readable size, one version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORTIONS = ["coordinator", "node", "protos", "shared"]
LIMIT_LINES = 300


@pytest.mark.parametrize("portion", PORTIONS)
def test_no_portion_claims_the_whole_namespace(portion: str) -> None:
    assert (ROOT / portion / "partsum").is_dir()
    assert not (ROOT / portion / "partsum" / "__init__.py").exists()


@pytest.mark.parametrize("portion", PORTIONS)
def test_every_portion_says_that_it_is_typed(portion: str) -> None:
    inner = ROOT / portion / "partsum" / portion
    assert (inner / "__init__.py").is_file()
    assert portion == "protos" or (inner / "py.typed").is_file()


def test_no_file_is_longer_than_a_person_reads_at_once() -> None:
    long = {}
    for portion in PORTIONS:
        for path in (ROOT / portion).rglob("*.py"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > LIMIT_LINES and "_pb2" not in path.name:
                long[str(path.relative_to(ROOT))] = lines
    assert not long, f"longer than {LIMIT_LINES} lines: look for the second noun"


def test_the_version_is_the_newest_in_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == project["version"]


def test_decisions_and_arithmetic_do_not_know_protobuf() -> None:
    knows = {
        path.name
        for portion in ("coordinator", "shared")
        for path in (ROOT / portion).rglob("*.py")
        if "partsum_pb2" in path.read_text(encoding="utf-8")
    }
    assert "wire.py" in knows
    assert not knows & {"rounds.py", "merge.py", "store.py", "workshop.py", "base.py"}
