"""The hand-off: the merged base goes to a DeepSpeed job on this host, and comes back trained.

    folder/job.json             what the ranks are to do
    folder/handoff.log          all that they and DeepSpeed print
    folder/checkpoints/         DeepSpeed's; a hand-off that ended early goes on from the newest
    folder/final.safetensors    the result
    folder/lock                 held while a job lives, by its ranks too

The ranks are started here and not by torchrun, which gives each a session of its own and closes
inherited descriptors: so neither the reports' pipe nor one process group would be possible. It also
takes 2.5 seconds and a process that holds torch (measured), for restarts that are not wanted here.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from partsum.coordinator.handoff_config import deepspeed_settings
from partsum.coordinator.handoff_ranks import Ranks
from partsum.shared.config import (
    HandoffConfig,
    RegularisationConfig,
    Section,
    TaskConfig,
    TrainingConfig,
)
from partsum.shared.errors import HandoffError
from partsum.shared.task import Scores

_LOCK_SECONDS = 30.0  # a job whose coordinator was killed ends well within this
_STOP_SECONDS = 20.0  # from SIGTERM to SIGKILL: one step and one checkpoint
_PEER_SECONDS = 5.0  # from one rank's failure to the end of the others: they may say more
_MEMORY = re.compile(r"out of memory|can't allocate memory|MemoryError|bad_alloc", re.IGNORECASE)
_TELLING = re.compile(r"(?:\[rank\d+\]: )?([\w.]*(?:Error|Exception)\b.*)")
_LESS_MEMORY = (
    "Ask for less: a smaller handoff.batch_size, fewer ranks (handoff.local_world_size), or "
    "handoff.zero_stage = 3, on a GPU with handoff.offload = true"
)


class HandoffDiedError(HandoffError):
    """The job ended without a word of its own: another attempt may fare better."""


class HandoffJob(Section):
    """All that the ranks need to know; written to ``folder/job.json``."""

    task: TaskConfig
    """The task whose model and data are trained."""
    base: Path
    """The merged base, a safetensors file with all of the model's tensors."""
    folder: Path
    """The hand-off's own folder; made where it does not exist."""
    seed: int
    """All randomness comes from this number."""
    deterministic: bool
    """Same seed, same bytes."""
    handoff: HandoffConfig
    """`deepspeed_config` must be absolute here, or relative to where the coordinator started."""
    training: TrainingConfig
    """Its learning rate, weight decay, betas, gradient clip and warm-up count."""
    regularisation: RegularisationConfig = RegularisationConfig()
    """Which gates are random in training."""
    share: float
    """Where on the run's learning-rate schedule the hand-off starts, in [0, 1]."""
    norm_parts: list[dict[str, list[int]]]
    """With norms = "grouped": each part's kept units by group name; else empty."""
    off: list[str] = Field(default_factory=list)
    """Gates that are off: the model is the structure without them, and so is what comes out."""


@dataclass(frozen=True)
class HandoffProgress:
    """Where the hand-off is. The first one comes before the first step."""

    step: int
    steps: int
    loss: float
    """Mean training loss since the last report; before step 1 the base's validation loss."""
    scores: Scores | None
    """On validation data, where it was just evaluated."""
    samples_per_second: float
    """Over all ranks, evaluations and checkpoints not counted; 0 before step 1."""
    peak_memory_bytes: int
    """Of rank 0: resident memory, or the GPU's."""


@dataclass(frozen=True)
class HandoffResult:
    """What came of the hand-off."""

    final: Path
    scores: Scores
    start_scores: Scores
    """The base's, before the first step of the first attempt."""
    seconds: float
    """Wall time of this call; earlier attempts that it resumed are not in it."""
    peak_memory_bytes: int
    """The most of all ranks: resident memory, or the GPU's."""


async def run_handoff(
    job: HandoffJob, on_progress: Callable[[HandoffProgress], None]
) -> HandoffResult:
    """Train the base under DeepSpeed, from the newest checkpoint in ``job.folder`` if there is one.

    Once cancelled, the ranks get time to save a checkpoint, and have all ended when this returns.

    Raises:
        ConfigError: the hand-off's settings cannot be used; nothing was started.
        HandoffError: the job failed; what it said is in the message and in ``handoff.log``.
        HandoffDiedError: it said nothing, and was killed or met an error that it does not know.
    """
    begun = time.monotonic()
    deepspeed_settings(job.handoff, job.training)
    job.folder.mkdir(parents=True, exist_ok=True)
    ranks, reports = Ranks(), _Reports(on_progress)
    with await _lock(job.folder / "lock") as lock, open(job.folder / "handoff.log", "ab") as log:
        log_start = log.tell()
        try:
            pipe = await _start(job, ranks, lock.fileno(), log)
            await _watch(ranks, reports, pipe)
        finally:
            await ranks.end(_STOP_SECONDS if ranks.failed == 0 else 0)
    result = reports.result
    if result is None and reports.error:
        raise HandoffError(reports.error)
    if result is None:
        raise HandoffDiedError(_explain(ranks.failed, Path(log.name), log_start))
    return HandoffResult(
        final=Path(result["final"]),
        scores=Scores(**result["scores"]),
        start_scores=Scores(**result["start_scores"]),
        seconds=time.monotonic() - begun,
        peak_memory_bytes=result["peak_memory_bytes"],
    )


