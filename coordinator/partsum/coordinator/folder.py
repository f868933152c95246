"""Run folders: made, found, resumed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partsum.coordinator.journal import backup_of
from partsum.coordinator.store import Store
from partsum.coordinator.summary import config_digest
from partsum.shared.config import RunConfig, parse_config
from partsum.shared.errors import ConfigError, StateError
from partsum.shared.files import sync_file, sync_folder, write_file

DEEPSPEED_COPY = "deepspeed.json"  # the user's file, as it was when the run was started


@dataclass(frozen=True)
class RunFolder:
    """What a run folder says of itself without being opened by a coordinator."""

    path: Path
    state: str  # running or unfinished, finished, stopped, failed
    rounds: int
    address: str


def new_run(config: RunConfig, text: str, now: float, source: Path = Path("run.toml")) -> Store:
    """Make runs/NAME-TIME and let runs/latest point at it.

    ``source`` is where the config lies: the files that it names are copied from beside it.
    """
    given = config.handoff.deepspeed_config
    deepspeed = _read_given(source.parent / given) if given is not None else None
    models = given_models(config, source)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    parent = Path(config.folder)
    path = parent / f"{config.name}-{stamp}"
    for attempt in range(2, 100):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path = parent / f"{config.name}-{stamp}-{attempt}"
        except OSError as error:
            raise StateError(f"cannot make the run folder {path}: {error}") from error
    if deepspeed is not None:
        write_file(path / DEEPSPEED_COPY, deepspeed.encode())
    _copy(models, copied_models(config, path))
    write_file(path / "config.toml", text.encode())
    latest = parent / "latest"
    fresh = parent / f".latest-{path.name}"
    fresh.symlink_to(path.name)
    fresh.replace(latest)
    store = Store(path.absolute())
    store.note(started_at=now, config_digest=config_digest(config), state="running")
    store.journal.back_up()
    return store


def given_models(config: RunConfig, source: Path) -> list[Path]:
    """Where the models lie that the base is to be grown from; ``source`` is the config's file."""
    return [source.parent / given for given in config.start.models]


def copied_models(config: RunConfig, folder: Path) -> list[Path]:
    """Where a run's own copies of them lie, whatever becomes of the others."""
    names = (Path(given).name for given in config.start.models)
    return [folder / "start" / f"{k}-{name}" for k, name in enumerate(names)]


def _copy(sources: list[Path], targets: list[Path]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise ConfigError(f"start.models: cannot copy {source}: {error.strerror}") from error
        sync_file(target)
        sync_folder(target.parent)


def _read_given(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"handoff.deepspeed_config: cannot read {path}: {error}") from error


def unfinished_run(config: RunConfig) -> Path | None:
    """The newest run of this very config that has not finished, if there is one."""
    return next((path for path, state in _runs_of(config) if state != "finished"), None)


def finished_run(config: RunConfig) -> Path | None:
    """The newest run of this very config that has finished, if there is one."""
    return next((path for path, state in _runs_of(config) if state == "finished"), None)


def _runs_of(config: RunConfig) -> Iterator[tuple[Path, object]]:
    """The runs of this very config, the newest first, and what state each is in."""
    digest, parent = config_digest(config), Path(config.folder)
    latest = (parent / "latest").resolve()  # names tell the wall clock, which may have been set
    newest_first = sorted(parent.glob(f"{config.name}-*"), reverse=True)
    for path in sorted(newest_first, key=lambda path: path.resolve() != latest):
        facts = read_facts(path)
        if facts.get("config_digest") == digest:
            yield path, facts.get("state")


def read_facts(folder: Path) -> dict[str, object]:
    """The facts in a run's journal, read only; empty where there is no journal."""
    return {key: json.loads(value) for key, value in _look(folder, "SELECT key, value FROM facts")}


def count_rounds(folder: Path) -> int:
    """Committed rounds in a run's journal, read only."""
    rows = _look(folder, "SELECT count(*) FROM rounds WHERE result IS NOT NULL")
    return int(rows[0][0]) if rows else 0


def _look(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """A query's rows, read only; from the backup where the journal is damaged or gone."""
    journal = folder / "journal.sqlite"
    for path, how in ((journal, "mode=ro"), (backup_of(journal), "immutable=1")):
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as db:
                if rows := db.execute(query).fetchall():
                    return rows
        except sqlite3.Error:
            continue
    return []


def list_runs(parent: Path) -> list[RunFolder]:
    """All runs below a folder, oldest first."""
    runs = []
    for folder in sorted({path.parent for path in parent.glob("*/journal.*")}):
        if folder.is_symlink():
            continue
        facts = read_facts(folder)
        state, address = str(facts.get("state", "?")), str(facts.get("address", ""))
        runs.append(RunFolder(folder, state, count_rounds(folder), address))
    return runs


def open_run(folder: Path) -> tuple[RunConfig, Store]:
    """Open a run to go on with it. Raises StateError where it is none, or another has it."""
    source = folder / "config.toml"
    if not source.is_file():
        raise StateError(f"{folder} is not a run folder: it has no config.toml")
    config = parse_config(source.read_text(encoding="utf-8"), str(source))
    store = Store(folder.resolve())
    if store.fact("started_at") is None:
        store.close()
        raise StateError(f"{folder} died before it began; start a new run with --new")
    store.note(state="running")
    return config, store
