"""What `partsum run` does: ask a coordinator over gRPC, or look into run folders."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import grpc.aio
from rich.console import Console
from rich.table import Table

from partsum.coordinator.access import AccessFolder
from partsum.coordinator.folder import RunFolder, count_rounds, list_runs, read_facts
from partsum.coordinator.summary import read_summary
from partsum.coordinator.watch import render_status, summary_table, watch
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared import wire
from partsum.shared.credentials import Credentials, load_credentials
from partsum.shared.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_UNREACHABLE,
    ConfigError,
    PartsumError,
    RefusedError,
    StateError,
)
from partsum.shared.handshake import refusal
from partsum.shared.messages import RunStatus
from partsum.shared.transport import open_channel, split_address

_CONNECT_SECONDS = 5.0
_REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}  # what only a coordinator that is there says


class UnreachableError(PartsumError):
    """No coordinator answers."""

    exit_code = EXIT_UNREACHABLE


@dataclass(frozen=True)
class Target:
    """Whom to ask, and as whom.

    ``folder`` is the run's, where one is meant: whoever else has its address by now is not asked.
    """

    address: str
    folder: Path | None = None
    credentials: Credentials | None = None


def target_of(folder: Path, given: str | None, credentials: Path | None = None) -> Target:
    """The coordinator at the given address, or the one that the run's folder speaks of.

    On the coordinator's own host the folder tells where an operator's credentials are.
    Raises ConfigError, StateError, UnreachableError.
    """
    shown = load_credentials(credentials, "operator") if credentials else None
    if given is not None:
        split_address(given)
        return Target(given, None, shown)
    facts = read_facts(folder)
    if not facts:
        raise StateError(
            f"there is no run in {folder}. Name one with --run (see `partsum run list`), or ask a "
            "coordinator with --coordinator HOST:PORT"
        )
    if facts.get("state") != "running":  # another run may have its address by now
        raise _not_served(folder)
    if shown is None and facts.get("access"):
        shown = _own_credentials(Path(str(facts["access"])))
    return Target(str(facts.get("address", "")), folder, shown)


def _own_credentials(access: Path) -> Credentials:
    try:
        return load_credentials(AccessFolder(access).operator, "operator")
    except ConfigError as error:
        raise ConfigError(
            f"this run's coordinator asks for credentials: give --credentials FILE (`partsum certs "
            f"operator NAME` or `partsum tokens operator NAME` makes one). {error}"
        ) from error


def _not_served(folder: Path) -> UnreachableError:
    facts = read_facts(folder)
    state = "unfinished" if facts.get("state") == "running" else facts.get("state")
    text = f"no coordinator serves {folder.resolve()} now: {state}"
    return UnreachableError(text + (f", {facts['reason']}" if facts.get("reason") else ""))


async def statuses(target: Target) -> AsyncIterator[RunStatus]:
    """A run's status now and on every change, until it ends.

    Raises UnreachableError, or RefusedError where the coordinator will not tell us.
    """
    if not target.address and target.folder is not None:
        raise _not_served(target.folder)
    async with open_channel(target.address, target.credentials) as channel:
        stub = rpc.OperatorServiceStub(channel)
        try:
            async for response in stub.Watch(pb.WatchRequest()):
                status = wire.status_from_wire(response.status)
                if target.folder is not None and Path(status.folder) != target.folder.resolve():
                    raise _not_served(target.folder)
                yield status
        except grpc.aio.AioRpcError as error:
            raise await _explained(target, error) from error


async def _explained(target: Target, error: grpc.aio.AioRpcError) -> PartsumError:
    if error.code() in _REFUSALS:
        return RefusedError(f"the coordinator at {target.address} says: {error.details()}")
    reason = await asyncio.to_thread(refusal, target.address, target.credentials)
    if reason:
        return RefusedError(reason)
    if target.folder is not None:
        return _not_served(target.folder)
    details = (error.details() or error.code().name).rpartition("last error: ")[2]
    return UnreachableError(f"no coordinator answers at {target.address}: {details}")


async def _first(target: Target) -> RunStatus:
    async for current in statuses(target):
        return current
    raise UnreachableError(f"the coordinator at {target.address} ended")


def status(folder: Path, given: str | None, credentials: Path | None, as_json: bool) -> int:
    """Print one look at a run; one that is not being served is told from its folder."""
    try:
        current = asyncio.run(_first(target_of(folder, given, credentials)))
    except UnreachableError:
        if given is not None:
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
    facts = read_facts(folder)
    state, reason, rounds = facts.get("state"), facts.get("reason"), count_rounds(folder)
    told = summary.exists() and state != "running"  # a resumed run outdates its summary
    if as_json and told:
        print(summary.read_text(encoding="utf-8"))
        return EXIT_OK
    if as_json:
        print(json.dumps({"run": folder.resolve().name, "phase": state, "round": rounds}, indent=2))
        return EXIT_OK
    if told:
        Console().print(summary_table(read_summary(summary), folder))
    else:
        print(
            f"{folder.resolve()}: {'unfinished' if state == 'running' else state}"
            f"{f' ({reason})' if reason else ''}, {rounds} rounds committed, "
            "and no coordinator serves it now."
        )
    if state != "finished":
        print(f"Go on with it: partsum coordinator --resume {folder}")
    return EXIT_OK


def watch_run(folder: Path, given: str | None, credentials: Path | None) -> int:
    """Follow a run on the terminal; the exit code tells how it ended."""
    target = target_of(folder, given, credentials)
    final = asyncio.run(watch(statuses(target), Console()))
    return EXIT_OK if final.phase == "finished" else EXIT_FAILED


def stop(folder: Path, given: str | None, credentials: Path | None) -> int:
    """Ask a coordinator to end cleanly."""
    target = target_of(folder, given, credentials)

    async def ask() -> None:
        await _first(target)
        async with open_channel(target.address, target.credentials) as channel:
            stub = rpc.OperatorServiceStub(channel)
            try:
                request = pb.StopRequest(reason="stopped by `partsum run stop`")
                await stub.Stop(request, timeout=_CONNECT_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise await _explained(target, error) from error

    asyncio.run(ask())
    print(f"the coordinator at {target.address} is stopping; its run can be resumed")
    return EXIT_OK


def _is_served(run: RunFolder) -> bool:
    """Whether its coordinator answers; one that was killed could not write that it is gone."""
    try:
        asyncio.run(_first(target_of(run.path, None)))
    except UnreachableError:
        return False
    except (RefusedError, ConfigError):
        return True  # it answers, though not to us
    return True


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
        served = run.state == "running" and _is_served(run)
        state = "unfinished" if run.state == "running" and not served else run.state
        table.add_row(run.path.name, state, str(run.rounds), run.address if served else "")
    Console().print(table)
    return EXIT_OK
