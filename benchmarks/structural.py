"""Structural experts beside the dense layer that they are made of: seconds, forward and backward.

    python benchmarks/structural.py [--quick] [--json FILE] [--plot FILE]

A transformer's MLP (d -> 4d, GELU, 4d -> d, float32) on 2048 tokens, by itself and as 64 structural
experts of 7 slices, of which a router chooses 1 or 2 for each token; one thread, in turn within one
process, and the best of the runs. Seconds are the process's own, which other work on the machine
changes little. Memory is kept by malloc as in a node (`transport.tune_malloc`). The router is
fresh, so experts are used about alike: with one, a token takes 4 segments on average.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, wide_console, write_figures
from benchmarks.picture import bars, picture

from partsum.shared.structural import Structures, TopKRouter, structural_mlp
from partsum.shared.transport import tune_malloc

TOKENS = 2048
WIDTHS = (256, 512, 1024)
EXPERTS = 64
DENSE = "dense layer"
Found = Mapping[tuple[int, str], tuple[float, float]]
"""Seconds forward and backward, by width and kind of layer."""


def kinds(width: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The dense layer, and its experts in some ways, by name."""
    up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    structures = Structures.of(EXPERTS)

    def dense(inputs: Tensor) -> Tensor:
        found: Tensor = down(functional.gelu(up(inputs)))
        return found

    def experts(top_k: int, recompute: bool = False) -> Callable[[Tensor], Tensor]:
        router = TopKRouter(width, structures, top_k)

        def run(inputs: Tensor) -> Tensor:
            return structural_mlp(inputs, [up], functional.gelu, down, router, recompute)

        return run

    return {
        DENSE: dense,
        "1 of 64 experts": experts(1),
        "1 of 64, recomputed": experts(1, recompute=True),
        "2 of 64 experts": experts(2),
    }


def measure(width: int, runs: int) -> dict[str, tuple[float, float]]:
    """The least CPU seconds forward and backward of each kind, over some runs in turn."""
    torch.manual_seed(0)
    inputs = torch.randn(TOKENS, width, requires_grad=True)
    gradient = torch.randn(TOKENS, width)
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(runs + 1):  # the first one warms up
        for name, layer in kinds(width).items():
            begun = time.process_time()
            output = layer(inputs)
            between = time.process_time()
            torch.autograd.backward(output, gradient)
            ended = time.process_time()
            seen.setdefault(name, []).append((between - begun, ended - between))
    return {name: min(times[1:], key=sum) for name, times in seen.items()}


def ratio(found: Found, width: int, kind: str) -> float:
    """Times the dense layer's seconds, forward and backward together."""
    return sum(found[width, kind]) / sum(found[width, DENSE])


def table(found: Found) -> Table:
    """A row for each width and kind."""
    made = Table(title=f"{TOKENS} tokens, d -> 4d -> d", box=None, header_style="dim")
    for column in ("d", "layer", "forward", "backward", "x dense"):
        made.add_column(column, justify="left" if column == "layer" else "right")
    for (width, kind), (forward, backward) in found.items():
        times = (f"{forward * 1e3:,.0f} ms", f"{backward * 1e3:,.0f} ms")
        made.add_row(str(width), kind, *times, f"{ratio(found, width, kind):.2f}")
    return made


def draw(found: Found, path: Path) -> None:
    """Times the dense layer's seconds, by width."""
    widths = sorted({width for width, _ in found})
    names = [kind for width, kind in found if width == widths[0] and kind != DENSE]
    with picture(path, width=8) as (axis,):
        series = {name: [ratio(found, width, name) for width in widths] for name in names}
        bars(axis, [f"d = {width}" for width in widths], series)
        axis.axhline(1.5, ls="--", color="grey")
        axis.set_ylabel("seconds, times the dense layer's")


def main() -> int:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    tune_malloc()
    torch.set_num_threads(1)
    widths, runs = (WIDTHS[:2], 3) if options.quick else (WIDTHS, 10)
    found = {
        (width, kind): times for width in widths for kind, times in measure(width, runs).items()
    }
    wide_console().print(table(found))
    if options.json:
        figures = {f"d{w} {kind} x dense": ratio(found, w, kind) for w, kind in found}
        write_figures(options.json, figures)
    if options.plot:
        draw(found, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
