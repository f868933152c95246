"""The `partsum coordinator` command: from its flags to a served run."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path

from rich.console import Console

from partsum.coordinator.access import open_access
from partsum.coordinator.advice import advise
from partsum.coordinator.clock import RunClock
from partsum.coordinator.folder import new_run, open_run, unfinished_run
from partsum.coordinator.limits import allow_files
from partsum.coordinator.store import Store
from partsum.shared.config import RunConfig, load_config
from partsum.shared.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_STOPPED,
    ConfigError,
    PartsumError,
    StateError,
)
from partsum.shared.logs import set_up_logging
from partsum.shared.messages import TaskSpec
from partsum.shared.transport import tune_malloc

log = logging.getLogger(__name__)


def run_coordinator(
    config: Path | None, resume: Path | None, new: bool, verbose: bool, ready: int | None = None
) -> int:
    """Serve a run; returns the exit code. ``ready`` is a descriptor to announce the address on."""
    tune_malloc()
    set_up_logging(verbose)
    # Torch is imported only now, so that a wrong flag or config is answered at once.
    loaded, store = _open(config, resume, new)
    for sentence in advise(loaded):
        log.warning("%s", sentence)
    log.info("loading the data and preparing the base")
    from partsum.coordinator.run import Run
    from partsum.coordinator.server import serve
    from partsum.coordinator.watch import summary_table

    try:
        allow_files(loaded.parts.count)
        open_access(loaded.server, time.time())  # what is wrong with it is said before the wait
        run = Run(loaded, store, RunClock(float(store.fact("started_at")), store.seconds()))
        run.prepare()
        summary = asyncio.run(serve(run, ready))
        # Last of all: killed before this, the run is concluded once more; killed after it with
        # something undone, the next coordinator would begin another run of the same config.
        store.note(state=summary.state, reason=summary.reason, served=run.clock.now())
    except PartsumError as error:
        store.note(state="failed", reason=str(error))
        raise
    except OSError as error:
        store.note(state="failed", reason=str(error))
        raise StateError(
            f"{error}. Nothing committed is lost: mend it (a full disk?) and run the same command "
            "again to resume"
        ) from error
    finally:
        store.close()
    Console(file=sys.stderr).print(summary_table(summary, run.folder))
    if summary.state == "stopped":
        log.info("%s; the same command resumes it", summary.reason)
        return EXIT_STOPPED
    if summary.state == "failed":
        print(
            f"partsum: the run failed: {summary.reason}\n"
            f"What is committed is in {run.folder}; the same command resumes it.",
            file=sys.stderr,
        )
        return EXIT_FAILED
    return EXIT_OK


def _open(config: Path | None, resume: Path | None, new: bool) -> tuple[RunConfig, Store]:
    """The run to serve: a given folder, an unfinished one of this config, or a new one."""
    if resume is not None:
        return open_run(resume)
    if config is None:
        raise ConfigError(
            "give --config RUN.TOML to start a run, or --resume RUN to go on with one"
        )
    loaded = load_config(config)
    found = None if new else unfinished_run(loaded)
    if found is not None:
        log.info("resuming the unfinished run %s (--new starts another)", found)
        return open_run(found)
    log.info("loading the task %s", loaded.task.name)
    from partsum.shared.task import load_task

    # What cannot be used is answered before there is a folder for its run.
    open_access(loaded.server, time.time())
    task = load_task(TaskSpec(loaded.task.name, loaded.task.options))
    if loaded.start.models:
        from partsum.coordinator.growth.start import check_models

        check_models(loaded, task, config)
    text = config.read_text(encoding="utf-8")
    return loaded, new_run(loaded, text, time.time(), config)
