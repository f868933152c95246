"""What a swarm saw: figures, a table of them, JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True)
class Reading:
    """The coordinator's process at the begin of a round; zeros where it is on another host."""

    at: float  # monotonic seconds
    cpu_seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class Figures:
    """A swarm's figures. A round is everything from its first assignment to the next one's."""

    nodes: int
    part_bytes: int
    join_seconds: float
    round_seconds: tuple[float, ...]
    coordinator_cpu_seconds: tuple[float, ...]  # of each round; empty: on another host
    coordinator_resident_bytes: tuple[int, ...]  # as each round begins
    coordinator_peak_bytes: int  # over its whole life; 0: on another host
    bytes_sent: int  # of updates, by the nodes
    bytes_received: int
    updates: int
    drops: int
    broken: int  # connections, beside those that were dropped on purpose

    @property
    def median_round_seconds(self) -> float:
        """Of the median round; what a round costs when connections stand."""
        return statistics.median(self.round_seconds)

    @property
    def median_cpu_seconds(self) -> float:
        """The coordinator's, of the median round; 0 where it is on another host."""
        return statistics.median(self.coordinator_cpu_seconds or (0.0,))

    def write(self, path: Path) -> None:
        """Write them as a JSON object."""
        medians = {
            "median_round_seconds": self.median_round_seconds,
            "median_cpu_seconds": self.median_cpu_seconds,
        }
        path.write_text(json.dumps(asdict(self) | medians, indent=2) + "\n", encoding="utf-8")


def table(rows: Iterable[Figures]) -> Table:
    """One line for each swarm."""
    shown = Table(box=None, header_style="dim")
    for column in ("nodes", "joined in", "a round", "CPU a round", "peak memory", "in and out"):
        shown.add_column(column, justify="right")
    for row in rows:
        here = row.coordinator_peak_bytes > 0
        shown.add_row(
            str(row.nodes),
            f"{row.join_seconds:.2f} s",
            f"{row.median_round_seconds:.2f} s",
            f"{row.median_cpu_seconds:.2f} s" if here else "not here",
            f"{row.coordinator_peak_bytes / 1e6:,.0f} MB" if here else "not here",
            f"{(row.bytes_sent + row.bytes_received) / 1e6:,.1f} MB",
        )
    return shown
