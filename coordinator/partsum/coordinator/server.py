"""The coordinator as a process: opens its doors, serves one run to its end, closes them."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from partsum.coordinator.access import Access, open_access
from partsum.coordinator.conclude import Outcome, conclude
from partsum.coordinator.daemon import CoordinatorDaemon
from partsum.coordinator.gate import Gate
from partsum.coordinator.limits import connections
from partsum.coordinator.live.door import LiveDoor
from partsum.coordinator.run import Run
from partsum.coordinator.service import (
    CoordinatorService,
    OperatorService,
    add_coordinator_service,
)
from partsum.coordinator.summary import Summary
from partsum.coordinator.trackers.tracking import Tracking, chosen
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared.errors import PartsumError
from partsum.shared.metrics import MetricsServer
from partsum.shared.transport import SERVER_OPTIONS, in_address

log = logging.getLogger(__name__)

_GRACE_SECONDS = 2.0


async def serve(run: Run, ready: int | None = None) -> Summary:
    """Serve a run until it ends or is stopped; its summary and report are written then.

    Where ``ready`` is a descriptor, a line of JSON with the address and the folder is written to it
    once nodes can dial in.

    Raises PartsumError where a port is in use or the access folder cannot be used, before anything
    has begun.
    """
    now, config = time.time(), run.config.server
    access = open_access(config, now)
    for sentence in access.advice(config, now) if access else ():
        log.warning("%s", sentence)
    gate = Gate(access, config)
    few = ("grpc.max_allowed_incoming_connections", connections())
    server = grpc.aio.server(interceptors=[gate], options=[*SERVER_OPTIONS, few])
    tracking, summary = Tracking(run, chosen(run.config.trackers)), None
    try:
        host = in_address(config.host)
        address = f"{host}:{_bind(server, host, config.port, access)}"
        run.store.note(address=address, access=str(access.folder.path) if access else "")
        summary = await _serve(run, server, gate, access, address, ready, tracking)
        return summary
    finally:
        await server.stop(_GRACE_SECONDS)
        await asyncio.to_thread(tracking.end, summary)


async def _serve(
    run: Run,
    server: grpc.aio.Server,
    gate: Gate,
    access: Access | None,
    address: str,
    ready: int | None,
    tracking: Tracking,
) -> Summary:
    config = run.config.server
    daemon = CoordinatorDaemon(run, address)
    gate.count = lambda reason: daemon.metrics.denied.labels(reason).inc()
    service = CoordinatorService(daemon.desk, daemon.intake)
    add_coordinator_service(service, server)
    rpc.add_OperatorServiceServicer_to_server(OperatorService(daemon), server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    live = LiveDoor(daemon, access)
    metrics = MetricsServer(
        daemon.metrics.registry, config.metrics_host, config.metrics_port, daemon.health, live.pages
    )
    http = f"http://{in_address(config.metrics_host)}:{metrics.port}"
    log.info("run %s in %s", run.folder.name, run.folder)
    log.info("listening on %s; metrics on %s/metrics", address, http)
    log.info("live page on %s/", http)
    run.store.note(metrics_port=metrics.port)
    try:
        async with _signals(daemon):
            await server.start()
            await checks.set("", health_pb2.HealthCheckResponse.SERVING)
            daemon.start()
            tracking.start()
            if ready is not None:
                _announce(ready, address, run.folder)
            state, reason = await daemon.outcome
            registry = daemon.desk.registry
            return await asyncio.to_thread(conclude, run, registry, _outcome(state), reason)
    finally:
        await live.end()
        await daemon.close()
        metrics.close()


def _announce(ready: int, address: str, folder: Path) -> None:
    with open(ready, "w", encoding="utf-8") as pipe:
        print(json.dumps({"address": address, "folder": str(folder)}), file=pipe)


def _outcome(state: str) -> Outcome:
    if state == "finished":
        return "finished"
    return "stopped" if state == "stopped" else "failed"


def _bind(server: grpc.aio.Server, host: str, port: int, access: Access | None) -> int:
    try:
        if access is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            bound = server.add_secure_port(f"{host}:{port}", access.server_credentials())
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise PartsumError(
            f"cannot listen on {host}:{port}: the port is in use, or the address is not this "
            "machine's. Set another [server] port (0 takes a free one), or stop what listens there"
        )
    return bound


@asynccontextmanager
async def _signals(daemon: CoordinatorDaemon) -> AsyncIterator[None]:
    """Ctrl-C and SIGTERM end the daemon cleanly; the run can be resumed."""
    loop = asyncio.get_running_loop()
    for number, name in ((signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")):
        loop.add_signal_handler(number, daemon.stop, f"stopped by {name}")
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
