"""What `partsum run` does: ask a coordinator over gRPC, or look into run folders."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import grpc
import grpc.aio
from rich.console import Console
from rich.table import Table

from partsum.coordinator.folder import count_rounds, list_runs, read_facts
from partsum.coordinator.summary import read_summary
from partsum.coordinator.watch import render_status, summary_table, watch
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, PartsumError, StateError
from partsum.shared.messages import RunStatus
from partsum.shared.transport import CHANNEL_OPTIONS, split_address

_CONNECT_SECONDS = 5.0


class UnreachableError(PartsumError):
    """No coordinator answers."""

    exit_code = EXIT_UNREACHABLE


def address_of(folder: Path, given: str | None) -> str:
    """The address to ask: as given, or as the run's folder has it."""
    if given is not None:
        split_address(given)
        return given
    facts = read_facts(folder)
    if not facts:
        raise StateError(
            f"there is no run in {folder}. Name one with --run (see `partsum run list`), or ask a "
            "coordinator with --coordinator HOST:PORT"
        )
    return str(facts.get("address", ""))


async def statuses(address: str) -> AsyncIterator[RunStatus]:
    """A run's status now and on every change, until it ends. Raises UnreachableError."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = rpc.OperatorServiceStub(channel)
        try:
            async for response in stub.Watch(pb.WatchRequest()):
                yield wire.status_from_wire(response.status)
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(
                f"no coordinator answers at {address or 'its address'}: {error.details()}"
            ) from error


def status(address: str, folder: Path, as_json: bool) -> int:
    """Print one look at a run; one that is not being served is told from its folder."""

    async def first() -> RunStatus:
        async for current in statuses(address):
            return current
        raise UnreachableError(f"the coordinator at {address} ended")

    try:
        current = asyncio.run(first())
    except UnreachableError:
        if not read_facts(folder):
            raise
        return _status_of_folder(folder, as_json)
    if as_json:
        values = asdict(current)
        print(json.dumps(_no_nan(values), indent=2))
    else:
        Console().print(render_status(current))
    return EXIT_OK


def _no_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _no_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _status_of_folder(folder: Path, as_json: bool) -> int:
    summary = folder / "summary.json"
    if as_json and summary.exists():
        print(summary.read_text(encoding="utf-8"))
    elif summary.exists():
        Console().print(summary_table(read_summary(summary), folder))
    else:
        state = read_facts(folder).get("state")
        rounds = count_rounds(folder)
        print(f"{folder}: {state}, {rounds} rounds committed, and no coordinator serves it now.")
        print(f"Go on with it: partsum coordinator --resume {folder}")
    return EXIT_OK


def watch_run(address: str) -> int:
    """Follow a run on the terminal; the exit code tells how it ended."""
    final = asyncio.run(watch(statuses(address), Console()))
    return EXIT_OK if final.phase == "finished" else EXIT_FAILED


def stop(address: str) -> int:
    """Ask a coordinator to end cleanly."""

    async def ask() -> None:
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            stub = rpc.OperatorServiceStub(channel)
            try:
                request = pb.StopRequest(reason="stopped by `partsum run stop`")
                await stub.Stop(request, timeout=_CONNECT_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise UnreachableError(
                    f"no coordinator answers at {address or 'its address'}: {error.details()}"
                ) from error

    asyncio.run(ask())
    print(f"the coordinator at {address} is stopping; its run can be resumed")
    return EXIT_OK


def list_all(folder: Path) -> int:
    """Print all runs below a folder."""
    runs = list_runs(folder)
    if not runs:
        print(f"no runs in {folder}")
        return EXIT_OK
    table = Table(box=None)
    for column in ("run", "state", "rounds", "coordinator"):
        table.add_column(column)
    for run in runs:
        serving = run.address if run.state == "running" else ""
        table.add_row(run.path.name, run.state, str(run.rounds), serving)
    Console().print(table)
    return EXIT_OK
