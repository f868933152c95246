"""A run on this machine: a coordinator and node processes, followed until the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from partsum.coordinator.folder import unfinished_run
from partsum.coordinator.operator import UnreachableError, statuses, target_of
from partsum.shared.config import load_config
from partsum.shared.errors import EXIT_FAILED, EXIT_OK, EXIT_STOPPED, PartsumError
from partsum.shared.messages import RunStatus

Follow = Callable[[AsyncIterator[RunStatus], Console], Awaitable[object]]
"""Shows statuses until they end."""

_PROGRAM = (sys.executable, "-m", "partsum.shared")
_COORDINATOR_SECONDS = 40.0  # DeepSpeed may be starting, or writing its checkpoint
_NODE_SECONDS = 10.0
_TAIL_LINES = 15


@dataclass(frozen=True)
class Ended:
    """How a run on this machine ended. ``folder`` is the run's, and None where none began."""

    code: int
    folder: Path | None


class LocalRun:
    """The processes of a run; whatever happens, none of them is left behind.

    Args:
        config: the run's config, a file.
        logs: the folder of the processes' logs and of the nodes' states.
        nodes: how many node processes, each with one thread of the CPU.
        new: start anew, though a run could go on.
        console: where it is told.
        follow: shows how it goes.
    """

    def __init__(
        self, config: Path, logs: Path, nodes: int, new: bool, console: Console, follow: Follow
    ) -> None:
        self._config = config
        self._logs = logs
        self._nodes = nodes
        self._new = new
        self._console = console
        self._follow = follow
        self._processes: list[asyncio.subprocess.Process] = []

    async def run(self) -> Ended:
        """Start everything, and follow it; says what went wrong where something did."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await self._serve()
        except asyncio.CancelledError:
            with self._console.status("stopping the coordinator and what it and we started"):
                await self._end()
            self._console.print("stopped. Run the same command again to resume.")
            return Ended(EXIT_STOPPED, None)
        finally:
            await self._end()

    async def _serve(self) -> Ended:
        self._console.print(f"Starting {cast_text(self._nodes)}; logs are in {self._logs}")
        found = None if self._new else unfinished_run(load_config(self._config))
        if found is not None:
            self._console.print(f"resuming the unfinished run {found} (--new starts another)")
        with self._console.status("the coordinator starts: it loads torch, the task and the data"):
            address, run = await self._start_coordinator()
        for k in range(self._nodes):
            name = f"node-{k + 1}"
            state = self._logs / name
            flags = ["--name", name, "--state-dir", str(state), "--device", "cpu", "--threads", "1"]
            await self._start(
                name, ["node", "--coordinator", address, *flags, "--metrics-port", "0"]
            )
        with contextlib.suppress(UnreachableError):  # it is said below, from its exit code
            await self._follow(statuses(target_of(run, None)), self._console)
        code = await self._processes[0].wait()
        if code != EXIT_OK or not (run / "summary.json").exists():
            self._console.print(f"the coordinator ended with exit code {code}; it said last:")
            self._console.print(self._tail("coordinator"), markup=False, highlight=False)
            return Ended(code or EXIT_FAILED, run)
        return Ended(EXIT_OK, run)

    async def _start_coordinator(self) -> tuple[str, Path]:
        """Start it and wait until it listens; its address and the run's folder."""
        ours, theirs = os.pipe()
        flags = ["--config", str(self._config), "--ready-fd", str(theirs)]
        flags += ["--new"] if self._new else []
        process = await self._start("coordinator", ["coordinator", *flags], (theirs,))
        os.close(theirs)
        with open(ours, encoding="utf-8") as pipe:
            line = await asyncio.to_thread(pipe.readline)  # empty where the process has ended
        if not line:
            code = await process.wait()
            raise PartsumError(
                f"the coordinator did not start (exit code {code}); it said:\n"
                f"{self._tail('coordinator')}"
            )
        said = json.loads(line)
        return said["address"], Path(said["folder"])

    async def _start(
        self, name: str, arguments: Sequence[str], keep: Sequence[int] = ()
    ) -> asyncio.subprocess.Process:
        with open(self._logs / f"{name}.log", "wb") as log:
            process = await asyncio.create_subprocess_exec(
                *_PROGRAM,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=keep,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
            )
        self._processes.append(process)
        return process

    def _tail(self, name: str) -> str:
        text = (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    async def _end(self) -> None:
        """The coordinator first, so that it writes its summary while the nodes are still there."""
        for process in self._processes[:1]:
            await _leave(process, _COORDINATOR_SECONDS)
        await asyncio.gather(*(_leave(node, _NODE_SECONDS) for node in self._processes[1:]))
        self._processes.clear()


def cast_text(nodes: int) -> str:
    """Who is started: a coordinator, and so many node processes."""
    if not nodes:
        return "a coordinator"
    return f"a coordinator and {nodes} node {'process' if nodes == 1 else 'processes'}"


async def _leave(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Ask a process to end, and end it where it does not."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
