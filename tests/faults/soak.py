"""Thousands of short rounds: memory, file handles and threads of every process must stay flat.

    python tests/faults/soak.py [--minutes 30] [--folder DIR]

A coordinator and three nodes; one of the nodes is killed every minute and comes back. Every process
that lives from the warm-up to the end is judged: the median of the last sixth of its samples
against the median of the second sixth. Exit code 1: resident memory grew by 2 % or more, or there
are more file handles or threads. Leaves soak.png and soak.json in the folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script

from tests.cluster import Cluster
from tests.faults.supervisor import free_port

CONFIG = """
name = "soak"
[task]
name = "soak_task:task"
options = {{ step_seconds = 0.02 }}
[parts]
count = 3
rounds = 1000000
local_epochs = 0.5
moments = "travel"
[training]
batch_size = 32
[rounds]
heartbeat_seconds = 0.5
min_nodes = 1
join_timeout_seconds = 1.0
[handoff]
enabled = false
[server]
port = {port}
metrics_port = 0
"""
NODES = ("a", "b", "c")
KILLED = "c"
GROWTH_LIMIT = 0.02
_SAMPLE_SECONDS = 2.0
_KILL_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """A process at a moment."""

    seconds: float  # since the soak began
    rss_bytes: int
    handles: int
    threads: int


@dataclass(frozen=True)
class Verdict:
    """How a process changed from the second sixth of the soak to the last: median values."""

    name: str
    before: Sample
    after: Sample

    @property
    def growth(self) -> float:
        """Of the resident memory, as a share of what it was."""
        return self.after.rss_bytes / self.before.rss_bytes - 1

    @property
    def flat(self) -> bool:
        """Whether it stayed within the limits."""
        more = self.after.handles > self.before.handles or self.after.threads > self.before.threads
        return self.growth < GROWTH_LIMIT and not more


class Soak:
    """A cluster that works, and is watched."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        (folder / "run.toml").write_text(CONFIG.format(port=port))
        shutil.copy(Path(__file__).with_name("soak_task.py"), folder)
        self.cluster = Cluster(folder, f"127.0.0.1:{port}")
        self.samples: dict[str, list[Sample]] = {}  # by process and pid
        self._begun = time.monotonic()

    def run(self, minutes: float) -> None:
        """Let it work for so long."""
        self.cluster.coordinator()
        for name in NODES:
            self.cluster.node(name)
        self._begun = time.monotonic()
        next_kill = _KILL_SECONDS
        while (now := time.monotonic() - self._begun) < 60 * minutes:
            for name, process in self._processes().items():
                self._look(name, process, now)
            if now >= next_kill:
                next_kill += _KILL_SECONDS
                self.cluster.kill(KILLED)
                self.cluster.node(KILLED)
            time.sleep(_SAMPLE_SECONDS)

    def end(self) -> float:
        """Stop the coordinator; the seconds that it takes to write its report."""
        begun = time.monotonic()
        self.cluster.processes["coordinator"].send_signal(signal.SIGTERM)
        assert self.cluster.wait("coordinator", 300) == 130, self.cluster.log("coordinator")
        return time.monotonic() - begun

    def _processes(self) -> dict[str, psutil.Process]:
        daemons = ("coordinator", *NODES)
        found = {name: psutil.Process(self.cluster.processes[name].pid) for name in daemons}
        workers = {f"worker of {name}": self.cluster.worker(name) for name in NODES}
        return found | {name: worker for name, worker in workers.items() if worker is not None}

    def _look(self, name: str, process: psutil.Process, now: float) -> None:
        try:
            with process.oneshot():
                sample = Sample(
                    now, process.memory_info().rss, process.num_fds(), process.num_threads()
                )
        except psutil.Error:  # it has just died
            return
        self.samples.setdefault(f"{name} ({process.pid})", []).append(sample)


def judge(samples: dict[str, list[Sample]], seconds: float) -> list[Verdict]:
    """A verdict on each process that lived from the first sixth of the soak to its end."""
    verdicts = []
    for name, seen in samples.items():
        second = [s for s in seen if seconds / 6 <= s.seconds < seconds / 3]
        last = [s for s in seen if s.seconds >= seconds * 5 / 6]
        if seen[0].seconds < seconds / 6 and last and last[-1].seconds > seconds * 0.95:
            verdicts.append(Verdict(name, _median(second), _median(last)))
    return verdicts


def _median(samples: Sequence[Sample]) -> Sample:
    columns = zip(*(asdict(sample).values() for sample in samples), strict=True)
    seconds, rss, handles, threads = (statistics.median_low(column) for column in columns)
    return Sample(seconds, int(rss), int(handles), int(threads))


def table(verdicts: Sequence[Verdict]) -> Table:
    """What changed."""
    made = Table("", "MB before", "MB after", "growth", "handles", "threads", "")
    for v in verdicts:
        made.add_row(
            v.name,
            f"{v.before.rss_bytes / 1e6:.1f}",
            f"{v.after.rss_bytes / 1e6:.1f}",
            f"{100 * v.growth:+.2f} %",
            f"{v.before.handles} -> {v.after.handles}",
            f"{v.before.threads} -> {v.after.threads}",
            "flat" if v.flat else "GROWS",
        )
    return made


def draw(samples: dict[str, list[Sample]], path: Path) -> None:
    """Memory over time, one line for each process, in the colour of its kind."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    colours = {"coordinator": "tab:blue", "worker": "tab:orange", "node": "tab:green"}
    for name, seen in samples.items():
        kind = next((kind for kind in colours if name.startswith(kind)), "node")
        minutes, memory = [s.seconds / 60 for s in seen], [s.rss_bytes / 1e6 for s in seen]
        axes.plot(minutes, memory, color=colours[kind], linewidth=1)
    for kind, colour in colours.items():
        axes.plot([], [], color=colour, label=kind)
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend(loc="center right", frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Soak, judge, show; returns the exit code."""
    parser = argparse.ArgumentParser(description="Thousands of rounds, and flat memory.")
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        help="how long (30); in a minute the warm-up counts as growth",
    )
    parser.add_argument("--folder", type=Path, help="for runs, logs and results (temporary)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="partsum-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=110)
    console.print(f"{options.minutes:g} minutes in {folder}")
    soak = Soak(folder)
    try:
        soak.run(options.minutes)
        seconds = soak.end()
    finally:
        soak.cluster.close()
    rounds = len(json.loads((soak.cluster.run / "summary.json").read_text())["rounds"])
    verdicts = judge(soak.samples, 60 * options.minutes)
    draw(soak.samples, folder / "soak.png")
    (folder / "soak.json").write_text(
        json.dumps({name: [asdict(s) for s in seen] for name, seen in soak.samples.items()})
    )
    console.print(table(verdicts))
    console.print(f"{rounds} rounds; the report of them took {seconds:.1f} s at the end")
    return 0 if verdicts and all(verdict.flat for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
