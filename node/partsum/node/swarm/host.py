"""A coordinator of the swarm's own, as a child process in a temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from partsum.shared.errors import EXIT_OK, PartsumError

_PROGRAM = (sys.executable, "-m", "partsum.shared", "coordinator")
_END_SECONDS = 60.0
_TAIL_LINES = 15

_RUN = """\
name = "swarm"
folder = {folder}
deterministic = false
task = {{ name = "partsum.shared.tasks:blank", options = {{ width = {width}, layers = 2, \
samples = {nodes} }} }}
parts = {{ planner = "full", count = {nodes}, rounds = {rounds}, local_epochs = 0.0, \
evaluate_every = 0 }}
rounds = {{ join_timeout_seconds = 600.0 }}
handoff = {{ enabled = false }}
server = {{ port = 0, metrics_port = 0 }}
"""


@dataclass(frozen=True)
class Host:
    """A coordinator that listens."""

    address: str
    run: Path
    process: asyncio.subprocess.Process

    def peak_bytes(self) -> int:
        """The most memory that it held, once its run has ended. Raises PartsumError."""
        path = self.run / "summary.json"
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["peak_rss_bytes"])
        except OSError as error:
            raise PartsumError(f"the coordinator left no summary: {error}") from error


@contextlib.asynccontextmanager
async def hosted(folder: Path, nodes: int, rounds: int, part_bytes: int) -> AsyncIterator[Host]:
    """A coordinator for so many nodes; its model is two square matrices of ``part_bytes`` or so.

    Raises PartsumError where it does not start; its last words are in the message.
    """
    config, log = folder / "run.toml", folder / "coordinator.log"
    width = matrix_width(part_bytes)
    runs = json.dumps(str(folder / "runs"))
    text = _RUN.format(folder=runs, width=width, nodes=nodes, rounds=rounds)
    config.write_text(text, encoding="utf-8")
    ours, theirs = os.pipe()
    with open(log, "wb") as said:
        process = await asyncio.create_subprocess_exec(
            *_PROGRAM,
            *("--config", str(config), "--ready-fd", str(theirs)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(theirs,),
            start_new_session=True,  # Ctrl-C is ours to pass on, in order
        )
    os.close(theirs)
    try:
        with open(ours, encoding="utf-8") as pipe:
            line = await asyncio.to_thread(pipe.readline)  # empty where the process has ended
        if not line:
            raise PartsumError(f"the coordinator did not start; it said:\n{_tail(log)}")
        said_of_itself = json.loads(line)
        yield Host(said_of_itself["address"], Path(said_of_itself["folder"]), process)
    finally:
        await _leave(process)


def matrix_width(part_bytes: int) -> int:
    """The width of two square float32 matrices that have about so many bytes."""
    return max(1, math.isqrt(part_bytes // 8))


async def ended(host: Host) -> None:
    """Wait for its end. Raises PartsumError where its run failed."""
    code = await host.process.wait()
    if code != EXIT_OK:
        log = host.run.parents[1] / "coordinator.log"
        raise PartsumError(f"the coordinator ended with exit code {code}; it said:\n{_tail(log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


async def _leave(process: asyncio.subprocess.Process) -> None:
    """Ask the process to end, and end it where it does not."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
