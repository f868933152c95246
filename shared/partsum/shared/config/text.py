"""TOML into a RunConfig, and what is wrong with it said in words."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from partsum.shared.config.run import RunConfig
from partsum.shared.errors import ConfigError


def load_config(path: Path) -> RunConfig:
    """Read a run.toml.

    Raises:
        ConfigError: no such file, not TOML, an unknown key (the nearest right one is named), or a
            value that cannot be used. All that is wrong is said at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the config {path}: {reason}") from error
    return parse_config(text, source=str(path))


def parse_config(text: str, source: str = "run.toml") -> RunConfig:
    """Parse the text of a run.toml; ``source`` names it in errors. Raises ConfigError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = sorted({_explain(problem) for problem in error.errors(include_url=False)})
        raise ConfigError(f"{source} cannot be used:\n  " + "\n  ".join(lines)) from error


def _explain(problem: ErrorDetails) -> str:
    """One pydantic problem as a line for a person."""
    location = _keys(problem["loc"])
    where = ".".join(location) or "the file"
    if problem["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        known = list(section.model_fields) if section else []
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    return f"{where}: {problem['msg']} (got {problem['input']!r})"


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The TOML keys of a pydantic location, without the names of types that it ends in."""
    keys: list[str] = []
    for name in map(str, location):
        table = _section_at(keys)
        if table is None and keys[-1] != "options":
            break
        keys.append(name)
    return keys


def _section_at(location: list[str]) -> type[BaseModel] | None:
    """The table at ``location``; None where there is a value."""
    section: type[BaseModel] = RunConfig
    for name in location:
        inner = section.model_fields[name].annotation if name in section.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        section = inner
    return section
