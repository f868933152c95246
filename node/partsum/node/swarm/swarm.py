"""A swarm from its begin to its figures."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import grpc
import grpc.aio
import psutil

from partsum.node import control
from partsum.node.swarm.crowd import Crowd, Orders
from partsum.node.swarm.figures import Figures, Reading
from partsum.node.swarm.host import Host, ended, hosted
from partsum.node.swarm.member import Member
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc
from partsum.shared.errors import EXIT_UNREACHABLE, ConfigError, PartsumError, RefusedError
from partsum.shared.handshake import refusal
from partsum.shared.messages import TaskSpec
from partsum.shared.transport import open_channel, tune_malloc

_FILES = 128  # of the process itself
_FILES_EACH = 2  # a node's connections
_DIAL_SECONDS = 20.0
_STALL_SECONDS = 120.0  # without a word from any node, something is wrong


class AbsentError(PartsumError):
    """Nobody answers at the coordinator's address."""

    exit_code = EXIT_UNREACHABLE


def measure(orders: Orders, coordinator: str | None, part_bytes: int) -> Figures:
    """Run a swarm against a coordinator, or against one of its own.

    Raises PartsumError where the coordinator does not start, is not there or fails, and where the
    swarm comes to a stop.
    """
    _allow_files(_FILES + _FILES_EACH * orders.nodes)
    tune_malloc()
    return asyncio.run(_interruptible(orders, coordinator, part_bytes))


def _allow_files(needed: int) -> None:
    """Raise this process's own limit on open files. Raises ConfigError where it cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"so many nodes need {needed} open files, but this process may have {hard}; raise the "
            f"limit (ulimit -Hn {needed}) or give fewer --nodes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _interruptible(orders: Orders, coordinator: str | None, part_bytes: int) -> Figures:
    """Ctrl-C and SIGTERM end the coordinator that was started, too."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if coordinator:
        return await _storm(coordinator, None, orders, part_bytes)
    with tempfile.TemporaryDirectory(prefix="partsum-swarm-") as folder:
        async with hosted(Path(folder), orders.nodes, orders.rounds, part_bytes) as host:
            return await _storm(host.address, host, orders, part_bytes)


async def _storm(address: str, host: Host | None, orders: Orders, part_bytes: int) -> Figures:
    ready = await _profile(address)
    process = psutil.Process(host.process.pid) if host else None
    readings: list[Reading] = []
    crowd = Crowd(address, orders, ready, lambda: readings.append(_read(process)))
    began = time.monotonic()
    async with _living(crowd, host):
        await crowd.over
    if host is not None:
        await ended(host)
    return Figures(
        nodes=orders.nodes,
        part_bytes=max(map(len, crowd.blobs.values()), default=part_bytes),
        join_seconds=crowd.joined_at - began,
        round_seconds=tuple(b.at - a.at for a, b in pairwise(readings)),
        coordinator_cpu_seconds=tuple(
            b.cpu_seconds - a.cpu_seconds for a, b in pairwise(readings) if process
        ),
        coordinator_resident_bytes=tuple(r.resident_bytes for r in readings if process),
        coordinator_peak_bytes=host.peak_bytes() if host else 0,
        bytes_sent=crowd.count["sent"],
        bytes_received=crowd.count["received"],
        updates=crowd.count["accepted"],
        drops=crowd.count["drops"],
        broken=crowd.count["broken"],
    )


@contextlib.asynccontextmanager
async def _living(crowd: Crowd, host: Host | None) -> AsyncIterator[None]:
    """All nodes of a crowd, joining at once, and whoever looks after them."""
    names = (f"swarm-{k:05d}" for k in range(crowd.orders.nodes))
    lives = [asyncio.create_task(Member(crowd, name).live()) for name in names]
    lives.append(asyncio.create_task(_watch_crowd(crowd)))
    if host is not None:
        lives.append(asyncio.create_task(_watch_host(crowd, host)))
    try:
        yield
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


async def _watch_crowd(crowd: Crowd) -> None:
    """A swarm of which nothing is heard any more has failed."""
    seen = (-1, -1)
    while (now := (crowd.joined, crowd.count.total())) != seen:
        seen = now
        await asyncio.sleep(_STALL_SECONDS)
    crowd.fail(
        PartsumError(
            f"nothing happened for {_STALL_SECONDS:g} s, with {crowd.joined} of "
            f"{crowd.orders.nodes} nodes joined; {crowd.words or 'nothing went wrong before'}"
        )
    )


async def _watch_host(crowd: Crowd, host: Host) -> None:
    try:
        await ended(host)
    except PartsumError as error:
        crowd.fail(error)
    else:
        crowd.end()


def _read(process: psutil.Process | None) -> Reading:
    if process is None:
        return Reading(time.monotonic(), 0.0, 0)
    used = process.cpu_times()
    return Reading(time.monotonic(), used.user + used.system, process.memory_info().rss)


async def _profile(address: str) -> pb.Ready:
    """What light nodes say of themselves: the run's own task and data, on a device of no speed.

    Raises AbsentError where no coordinator answers, RefusedError where it asks for credentials.
    """
    spec = await _ask_task(address)
    # Torch comes with it: seconds that somebody with a wrong address does without.
    from partsum.shared.task import data_digest, load_samples, load_task, task_digest

    task = await asyncio.to_thread(load_task, spec)
    samples = await asyncio.to_thread(load_samples, task.train, "training")
    return pb.Ready(device="swarm", task_digest=task_digest(spec), data_digest=data_digest(samples))


async def _ask_task(address: str) -> TaskSpec:
    """One node says Hello, hears of the task and goes; it comes back with the others."""
    async with open_channel(address, None) as channel:
        call = rpc.CoordinatorServiceStub(channel).Control(timeout=_DIAL_SECONDS)
        name = "swarm-00000"
        try:
            await call.write(control.hello(name, name, "swarm"))
            said = await call.read()
        except grpc.aio.AioRpcError as error:
            if words := await asyncio.to_thread(refusal, address, None):
                raise RefusedError(f"the coordinator at {address}: {words}") from error
            raise AbsentError(f"no coordinator answers at {address}: {error.details()}") from error
        finally:
            call.cancel()
    match control.incoming(said) if isinstance(said, pb.ControlResponse) else None:
        case control.Welcome(task=spec):
            return spec
        case control.Refused(reason):
            raise RefusedError(f"the coordinator at {address} said: {reason}")
    raise PartsumError(f"the coordinator at {address} ended before it said what the task is")
