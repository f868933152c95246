"""The coordinator's peak memory by model size and number of nodes: a model, not a model a node.

    python benchmarks/memory.py [--quick] [--json FILE] [--plot FILE]

A real coordinator; its nodes are the light ones of `partsum bench swarm`, which speak the whole
protocol and give back the weights that they were sent. Federated averaging of the whole model,
three rounds and the evaluation after the last. A model is two square matrices in float32, each
half of it: what goes tensor by tensor has the largest ones. The peak is the kernel's, over the
process's whole life; about 0.3 GB of it is Python with PyTorch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, wide_console, write_figures
from benchmarks.picture import picture

from partsum.node.swarm.crowd import Orders
from partsum.node.swarm.swarm import measure
from partsum.shared.errors import PartsumError

MODEL_MEGABYTES = (10, 100, 400)
NODES = (2, 4, 16)
ROUNDS = 3
Found = Mapping[tuple[int, int], int]
"""Peak bytes by the model's MB and the number of nodes."""


def allowed_bytes(megabytes: float) -> float:
    """What we hold ourselves to: 1.6 times the model, and 200 MB."""
    return (1.6 * megabytes + 200) * 1e6


def table(found: Found) -> Table:
    """A row for each model, a column for each number of nodes."""
    models, nodes = (sorted({key[axis] for key in found}) for axis in (0, 1))
    made = Table(title="coordinator's peak memory", box=None, header_style="dim")
    for column in ("model", *(f"{count} nodes" for count in nodes), "to stay under"):
        made.add_column(column, justify="right")
    for model in models:
        peaks = [found[model, count] for count in nodes]
        cells = (f"{peak / 1e6:,.0f} MB, {peak / 1e6 / model:.2f} x" for peak in peaks)
        made.add_row(f"{model} MB", *cells, f"{allowed_bytes(model) / 1e6:,.0f} MB")
    return made


def draw(found: Found, path: Path) -> None:
    """Peak against the model, a line for each number of nodes, and the line to stay under."""
    models, nodes = (sorted({key[axis] for key in found}) for axis in (0, 1))
    with picture(path, width=7) as (axis,):
        for count in nodes:
            peaks = [found[model, count] / 1e6 for model in models]
            axis.plot(models, peaks, marker="o", label=f"{count} nodes")
        limit = [allowed_bytes(model) / 1e6 for model in models]
        axis.plot(models, limit, "--", color="grey", label="1.6 x model + 200 MB")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("model, MB of float32")
        axis.set_ylabel("coordinator's peak resident memory, MB")
        axis.grid(alpha=0.3)
        axis.legend()


def main() -> int:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    models, nodes = (part[: 2 if options.quick else None] for part in (MODEL_MEGABYTES, NODES))
    console = wide_console()
    found: dict[tuple[int, int], int] = {}
    try:
        for model in models:
            for count in nodes:
                seen = measure(Orders(count, ROUNDS, drop=0.0, seed=0), None, model * 1_000_000)
                found[model, count] = seen.coordinator_peak_bytes
                console.print(f"{model} MB, {count} nodes: {found[model, count] / 1e6:,.0f} MB")
    except PartsumError as error:
        print(f"memory: {error}", file=sys.stderr)
        return error.exit_code
    console.print(table(found))
    if options.json:
        figures = {
            f"{model}MB_{count}nodes_peak_bytes": float(v) for (model, count), v in found.items()
        }
        write_figures(options.json, figures)
    if options.plot:
        draw(found, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
