"""The commands that the README and docs/ print: found, compared with what is said of them, parsed.

A block's command is to be run, or to be listed with a reason: tests/docs_commands.toml. A command
in a sentence is a mention: it must parse.
"""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from partsum.shared.cli import build_parser

ROOT = Path(__file__).parents[1]
GENERATED = {"cli.md"}  # from the parsers themselves
PROGRAMS = (
    "apt", "bash", "cd", "cp", "install", "sh", "useradd",
    "curl", "docker", "docker-compose", "git", "helm", "kubectl", "make", "mkdocs",
    "mlflow", "partsum", "pip", "prometheus", "promtool", "pytest", "python", "python3", "ssh",
    "sudo", "systemctl", "tensorboard", "torchrun", "wandb",
)  # fmt: skip
_STARTS = re.compile(rf"^({'|'.join(map(re.escape, PROGRAMS))}) \S")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """A command as a page prints it, without its comment."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Step:
    """A command of a scene: ``say`` is as printed, ``do`` what is run for it, reduced.

    ``here`` runs it in the test's own process, which saves an import of torch; ``until`` leaves it
    running once its output has that text, and ``ends`` says that it ends by itself, well.
    """

    say: str = ""
    do: str = ""
    here: bool = False
    until: str = ""
    ends: bool = False


@dataclass(frozen=True)
class Scene:
    """Commands that are run one after the other in one folder, which begins with these files."""

    name: str
    steps: tuple[Step, ...]
    files: dict[str, str] = field(default_factory=dict)
    tutorial: bool = False  # begins with the tutorial's files


def pages() -> list[Path]:
    """All pages of the site that are written by hand, and the README."""
    outside = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
    inside = (p for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in GENERATED)
    return [
        *(ROOT / name for name in outside),
        *inside,
        *sorted((ROOT / "benchmarks").glob("*.md")),
    ]


@cache
def found() -> tuple[list[Command], list[Command]]:
    """The commands of blocks, and those that sentences mention."""
    blocks, mentions = [], []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        blocks += list(_blocks(page.name, text))
        mentions += list(_mentions(page.name, text))
    return blocks, mentions


def _blocks(page: str, text: str) -> Iterator[Command]:
    """Every line of a fenced shell block; of an indented one those that begin with a program."""
    fence, begun, first = "", "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fence = "" if fence else line[3:].split(" ")[0] or "text"
            continue
        shell = fence in {"sh", "bash", "console", "shell"}
        indented = not fence and line.startswith("    ") and bool(_STARTS.match(line.strip()))
        if not (shell or indented or begun):
            continue
        first = first if begun else number
        said = f"{begun} {_uncommented(line)}".strip()
        begun = said.removesuffix("\\").strip() if said.endswith("\\") else ""
        if said and not begun:
            yield Command(page, first, " ".join(said.split()))


def _uncommented(line: str) -> str:
    return re.split(r"(?:^|\s)# ", line.strip())[0].strip()


def _mentions(page: str, text: str) -> Iterator[Command]:
    without = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    for match in _SPAN.finditer(without):
        said = " ".join(match[1].split())
        if _STARTS.match(said):
            yield Command(page, without.count("\n", 0, match.start()) + 1, said)


@cache
def said() -> dict[str, Any]:
    """What tests/docs_commands.toml says of them."""
    return tomllib.loads((ROOT / "tests" / "docs_commands.toml").read_text(encoding="utf-8"))


def scenes() -> list[Scene]:
    """All scenes."""
    return [
        Scene(**{**scene, "steps": tuple(Step(**step) for step in scene["steps"])})
        for scene in said()["scene"]
    ]


def scene_of(command: str) -> str:
    """The scene that runs a command as it is printed; empty where none does."""
    steps = ((scene.name, step) for scene in scenes() for step in scene.steps)
    return next((name for name, step in steps if step.say == command), "")


def reason_for(command: str) -> str:
    """Why a command is only parsed; a key that ends in * stands for all that begin like it."""
    for key, reason in said()["parsed"].items():
        if command == key or (key.endswith("*") and command.startswith(key[:-1].rstrip())):
            return str(reason)
    return ""


def trouble(command: str) -> str:
    """Why a command cannot be what it seems to be; empty where it can."""
    words = shlex.split(command)
    match words:
        case ["partsum", *rest]:
            return _partsum(rest)
        case ["make", *rest]:
            targets = {word for word in rest if "=" not in word}
            return _missing("make targets", targets - _targets())
        case ["python" | "python3", script, *rest] if "..." not in script and script[0] != "-":
            return _python(script, rest)
        case ["sh" | "bash", script, *_]:
            known = any((folder / script).exists() for folder in (ROOT, *_folders()))
            return "" if known else f"there is no {script}"
        case ["pytest", *rest]:
            paths = {word for word in rest if "/" in word}
            return _missing("files", {path for path in paths if not (ROOT / path).exists()})
    return ""


def _folders() -> list[Path]:
    """Where a page says to go before it runs a script."""
    return [path for path in (ROOT / "deploy").iterdir() if path.is_dir()]


def _missing(what: str, names: set[str]) -> str:
    return f"there are no {what} {', '.join(sorted(names))}" if names else ""


def _targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE))


def _python(script: str, rest: list[str]) -> str:
    path = ROOT / script
    if not path.exists():
        printed = any(f" file={script}\n" in page.read_text(encoding="utf-8") for page in pages())
        return "" if printed else f"there is no {script}"
    known = "".join(p.read_text(encoding="utf-8") for p in path.parent.glob("*.py"))
    flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
    return _missing("flags", {flag for flag in flags if f'"{flag}"' not in known})


def _partsum(words: list[str]) -> str:
    """Command and flags must exist; what a mention leaves out may be missing."""
    parser, names = build_parser(), list(words)
    while inner := _inner(parser):
        if not names:
            return ""  # the name of a group
        choices = [inner[name] for name in names.pop(0).split("|") if name in inner]
        if not choices:
            return f"partsum has no command {' '.join(words)}"
        parser = choices[0]
    flags = {word.partition("=")[0] for word in names if word.startswith("--")}
    return _missing("flags", flags - set(parser._option_string_actions))


def _inner(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}
