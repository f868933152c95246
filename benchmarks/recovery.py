"""Seconds from a death to its notice, and from a restart to work.

    python benchmarks/recovery.py [--quick] [--json FILE]

Real processes on loopback, killed with SIGKILL or stopped with SIGSTOP while they train digits;
what they say in their logs is watched every few milliseconds. Medians of several times.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, wide_console, write_figures
from tests.cluster import Cluster
from tests.faults.supervisor import free_port

CONFIG = """
name = "recovery"
[task]
name = "partsum.shared.tasks:digits"
options = {{ widths = [32, 32] }}
[parts]
count = 2
rounds = {rounds}
local_epochs = 60.0
[training]
batch_size = 32
[rounds]
heartbeat_seconds = {heartbeat_seconds}
return_seconds = 600.0
refusals = 1000
[handoff]
epochs = 400.0
checkpoint_every_steps = 50
evaluations = 0
[server]
port = {port}
metrics_port = 0
"""
NAMES = {
    "node_killed": "node killed: the coordinator notices",
    "node_back": "... and its part is assigned to it again, from its start",
    "node_silent": "node stopped (heartbeats of 2 s): the coordinator notices",
    "node_silent_fast": "node stopped (heartbeats of 0.5 s): the coordinator notices",
    "worker_killed": "worker killed: the coordinator knows, with the reason",
    "worker_back": "... and its daemon's next one has trained the part",
    "coordinator_listens": "coordinator started again: it listens",
    "coordinator_assigns": "... and the nodes have their assignments, from its start",
    "python_and_torch": "of which Python and `import torch` alone",
    "handoff_killed": "hand-off job killed: the coordinator says so",
    "handoff_back": "... and the next one goes on from the checkpoint, from the kill",
}


class Clocked:
    """A running cluster whose processes are hurt against the clock."""

    def __init__(self, folder: Path, rounds: int, heartbeat_seconds: float) -> None:
        port = free_port()
        folder.mkdir()
        text = CONFIG.format(rounds=rounds, port=port, heartbeat_seconds=heartbeat_seconds)
        (folder / "run.toml").write_text(text)
        self.cluster = Cluster(folder, f"127.0.0.1:{port}")
        self.cluster.coordinator()
        for name in ("a", "b"):
            self.cluster.node(name)

    def settle(self) -> None:
        """Wait for a round to begin, and a moment more: both nodes train."""
        self.cluster.listen()("coordinator", "cutting the round's parts")
        time.sleep(0.3)


def kill_node(clocked: Clocked) -> dict[str, float]:
    clocked.settle()
    until = clocked.cluster.listen()
    clocked.cluster.kill("b")
    found = {"node_killed": until("coordinator", "node b is gone")}
    until = clocked.cluster.listen()
    clocked.cluster.node("b")
    found["node_back"] = until("b", "assignment=")
    return found


def stop_node(clocked: Clocked, figure: str) -> dict[str, float]:
    clocked.settle()
    process = clocked.cluster.processes["b"]
    until = clocked.cluster.listen()
    process.send_signal(signal.SIGSTOP)
    found = {figure: until("coordinator", "node b has missed three heartbeats")}
    process.send_signal(signal.SIGCONT)
    until("coordinator", "node b is ready")
    return found


def kill_worker(clocked: Clocked) -> dict[str, float]:
    clocked.settle()
    worker = clocked.cluster.worker("a")
    assert worker is not None
    until = clocked.cluster.listen()
    worker.kill()
    found = {"worker_killed": until("coordinator", "node a failed assignment")}
    return found | {"worker_back": until("a", "update of")}


def kill_coordinator(clocked: Clocked) -> dict[str, float]:
    clocked.settle()
    clocked.cluster.kill("coordinator")
    time.sleep(1.0)  # nodes have begun to wait longer between their tries
    until = clocked.cluster.listen()
    clocked.cluster.start("coordinator", ["coordinator", "--config", "run.toml"])
    found = {"coordinator_listens": until("coordinator", "listening on")}
    return found | {"coordinator_assigns": until("coordinator", "waiting for part")}


def kill_handoff(clocked: Clocked) -> dict[str, float]:
    folder = clocked.cluster.run / "handoff"
    before = set(folder.glob("checkpoints/*/whole.json"))
    while not set(folder.glob("checkpoints/*/whole.json")) - before:
        time.sleep(0.05)
    resumed = (folder / "handoff.log").read_text().count("resumed from")
    until = clocked.cluster.listen()
    start = time.monotonic()
    for rank in clocked.cluster.ranks():
        rank.kill()
    found = {"handoff_killed": until("coordinator", "It starts again from")}
    while (folder / "handoff.log").read_text().count("resumed from") == resumed:
        time.sleep(0.005)
    return found | {"handoff_back": time.monotonic() - start}


def import_torch() -> dict[str, float]:
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return {"python_and_torch": time.monotonic() - start}


def measure(folder: Path, times: int) -> dict[str, float]:
    """All figures, in seconds."""
    several: dict[str, list[float]] = {}

    def repeat(work: Callable[[], dict[str, float]]) -> None:
        for _ in range(times):
            for name, seconds in work().items():
                several.setdefault(name, []).append(seconds)

    usual = Clocked(folder / "usual", 10_000, 2.0)
    try:
        repeat(lambda: kill_node(usual))
        repeat(lambda: stop_node(usual, "node_silent"))
        repeat(lambda: kill_worker(usual))
        repeat(lambda: kill_coordinator(usual))
    finally:
        usual.cluster.close()
    repeat(import_torch)
    fast = Clocked(folder / "fast", 4 * times, 0.5)
    try:
        repeat(lambda: stop_node(fast, "node_silent_fast"))
        repeat(lambda: kill_handoff(fast))
    finally:
        fast.cluster.close()
    return {name: statistics.median(several[name]) for name in NAMES}


def main() -> None:
    """Measure and show."""
    options = parser(__doc__ or "").parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="partsum-recovery-") as folder:
        figures = measure(Path(folder), 1 if options.quick else 5)
    table = Table("", "seconds")
    for name, seconds in figures.items():
        table.add_row(NAMES[name], f"{seconds:.2f}")
    wide_console().print(table)
    if options.json:
        write_figures(options.json, {f"{name}_seconds": s for name, s in figures.items()})


if __name__ == "__main__":
    main()
