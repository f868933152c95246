"""A cluster whose processes stop where a test wants them to."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster import Cluster
from tests.faults.chaos import trail
from tests.faults.supervisor import free_port

TASK = 'name = "gated_task:task"'


class Stage:
    """A cluster of two nodes, its gates, and the means to wait for what it does."""

    def __init__(
        self,
        folder: Path,
        rounds: int,
        handoff: bool = False,
        parts: str = "",
        more: str = "",
        return_seconds: float = 600.0,
    ) -> None:
        self.cluster = Cluster(folder)
        self.gates = folder / "gates"
        self.gates.mkdir()
        shutil.copy(Path(__file__).with_name("gated_task.py"), folder)
        self.cluster.configure(
            rounds=rounds,
            local_epochs=2.0,
            handoff=handoff,
            port=free_port(),
            top="keep_bases = 0",
            task=TASK,
            parts=parts,
            more=more,
            rounds_section=f"return_seconds = {return_seconds}\nrefusals = 1000",
            handoff_section="checkpoint_every_steps = 15\nevaluations = 0\nrestarts = 5",
        )

    def close_gate(self, gate: str) -> None:
        """Nobody passes from now on."""
        for stale in self.gates.glob(f"{gate}.*"):
            stale.unlink()
        (self.gates / gate).touch()

    def open_gate(self, gate: str) -> None:
        """Whoever stands there goes on."""
        (self.gates / gate).unlink()

    def reached(self, gate: str, times: int = 1) -> None:
        """Wait until so many processes have come to a closed gate."""
        wait_until(lambda: len(list(self.gates.glob(f"{gate}.*"))) >= times)

    def restart_coordinator(self) -> None:
        """Kill it, and let the next one open its door."""
        self.cluster.kill("coordinator")
        self.cluster.coordinator()

    def restart_node(self, name: str) -> None:
        """Kill its daemon, and start another."""
        self.cluster.kill(name)
        self.cluster.node(name)

    def kill_worker(self, name: str) -> None:
        """Kill the process that trains for a node."""
        worker = self.cluster.worker(name)
        assert worker is not None
        worker.kill()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Hold a daemon, or let it go on."""
        self.cluster.processes[name].send_signal(number)

    def end(self) -> dict[str, bytes]:
        """Wait for the run's end; the weights that it leaves."""
        assert self.cluster.wait("coordinator") == 0, self.cluster.log("coordinator")
        return trail(self.cluster.run)


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)
