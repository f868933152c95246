"""The processes of a hand-off: started in one process group, and ended for certain."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO


@dataclass
class Ranks:
    """The ranks that were started, rank 0 first: it leads their process group."""

    processes: list[Process] = field(default_factory=list)
    failed: int = 0
    """The exit code of the rank that failed first, negative for a signal; 0 while none has."""

    async def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: IO[bytes],
        inherited: Sequence[int],
    ) -> None:
        """Start the next rank; all that it prints goes to ``log``."""
        rank = str(len(self.processes))
        self.processes.append(
            await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE,  # the lifeline: however this process ends, it closes, and the rank sees
                stdout=log,
                stderr=log,
                env={**environment, "RANK": rank, "LOCAL_RANK": rank},
                pass_fds=inherited,
                process_group=self.processes[0].pid if self.processes else 0,
            )
        )

    async def end(self, grace_seconds: float) -> None:
        """End what still runs: SIGTERM, and SIGKILL once the grace is over.

        No rank lives when this returns, also when it is cancelled.
        """
        try:
            if self._alive():
                self._signal(signal.SIGTERM)
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace_seconds):
                        await self._ended()
        finally:
            if self._alive():
                self._signal(signal.SIGKILL)
                await self._ended()

    def _alive(self) -> bool:
        return any(process.returncode is None for process in self.processes)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.processes[0].pid, number)

    async def _ended(self) -> None:
        await asyncio.gather(*(process.wait() for process in self.processes))
