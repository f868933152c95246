"""One rank of the hand-off, a process of its own: ``handoff_job JOB.json [REPORTS LISTENER]``.

`handoff` starts one for each rank, with torch's usual environment (RANK, WORLD_SIZE, MASTER_PORT).
Standard input is its lifeline: the coordinator holds the other end, and when that closes, however
the coordinator ended, the rank ends too. REPORTS and LISTENER are open file descriptors, given to
rank 0 only: where its reports go, and the listening socket of the ranks' store.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is public

from partsum.coordinator.handoff import HandoffJob
from partsum.coordinator.handoff_model import log
from partsum.coordinator.handoff_training import HandoffTraining
from partsum.shared.errors import EXIT_FAILED, HandoffError, PartsumError
from partsum.shared.zero.engine import Place


class Reports:
    """Rank 0's JSON lines to the coordinator; the other ranks have nowhere to write to."""

    def __init__(self, handle: int | None) -> None:
        self._file = None if handle is None else os.fdopen(handle, "w", buffering=1)

    def say(self, kind: str, **values: object) -> None:
        """Write one line."""
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Run this rank to its end; returns the exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_end_with_the_coordinator, daemon=True).start()
    job = HandoffJob.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    reports, listener = (int(handle) for handle in arguments[1:] or (-1, -1))
    say = Reports(reports if reports >= 0 else None).say
    try:
        place = _join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), listener)
        HandoffTraining(job, place, say, stop).run()
        distributed.destroy_process_group()
    except PartsumError as error:
        log(f"error: {error}")
        say("error", message=str(error))
        return error.exit_code
    return 0


def _end_with_the_coordinator() -> None:
    """Wait for the end of standard input, then end at once: nobody is left to take the result."""
    with suppress(OSError):
        while os.read(sys.stdin.fileno(), 1):
            pass
    log("the coordinator is gone; the next one goes on from the newest checkpoint")
    os._exit(EXIT_FAILED)


def _join(rank: int, world_size: int, listener: int) -> Place:
    """Meet the other ranks: gloo on CPUs, NCCL on GPUs."""
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        if world_size > torch.cuda.device_count():
            raise HandoffError(
                f"handoff.local_world_size is {world_size}, but this host has "
                f"{torch.cuda.device_count()} GPU(s), and each rank needs one of its own"
            )
        device, backend = torch.device("cuda", rank), "nccl"
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=rank == 0,
        master_listen_fd=listener if rank == 0 else None,
    )
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return Place(rank, world_size, device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
