"""The command ``partsum bench swarm``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from partsum.shared.errors import EXIT_OK, ConfigError

_DESCRIPTION = """\
Let many light nodes join a coordinator at once, work for some rounds, drop out and come back. They
speak the whole protocol and train nothing: each gives back the weights that it was sent. Without
--coordinator one is started here, on a free port and in a temporary folder."""
_MOST_NODES = 10_000  # that a run remembers
_MOST_BYTES = 1 << 30


def add_bench(commands: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    bench = commands.add_parser(
        "bench", help="measure what a coordinator carries", description="Measurements."
    )
    kinds = bench.add_subparsers(title="measurements", metavar="WHAT", required=True)
    parser = kinds.add_parser(
        "swarm",
        help="a thousand light nodes: seconds to join and a round, CPU, memory",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--nodes", type=int, default=1000, metavar="N", help="light nodes (1000)")
    add("--rounds", type=int, default=3, metavar="N", help="rounds that they work for (3)")
    add(
        "--part-bytes",
        type=int,
        default=100_000,
        metavar="N",
        help="bytes of a part, where the coordinator is started here (100000)",
    )
    add(
        "--drop",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the nodes that drop out in each round, and come back (0.1)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of who drops out, and when (0)")
    add("--coordinator", metavar="HOST:PORT", help="one that runs already, without credentials")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run a swarm and print its figures; returns the exit code."""
    _check(options)
    from rich.console import Console

    from partsum.node.swarm.crowd import Orders
    from partsum.node.swarm.figures import table
    from partsum.node.swarm.swarm import measure

    orders = Orders(options.nodes, options.rounds, options.drop, options.seed)
    found = measure(orders, options.coordinator, options.part_bytes)
    Console().print(table([found]))
    print(
        f"{found.updates} updates, {found.drops} drop-outs, "
        f"{found.broken} connections broken beside these"
    )
    if options.json:
        found.write(options.json)
    return EXIT_OK


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for unusable flags."""
    from partsum.shared.transport import split_address

    if not 1 <= options.nodes <= _MOST_NODES:
        raise ConfigError(f"--nodes {options.nodes} is not between 1 and {_MOST_NODES}")
    if options.rounds < 1:
        raise ConfigError(f"--rounds {options.rounds}: at least one round is needed")
    if not 8 <= options.part_bytes <= _MOST_BYTES:
        raise ConfigError(f"--part-bytes {options.part_bytes} is not between 8 and {_MOST_BYTES}")
    if not 0 <= options.drop < 1:
        raise ConfigError(f"--drop {options.drop:g} is not a share from 0 to below 1")
    if options.coordinator:
        split_address(options.coordinator)
    if options.json and not options.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {options.json}: there is no folder {options.json.parent}")
