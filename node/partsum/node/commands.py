"""The commands ``partsum node`` and ``partsum bench``."""

from __future__ import annotations

import argparse
import logging
import os
import re
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from partsum.node.swarm.command import add_bench
from partsum.shared.errors import EXIT_OK, EXIT_STOPPED, ConfigError

if TYPE_CHECKING:
    import random

    from partsum.node.loop import Node
    from partsum.node.metrics import NodeMetrics
    from partsum.node.process import WorkerProcess
    from partsum.node.state import NodeState
    from partsum.shared.metrics import MetricsServer

METRICS_PORT = 9465

_DESCRIPTION = """\
Join a coordinator's run and train the parts that it gives out, until the run is finished.
The node dials out only, so it may sit behind a NAT or firewall (but for a gang: docs/gangs.md). It
needs the run's task (and, unless the coordinator streams samples, the data set) on this host."""

log = logging.getLogger(__name__)


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register this house's commands."""
    add_bench(commands)
    parser = commands.add_parser(
        "node",
        help="train parts for a coordinator",
        description=_DESCRIPTION,
        epilog="example: partsum node --coordinator 192.0.2.10:50061 --device cuda:0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--coordinator", required=True, metavar="HOST:PORT", help="where the coordinator listens")
    add("--device", default="auto", metavar="auto|cpu|cuda:N", help="where to train (auto)")
    add(
        "--credentials",
        type=Path,
        metavar="FILE|DIR",
        help="what `partsum certs node` or `partsum tokens node` wrote, where the coordinator asks "
        "for it; of a folder of such files, the first that no other node here uses",
    )
    add("--name", help="this node's name, unique in the run (the credentials', or host and device)")
    add(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where blobs and finished updates are kept (~/.local/state/partsum/NAME)",
    )
    add(
        "--gang-host",
        metavar="ADDRESS",
        help="this host's address as other nodes reach it, where nodes train in a gang (the one on "
        "the way to the coordinator)",
    )
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (as torch chooses)")
    add(
        "--cache-gib",
        type=float,
        default=1.0,
        metavar="G",
        help="disk space for blobs that are not in use (1)",
    )
    add(
        "--metrics-port",
        metavar="PORT|off",
        help="port of /metrics and /healthz; 0 takes a free one "
        f"({METRICS_PORT}, or a free one if that is taken)",
    )
    add(
        "--metrics-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where they listen, for a Prometheus on another host; they ask for no credentials and "
        "tell no weights (127.0.0.1)",
    )
    add("--verbose", action="store_true", help="log more")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run a node until its end; returns the exit code."""
    from partsum.shared import transport
    from partsum.shared.logs import set_up_logging

    transport.tune_malloc()
    set_up_logging(options.verbose)
    _check(options)

    import asyncio

    return asyncio.run(_live(options))


def _check(options: argparse.Namespace) -> None:
    """Fill in the defaults that depend on others. Raises ConfigError for unusable flags."""
    from partsum.shared.credentials import load_credentials
    from partsum.shared.transport import split_address

    split_address(options.coordinator)
    file = options.credentials
    options.state = None
    if file and file.is_dir():
        _choose(options)
    else:
        options.credentials = load_credentials(file, "node") if file else None
    if options.credentials:
        known = options.credentials.name
        if options.name not in {None, known}:
            raise ConfigError(
                f"--name {options.name!r}: the credentials {file} are those of {known}; leave out "
                "--name, or let the coordinator's host make credentials for that name"
            )
        options.name = known
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise ConfigError(f"--device {options.device!r} is not auto, cpu or cuda:N")
    port = options.metrics_port
    if port not in {None, "off"} and not (port.isdigit() and int(port) < 65536):
        raise ConfigError(f"--metrics-port {port!r} is neither a port nor off")
    if options.threads < 0:
        raise ConfigError(f"--threads {options.threads} is negative; 0 leaves it to torch")
    if options.name is None:
        host = socket.gethostname().partition(".")[0]
        options.name = f"{host}-{options.device.replace(':', '')}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", options.name):
        raise ConfigError(
            f"--name {options.name!r} may hold letters, digits, '_', '.' and '-' only, 64 at most, "
            "and begins with a letter or digit"
        )
    if options.state_dir is None:
        options.state_dir = _states() / options.name


def _choose(options: argparse.Namespace) -> None:
    """Take free credentials out of the folder, and their state. Raises ConfigError, StateError."""
    from partsum.node.identity import take_free

    if options.state_dir is not None:
        raise ConfigError(
            f"--state-dir {options.state_dir}: with a folder of credentials each node has a state "
            f"folder by its name, below {_states()}. Leave --state-dir out, or name one file with "
            "--credentials"
        )
    options.credentials, options.state = take_free(options.credentials, _states(), options.name)


def _states() -> Path:
    """Where nodes that are given no state folder have theirs."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "partsum"


async def _live(options: argparse.Namespace) -> int:
    """Set up, run until the run, a refusal or a signal ends it, and clean up."""
    import asyncio
    import random
    import signal

    from partsum.node.metrics import NodeMetrics
    from partsum.node.state import NodeState

    state = options.state or NodeState(options.state_dir)
    metrics = NodeMetrics(state.folder)
    # Jitter is all that it is for; two nodes must not draw the same.
    rng = random.Random(state.instance)
    node, worker = _assemble(options, state, metrics, rng)
    server = None if options.metrics_port == "off" else _serve_metrics(options, metrics, node)
    me = asyncio.current_task()
    assert me is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, me.cancel)
    try:
        log.info("node name=%s state=%s", options.name, options.state_dir)
        log.info("finished: %s", await node.run())
        return EXIT_OK
    except asyncio.CancelledError:
        log.info("stopped")
        return EXIT_STOPPED
    finally:
        await worker.close()
        if server is not None:
            server.close()
        state.close()


def _serve_metrics(options: argparse.Namespace, metrics: NodeMetrics, node: Node) -> MetricsServer:
    """Open the HTTP door. Several nodes on one host need no flags: the first has the usual port."""
    from partsum.shared.errors import PartsumError
    from partsum.shared.metrics import MetricsServer
    from partsum.shared.transport import in_address

    host = options.metrics_host
    open_door = partial(MetricsServer, metrics.registry, host, health=node.health)
    try:
        server = open_door(port=int(options.metrics_port or METRICS_PORT))
    except PartsumError:
        if options.metrics_port is not None:
            raise
        server = open_door(port=0)
    log.info("metrics on http://%s:%d/metrics", in_address(host), server.port)
    return server


def _assemble(
    options: argparse.Namespace, state: NodeState, metrics: NodeMetrics, rng: random.Random
) -> tuple[Node, WorkerProcess]:
    """The node and its worker, out of their parts."""
    import sys

    from partsum.node.blobs import BlobCache
    from partsum.node.client import Client
    from partsum.node.loop import Node
    from partsum.node.meeting import own_address
    from partsum.node.process import WorkerProcess
    from partsum.node.worker import WorkerSettings, serve

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a task may lie where the command is started
    settings = WorkerSettings(options.device, options.threads, options.verbose)
    worker = WorkerProcess(partial(serve, settings=settings), rng, metrics.worker_restarts.inc)
    client = Client(
        options.coordinator,
        options.name,
        lambda way, size: metrics.bytes.labels(way).inc(size),
        options.credentials,
    )
    blobs = BlobCache(state.blobs, int(options.cache_gib * 2**30))

    def gang_host() -> str:
        return options.gang_host or own_address(options.coordinator)

    node = Node(client, worker, state, blobs, metrics, options.name, rng, gang_host=gang_host)
    return node, worker
