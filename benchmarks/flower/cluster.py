"""A SuperLink and SuperNodes on loopback, and a run of the app without training on them."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.flower.environment import Environment, FlowerError
from benchmarks.flower.log import read_rounds

_APP = Path(__file__).with_name("app")
_START_SECONDS = 60.0
_QUIET_SECONDS = 300.0  # for the next line of the log: a round of 400 MB takes 40 to 100 s
_END_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_TAIL = 600  # characters of what a process said that go into the error


@dataclass(frozen=True)
class Played:
    """A run that came to its end."""

    seconds: list[float]
    """Of every round after the first."""
    bytes_moved: int
    """Into and out of the SuperLink for this run, as it counts them."""


def play(case: Case, flower: Environment, folder: Path, database: str) -> Played:
    """Run the case. ``database`` is the SuperLink's: empty for one in memory.

    Raises:
        FlowerError: it did not come to its end; what it said is in the message.
    """
    folder.mkdir(parents=True)
    folder = folder.resolve()
    ports = [_free_port() for _ in range(case.nodes + 1)]
    log = folder / "rounds.log"
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{ports[0]}"\n'
        "insecure = true\n"
    )
    variables = {**flower.processes(), "FLWR_HOME": str(folder)}
    with _processes(folder, variables) as start:
        link = [flower.program("flower-superlink"), "--insecure", "--port", str(ports[0])]
        link += ["--disable-runtime-dependency-installation"]
        superlink = start("superlink", [*link, *(["--database", database] if database else [])])
        _await_listening(superlink, ports[0], folder)
        for number, port in enumerate(ports[1:]):
            node = [flower.program("flower-supernode"), "--insecure", "--port", str(port)]
            node += ["--superlink", f"127.0.0.1:{ports[0]}", "--node-config", f"number={number}"]
            start(f"supernode-{number}", node)
        config = f'log="{log}" width={case.width} layers={case.layers} rounds={case.rounds} '
        config += f"nodes={case.nodes}"
        flwr = flower.program("flwr")
        _answer([flwr, "run", str(_APP), "here", "-c", config, "--format", "json"], variables)
        _await_rounds(superlink, log, folder)
        seconds = read_rounds(log.read_text()).seconds(case.nodes)[1:]
        listed = _answer([flwr, "list", "here", "--format", "json"], variables)
        return Played(seconds, listed["runs"][0]["network-traffic"]["total-bytes"])


Start = Callable[[str, Sequence[str]], "subprocess.Popen[bytes]"]


@contextlib.contextmanager
def _processes(folder: Path, variables: dict[str, str]) -> Iterator[Start]:
    """Start processes, each with its own log; at the end they are ended, the last one first."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with open(folder / f"{name}.log", "wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=variables))
        return started[-1]

    try:
        yield start
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_listening(superlink: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while superlink.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise FlowerError(f"the SuperLink did not listen within {_START_SECONDS:g} s: {_tail(folder)}")


def _await_rounds(superlink: subprocess.Popen[bytes], log: Path, folder: Path) -> None:
    """Wait for the end of the last round, as long as the SuperLink lives and the log grows."""
    said, since = "", time.monotonic()
    while read_rounds(said).ended is None:
        if superlink.poll() is not None:
            raise FlowerError(f"the SuperLink ended with code {superlink.returncode}")
        if time.monotonic() - since > _QUIET_SECONDS:
            done = len(read_rounds(said).results)
            raise FlowerError(
                f"nothing happened for {_QUIET_SECONDS:g} s after {done} rounds: {_tail(folder)}"
            )
        time.sleep(_LOOK_SECONDS)
        now = log.read_text() if log.exists() else ""
        if now != said:
            said, since = now, time.monotonic()


def _answer(command: Sequence[str], variables: dict[str, str]) -> Any:
    """What a command of Flower's says, as JSON."""
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-_TAIL:]
        raise FlowerError(f"`{' '.join(command[1:3])}` ended with code {done.returncode}: {said}")
    return json.loads(done.stdout)


def _tail(folder: Path) -> str:
    """The errors that the SuperLink told of, or what it said last."""
    said = (folder / "superlink.log").read_text(errors="replace")
    errors = [line for line in said.splitlines() if "Error" in line]
    return errors[-1][:_TAIL] if errors else said[-_TAIL:]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
