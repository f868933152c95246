"""`partsum study`: what it would cost, the sweep itself, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from partsum.coordinator.figures import clock_text, plain_text
from partsum.coordinator.folder import finished_run, read_facts, unfinished_run
from partsum.coordinator.local import LocalRun
from partsum.coordinator.planner.sweep import cells
from partsum.coordinator.study.config import study_run
from partsum.coordinator.study.results import Row, csv_text, from_json
from partsum.coordinator.study.table import study_table
from partsum.shared.config import StudyConfig, load_config, parse_config
from partsum.shared.errors import EXIT_OK, ConfigError, StateError
from partsum.shared.files import write_file
from partsum.shared.messages import RunStatus

_LINES = 10  # in a log, beside one for each phase


@dataclass(frozen=True)
class StudyOptions:
    """The command's flags."""

    config: Path
    nodes: int
    new: bool = False
    dry_run: bool = False
    csv: Path | None = None
    svg: Path | None = None


def run_study(options: StudyOptions) -> int:
    """Carry out a study, or go on with one, or show one that is finished; the exit code."""
    given = load_config(options.config)
    if options.nodes < 0:
        raise ConfigError(f"--nodes {options.nodes}: give 0 to wait for nodes from elsewhere")
    if options.nodes and given.server.auth != "none":
        raise ConfigError(
            f"--nodes {options.nodes}: nodes that are started here have no credentials; set auth = "
            f'"none" under [server] in {options.config}, or leave --nodes away and start them with '
            "their credentials"
        )
    text = study_run(given, options.config)
    config = parse_config(text, str(options.config))
    console = Console()
    if options.dry_run:
        from partsum.coordinator.study_plan import show_study_plan

        show_study_plan(config, max(1, options.nodes), console, time.perf_counter)
        return EXIT_OK
    done = None if options.new or unfinished_run(config) else finished_run(config)
    if done is None:
        logs = Path(config.folder) / "study" / config.name
        path = logs / f"{config.name}.toml"
        try:
            logs.mkdir(parents=True, exist_ok=True)
            write_file(path, text.encode())
        except OSError as error:
            raise StateError(
                f"cannot write {path}: {error.strerror}; change folder in {options.config}"
            ) from error
        follower = Follower(config.study)
        ended = asyncio.run(
            LocalRun(path, logs, options.nodes, options.new, console, follower.follow).run()
        )
        if ended.code != EXIT_OK or ended.folder is None:
            return ended.code
        done = ended.folder
    _tell(done, console, options)
    return EXIT_OK


def _tell(folder: Path, console: Console, options: StudyOptions) -> None:
    """The table, and the files that were asked for; without a wish they lie in the run's folder."""
    from partsum.coordinator.study.chart import study_svg

    rows = rows_of(folder)
    console.print(study_table(rows, folder))
    files = {
        options.csv or folder / "study.csv": csv_text(rows),
        options.svg or folder / "study.svg": study_svg(rows),
    }
    for path, text in files.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}") from error
        console.print(f"wrote {path}", style="dim", soft_wrap=True)


def rows_of(folder: Path) -> list[Row]:
    """The rows of a finished study. Raises StateError where the run holds none."""
    found = read_facts(folder).get("study")
    if not found:
        raise StateError(f"{folder} holds no study; start one with `partsum study CONFIG.toml`")
    return from_json(found)


class Follower:
    """Shows how far a study is: a bar in a terminal, lines in a log."""

    def __init__(self, study: StudyConfig) -> None:
        self._bases = len(study.seeds) if study.trains_bases else 0
        self._total = self._bases + len(cells(study))

    async def follow(self, statuses: AsyncIterator[RunStatus], console: Console) -> None:
        """Until they end."""
        await (self._live if console.is_terminal else self._lines)(statuses, console)

    async def _live(self, statuses: AsyncIterator[RunStatus], console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TextColumn("models"), TimeElapsedColumn(), console=console) as bar:
            shown = bar.add_task("starting", total=None)
            async for status in statuses:
                done, total, what = self.stand(status)
                busy = sum(node.part_index >= 0 for node in status.nodes)
                what += f", {busy} of {len(status.nodes)} nodes busy" if busy else ""
                bar.update(shown, completed=done, total=total, description=what)

    async def _lines(self, statuses: AsyncIterator[RunStatus], console: Console) -> None:
        said = None
        async for status in statuses:
            done, total, what = self.stand(status)
            news = (status.phase, status.round, _LINES * done // total)
            if news != said:
                line = f"[{clock_text(status.elapsed_seconds)}] {done} of {total} models; {what}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            said = news

    def stand(self, status: RunStatus) -> tuple[int, int, str]:
        """Models that are in, of how many, and what is going on."""
        total = self._total
        before = self._bases if status.round else 0
        if status.phase == "finished":
            return total, total, "finished"
        if status.phase != "parts":
            return before, total, plain_text(status.reason) or status.phase
        what = "bases" if self._bases and not status.round else "sweep"
        return before + status.parts_in, total, what