async def _lock(path: Path) -> IO[str]:
    """The open, locked file; the ranks inherit it, so the lock outlives a killed coordinator."""
    handle = open(path, "a")  # noqa: SIM115 - closed by the caller
    deadline = time.monotonic() + _LOCK_SECONDS
    try:
        while not _locked(handle):
            if time.monotonic() > deadline:
                raise HandoffError(
                    f"another hand-off has been at work in {path.parent} for {_LOCK_SECONDS:g} s; "
                    "wait for it, or end its coordinator"
                )
            await asyncio.sleep(0.1)
    except BaseException:
        handle.close()
        raise
    return handle


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _start(job: HandoffJob, ranks: Ranks, lock: int, log: IO[bytes]) -> IO[bytes]:
    """Start all ranks; returns the pipe that rank 0 reports on."""
    instructions = job.folder / "job.json"
    instructions.write_text(job.model_dump_json(indent=2), encoding="utf-8")
    command = [sys.executable, "-m", "partsum.coordinator.handoff_job", str(instructions)]
    world_size = job.handoff.local_world_size
    read, write = os.pipe()
    pipe = os.fdopen(read, "rb")
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            environment = _environment(job, world_size, listener.getsockname()[1])
            for rank in range(world_size):
                extra = [write, listener.fileno()] if rank == 0 else []
                await ranks.start([*command, *map(str, extra)], environment, log, [lock, *extra])
    except BaseException:
        pipe.close()
        raise
    finally:
        os.close(write)  # so that the pipe ends when rank 0 does
    return pipe


def _environment(job: HandoffJob, world_size: int, port: int) -> dict[str, str]:
    """What torch and DeepSpeed read from the environment; threads that the user set stay."""
    threads = max(1, len(os.sched_getaffinity(0)) // world_size)
    # Threads that wait by spinning take the cores from each other as soon as anything else runs
    # there: ten times slower was measured. Sleeping costs little.
    defaults = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if job.deterministic:
        defaults["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return {
        **defaults,
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),  # a task found here is found there
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class _Reports:
    """What rank 0 said so far."""

    def __init__(self, on_progress: Callable[[HandoffProgress], None]) -> None:
        self.on_progress = on_progress
        self.result: dict[str, Any] | None = None
        self.error = ""

    async def follow(self, pipe: IO[bytes]) -> None:
        """Take rank 0's lines until it closes its end."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        finally:
            transport.close()

    def _take(self, report: dict[str, Any]) -> None:
        kind = report.pop("kind")
        if kind == "progress":
            scores = report.pop("scores")
            self.on_progress(HandoffProgress(**report, scores=scores and Scores(**scores)))
        elif kind == "result":
            self.result = report
        elif kind == "note":
            logging.getLogger(__name__).warning("the hand-off says: %s", report["text"])
        else:
            self.error = report["message"]


async def _watch(ranks: Ranks, reports: _Reports, pipe: IO[bytes]) -> None:
    """Follow the job until all ranks have ended, or some time after the first one failed."""
    follow = asyncio.create_task(reports.follow(pipe))
    ends = [asyncio.create_task(process.wait()) for process in ranks.processes]
    pending: set[asyncio.Task[Any]] = {follow, *ends}
    try:
        while pending:
            done, pending = await asyncio.wait(
                pending,
                timeout=_PEER_SECONDS if ranks.failed else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done:
                return
            for task in done:
                ranks.failed = ranks.failed or task.result() or 0
    finally:
        for task in pending:
            task.cancel()


def _explain(code: int, log: Path, start: int) -> str:
    """Why there is no result, from how a rank ended and what stands in the log from ``start``."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with code {code}"
    reason = f"the hand-off's DeepSpeed job ended {how}."
    if any(_MEMORY.search(line) for line in lines):
        reason += f" It ran out of memory. {_LESS_MEMORY}."
    elif code == -signal.SIGKILL:
        reason += f" Unless somebody did that, the machine ran out of memory. {_LESS_MEMORY}."
    telling = list(dict.fromkeys(m[1][:400] for line in lines if (m := _TELLING.match(line))))
    said = "".join(f"\n  {line}" for line in telling[:5] or lines[-5:])
    return f"{reason} The log {log} says:{said or ' nothing'}"
