"""What a coordinator carries: 10, 100 and 1000 light nodes that join, work, drop out and return.

    python benchmarks/swarm.py [--quick] [--json FILE] [--plot FILE]

Each size is one `partsum bench swarm`: a coordinator and one process with all of the nodes, which
speak the whole protocol over connections of their own and give back what they were sent. A round
is everything from its first assignment to the next round's; one node in ten drops out in each and
comes back within a second.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, wide_console, write_figures
from benchmarks.picture import picture

from partsum.shared.errors import PartsumError

SIZES = (10, 100, 1000)
QUICK = (10, 100)
ROUNDS = 5
PART_BYTES = 100_000
COLUMNS = {
    "join_seconds": "joined in, s",
    "median_round_seconds": "a round, s",
    "median_cpu_seconds": "coordinator's CPU a round, s",
    "coordinator_peak_bytes": "coordinator's peak memory, MB",
}

Figures = dict[str, Any]


def measure(nodes: int, folder: Path) -> Figures:
    """The figures of a swarm of so many nodes. Raises PartsumError where it fails."""
    path = folder / f"swarm-{nodes}.json"
    flags = ("--nodes", nodes, "--rounds", ROUNDS, "--part-bytes", PART_BYTES, "--json", path)
    command = (sys.executable, "-m", "partsum.shared", "bench", "swarm", *map(str, flags))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartsumError(f"a swarm of {nodes} nodes failed: {done.stderr.strip()}")
    found: Figures = json.loads(path.read_text(encoding="utf-8"))
    return found


def shown(found: Figures, name: str) -> float:
    """A figure in the unit of its column."""
    return float(found[name]) / (1e6 if name.endswith("bytes") else 1)


def table(swarms: Sequence[Figures]) -> Table:
    """One line for each size."""
    made = Table(box=None, header_style="dim")
    for column in ("nodes", *COLUMNS.values(), "updates", "drop-outs"):
        made.add_column(column, justify="right")
    for found in swarms:
        cells = [f"{shown(found, name):.3g}" for name in COLUMNS]
        made.add_row(str(found["nodes"]), *cells, str(found["updates"]), str(found["drops"]))
    return made


def plot(swarms: Sequence[Figures], path: Path) -> None:
    """Each figure against the number of nodes, beside what would be linear."""
    nodes = [found["nodes"] for found in swarms]
    with picture(path, len(COLUMNS), 3.6, 3.4) as axes:
        for axis, (name, title) in zip(axes, COLUMNS.items(), strict=True):
            values = [shown(found, name) for found in swarms]
            axis.plot(nodes, values, "o-")
            axis.set(xscale="log", xlabel="nodes", title=title)
            if name.endswith("bytes"):
                axis.set_ylim(0, 1.2 * max(values))
            else:
                linear = [values[-1] * count / nodes[-1] for count in nodes]
                axis.plot(nodes, linear, ":", color="grey", label="linear")
                axis.set_yscale("log")
                axis.legend(fontsize=8)
            axis.grid(alpha=0.3)


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures there, as PNG")
    options = flags.parse_args()
    folder = options.folder / "swarm"
    folder.mkdir(parents=True, exist_ok=True)
    swarms = [measure(nodes, folder) for nodes in (QUICK if options.quick else SIZES)]
    wide_console().print(table(swarms))
    if options.plot:
        plot(swarms, options.plot)
    if options.json:
        names = (*COLUMNS, "updates", "drops", "broken")
        flat = {f"{name}_{found['nodes']}nodes": found[name] for found in swarms for name in names}
        write_figures(options.json, flat)


if __name__ == "__main__":
    main()
