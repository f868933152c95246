"""The hand-off on the coordinator's host and over two nodes, in the three ways, side by side.

    sudo python benchmarks/handoff_nodes.py [--quick] [--json FILE] [--rate 100mbit]

Fashion-MNIST, an MLP of two parts; one round of parts, then the same hand-off in turn: by DeepSpeed
on the coordinator's host with two ranks, apart (DiLoCo), together (ZeRO-2) and as a pipeline. The
coordinator and the two nodes are hosts of their own, in network namespaces with links of ``--rate``
each way; bytes are what the kernel counted on a node's link, in both directions, from the end of
the parts phase to the end of the run. All of them share this machine's cores.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, wide_console, write_figures
from tests.cluster import Cluster
from tests.faults.network import Network, why_not

NODES = ("a", "b")
TASK = 'name = "partsum.shared.tasks:image_mlp"\noptions = {{ widths = {widths} }}'
WAYS = {
    "host, 2 ranks": "local_world_size = 2",
    "apart": 'over = "nodes"\nhow = "apart"\nrounds = {rounds}',
    "together": 'over = "nodes"\nhow = "together"\nrounds = {rounds}',
    "pipeline": 'over = "nodes"\nhow = "pipeline"\nzero_stage = 1\nrounds = {rounds}',
}


def main() -> int:
    flags = parser("The hand-off over two nodes, in three ways, beside that on one host.")
    flags.add_argument("--rate", default="100mbit", help="of each host's link, as tc says it")
    given = flags.parse_args()
    if reason := why_not():
        print(f"this needs hosts of its own: {reason}", file=sys.stderr)
        return 1
    widths, epochs, rounds = ([128, 128], 0.2, 2) if given.quick else ([256, 256, 256], 1.0, 4)
    table = Table(box=None)
    for column in (
        "hand-off",
        "accuracy before",
        "after",
        "loss",
        "seconds",
        "MB on a node's link",
    ):
        table.add_column(column, justify="left" if column == "hand-off" else "right")
    figures: dict[str, float] = {}
    for way, section in WAYS.items():
        folder = given.folder / "handoff_nodes" / way.replace(" ", "_").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        summary, moved = play(folder, section.format(rounds=rounds), widths, epochs, given.rate)
        parts, handoff = summary["phases"]
        row = {
            "before": parts["accuracy"],
            "after": handoff["accuracy"],
            "loss": handoff["loss"],
            "seconds": handoff["wall_seconds"],
            "megabytes": max(moved) / 1e6,
        }
        figures |= {f"{way}/{name}": float(value) for name, value in row.items()}
        table.add_row(
            way,
            f"{row['before']:.2%}",
            f"{row['after']:.2%}",
            f"{row['loss']:.4f}",
            f"{row['seconds']:.1f}",
            f"{row['megabytes']:.2f}",
        )
    wide_console().print(table)
    if given.json:
        write_figures(given.json, figures)
    return 0


def play(
    folder: Path, section: str, widths: list[int], epochs: float, rate: str
) -> tuple[Any, list[int]]:
    """One run to its end: its summary, and what passed each node's link in the hand-off."""
    network = Network("coordinator", *NODES)
    cluster = Cluster(folder.resolve())
    try:
        for host in ("coordinator", *NODES):
            network.slow(host, rate, queue_bytes=1 << 20)
            cluster.places[host] = network.inside(host)
        cluster.configure(
            rounds=1,
            local_epochs=0.5,
            handoff=True,
            handoff_epochs=epochs,
            handoff_section=f"batch_size = 64\n{section}",
            task=TASK.format(widths=widths),
            more=f'host = "{network.address("coordinator")}"\ninsecure = true',
        )
        cluster.coordinator()
        for name in NODES:
            cluster.node(name)
        cluster.until("coordinator", "base 1:", 600)
        before = [passed(network, name) for name in NODES]
        while cluster.processes["coordinator"].poll() is None:
            after = [passed(network, name) for name in NODES]
            time.sleep(0.2)
        if cluster.wait("coordinator") != 0:
            raise SystemExit(cluster.log("coordinator"))
        return cluster.summary(), [b - a for a, b in zip(before, after, strict=True)]
    finally:
        cluster.close()
        network.close()


def passed(network: Network, host: str) -> int:
    """Bytes that the kernel counted on the host's link so far, both ways."""
    command = [*network.inside(host), "cat", "/proc/net/dev"]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    numbers = next(line for line in shown.splitlines() if "eth0:" in line).split(":")[1].split()
    return int(numbers[0]) + int(numbers[8])


if __name__ == "__main__":
    sys.exit(main())
