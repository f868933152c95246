"""Keeps a cluster's processes alive as a service manager would, and knows whom one could kill."""

from __future__ import annotations

import random
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.cluster import Cluster

from partsum.coordinator.folder import read_facts

KINDS = ("coordinator", "node", "worker", "hand-off")
PHASES = {
    "start-up": "",
    "waiting": "waiting for nodes",
    "plan": "cutting the round's parts",
    "train": "waiting for part",
    "merge": "merging the round's updates",
    "hand-off": "DeepSpeed trains",
    "conclude": "the run is done",
}
"""What a run is doing, and the words with which its coordinator's log says so."""

_PAUSE_SECONDS = 0.3  # the longest from a death to the restart


@dataclass(frozen=True)
class Victim:
    """A process that can be killed."""

    kind: str
    name: str  # of the cluster's process that it belongs to
    process: psutil.Process

    def kill(self) -> bool:
        """As the out-of-memory killer would; False where it has just ended by itself."""
        try:
            self.process.kill()
        except psutil.NoSuchProcess:
            return False
        return True


class Supervisor:
    """A coordinator and nodes that are started again whenever they die.

    Args:
        cluster: configured with a port of its own, so that a restarted coordinator is found.
        rng: draws the pauses before restarts.
        nodes: the names of the nodes.
    """

    def __init__(self, cluster: Cluster, rng: random.Random, nodes: Sequence[str]) -> None:
        self.cluster = cluster
        self.nodes = list(nodes)
        self._rng = rng
        self._due: dict[str, float] = {}  # when a dead process starts again
        self._seen = 0  # of the coordinator's log, by its earlier lives

    def begin(self) -> None:
        """Start everything."""
        for name in ("coordinator", *self.nodes):
            self._start(name)

    def tend(self) -> None:
        """Start again what has been dead for long enough. Call it often.

        Raises AssertionError where a process has ended otherwise than by being killed.
        """
        now = time.monotonic()
        for name in ("coordinator", *self.nodes):
            code = self.cluster.processes[name].poll()
            if code is None or code == 0:  # it was told that the run is done
                continue
            assert code == -9, f"{name} ended by itself, with {code}:\n{self.cluster.log(name)}"
            if now >= self._due.setdefault(name, now + self._rng.uniform(0, _PAUSE_SECONDS)):
                del self._due[name]
                self._start(name)

    def _start(self, name: str) -> None:
        if name == "coordinator":
            log = self.cluster.folder / "coordinator.log"
            self._seen = log.stat().st_size if log.exists() else 0
            self.cluster.start(name, ["coordinator", "--config", "run.toml"])
        else:
            self.cluster.node(name)

    def empty(self, name: str) -> None:
        """The node's disk is lost: it will come back with nothing."""
        shutil.rmtree(self.cluster.folder / name, ignore_errors=True)

    def replace(self, name: str, by: str | None) -> None:
        """The node never comes back; where ``by`` is given, a new one comes instead."""
        self.nodes.remove(name)
        self._due.pop(name, None)
        if by is not None:
            self.nodes.append(by)
            self._start(by)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return (self.cluster.folder / "runs" / "latest").resolve()

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, and its coordinator to its own."""
        ended = self.cluster.processes["coordinator"].poll() is not None
        return ended and read_facts(self.folder).get("state") == "finished"

    def phase(self) -> str:
        """What the coordinator that lives now, or died last, was doing."""
        said = (self.cluster.folder / "coordinator.log").read_bytes()[self._seen :].decode()
        last = {phase: said.rfind(words) for phase, words in PHASES.items() if words}
        phase = max(last, key=lambda name: last[name])
        return phase if last[phase] >= 0 else "start-up"

    def victims(self) -> list[Victim]:
        """Whom one could kill now."""
        found = []
        for name in ("coordinator", *self.nodes):
            process = self.cluster.processes[name]
            if process.poll() is None:
                kind = "coordinator" if name == "coordinator" else "node"
                found.append(Victim(kind, name, psutil.Process(process.pid)))
        workers = {name: self.cluster.worker(name) for name in self.nodes}
        found += [Victim("worker", name, worker) for name, worker in workers.items() if worker]
        ranks = self.cluster.ranks()
        return found + [Victim("hand-off", "coordinator", rank) for rank in ranks]


def free_port() -> int:
    """A port for a server that comes and goes.

    Below those that the kernel gives to outgoing connections: a node that dials such a port while
    nobody listens there can be given that very port, and then talks to itself.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
