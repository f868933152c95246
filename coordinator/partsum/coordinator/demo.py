"""The demo: a coordinator and node processes on this machine, watched until the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rich.console import Console

from partsum.coordinator.folder import unfinished_run
from partsum.coordinator.operator import Target, UnreachableError, statuses
from partsum.coordinator.summary import read_summary
from partsum.coordinator.watch import summary_table, watch
from partsum.shared.config import load_config
from partsum.shared.errors import EXIT_FAILED, EXIT_OK, EXIT_STOPPED, ConfigError, PartsumError

_PROGRAM = (sys.executable, "-m", "partsum.shared")
_COORDINATOR_SECONDS = 40.0  # DeepSpeed may be starting, or writing its checkpoint
_NODE_SECONDS = 10.0
_TAIL_LINES = 15


def run_demo(nodes: int, config: Path | None, new: bool) -> int:
    """Run the demo; returns the exit code."""
    if nodes < 1:
        raise ConfigError(f"--nodes {nodes}: at least one node is needed")
    with resources.as_file(resources.files("partsum.coordinator") / "demo.toml") as built_in:
        path = config or built_in
        loaded = load_config(path)
        if loaded.server.auth != "none":
            raise ConfigError(
                f'{path}: the demo\'s nodes have no credentials; set auth = "none" under [server]'
            )
        folder = Path(loaded.folder) / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(Demo(path, folder, nodes, new, Console()).run())


class Demo:
    """The processes of a demo; whatever happens, none of them is left behind."""

    def __init__(self, config: Path, folder: Path, nodes: int, new: bool, console: Console) -> None:
        self._config = config
        self._folder = folder
        self._nodes = nodes
        self._new = new
        self._console = console
        self._processes: list[asyncio.subprocess.Process] = []

    async def run(self) -> int:
        """Start everything, watch, and say what came of it."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await self._watch()
        except asyncio.CancelledError:
            with self._console.status("stopping DeepSpeed, the coordinator and the nodes"):
                await self._end()
            self._console.print("stopped. Run the same command again to resume.")
            return EXIT_STOPPED
        finally:
            await self._end()

    async def _watch(self) -> int:
        self._console.print(
            f"Starting a coordinator and {self._nodes} node processes; "
            f"their logs are in {self._folder}"
        )
        found = None if self._new else unfinished_run(load_config(self._config))
        if found is not None:
            self._console.print(f"resuming the unfinished run {found} (--new starts another)")
        with self._console.status("the coordinator starts: it loads torch, the task and the data"):
            address, run = await self._start_coordinator()
        for k in range(self._nodes):
            name = f"node-{k + 1}"
            state = self._folder / name
            flags = ["--name", name, "--state-dir", str(state), "--device", "cpu", "--threads", "1"]
            await self._start(
                name, ["node", "--coordinator", address, *flags, "--metrics-port", "0"]
            )
        with contextlib.suppress(UnreachableError):  # it is said below, from its exit code
            await watch(statuses(Target(address)), self._console)
        code = await self._processes[0].wait()
        summary = run / "summary.json"
        if code != EXIT_OK or not summary.exists():
            self._console.print(f"the coordinator ended with exit code {code}; it said last:")
            self._console.print(self._tail("coordinator"), markup=False, highlight=False)
            return code or EXIT_FAILED
        self._console.print(summary_table(read_summary(summary), run))
        return EXIT_OK

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
        with open(self._folder / f"{name}.log", "wb") as log:
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
        text = (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    async def _end(self) -> None:
        """The coordinator first, so that it writes its summary while the nodes are still there."""
        for process in self._processes[:1]:
            await _leave(process, _COORDINATOR_SECONDS)
        await asyncio.gather(*(_leave(node, _NODE_SECONDS) for node in self._processes[1:]))
        self._processes.clear()


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
