"""How the worker's process is started."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

Main = Callable[[Connection], None]
"""The worker's main function; it must be picklable. Given in, so that no torch comes with it."""


def start_child(main: Main) -> tuple[SpawnProcess, Connection]:
    """A new process that runs ``main``, and this end of the pipe to it.

    Ctrl-C in a terminal reaches the child too. It ignores it once it runs; blocked signals are
    inherited, which covers its first moments. The tracker would unblock them again.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs,), name="worker")
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    return process, ours
