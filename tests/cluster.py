"""A cluster of real processes on loopback, and the means to hurt it."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAM = (sys.executable, "-m", "partsum.shared")

CONFIG = """
name = "test"
seed = 3
{top}
[task]
{task}
[parts]
count = 2
rounds = {rounds}
local_epochs = {local_epochs}
{parts}
[training]
learning_rate = 3e-3
batch_size = 32
[rounds]
heartbeat_seconds = 0.5
{rounds_section}
[handoff]
enabled = {handoff}
epochs = {handoff_epochs}
{handoff_section}
[server]
port = {port}
metrics_port = 0
{more}
"""
DIGITS = """\
name = "partsum.shared.tasks:digits"
options = { widths = [32, 32] }"""


class Cluster:
    """A coordinator and its nodes; every process ends with the test.

    ``address`` is where the coordinator listens, if that is known before it runs.
    """

    def __init__(self, folder: Path, address: str = "") -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = address
        self.places: dict[str, list[str]] = {}  # what a process's command begins with
        self.run = Path()

    def configure(
        self,
        rounds: int = 2,
        local_epochs: float = 1.0,
        handoff: bool = False,
        port: int = 0,
        top: str = "",
        task: str = DIGITS,
        parts: str = "",
        rounds_section: str = "",
        handoff_section: str = "",
        handoff_epochs: float = 3.0,
        more: str = "",
    ) -> None:
        """Write the run's config."""
        text = CONFIG.format(
            rounds=rounds,
            local_epochs=local_epochs,
            handoff=str(handoff).lower(),
            port=port,
            top=top,
            task=task,
            parts=parts,
            rounds_section=rounds_section,
            handoff_section=handoff_section,
            handoff_epochs=handoff_epochs,
            more=more,
        )
        (self.folder / "run.toml").write_text(text)

    def coordinator(self, *flags: str) -> None:
        """Start a coordinator and wait until nodes can dial in."""
        ours, theirs = os.pipe()
        arguments = ["coordinator", "--config", "run.toml", "--ready-fd", str(theirs), *flags]
        self.start("coordinator", arguments, (theirs,))
        os.close(theirs)
        with open(ours) as pipe:
            assert select.select([pipe], [], [], 60)[0], self.log("coordinator")
            line = pipe.readline()
        assert line, self.log("coordinator")
        said = json.loads(line)
        self.address, self.run = said["address"], Path(said["folder"])

    def node(
        self, name: str, address: str = "", folder: Path | None = None, metrics: str = "off"
    ) -> None:
        """Start a node, where given in another working folder; ``metrics`` is its port."""
        arguments = ["node", "--coordinator", address or self.address, "--name", name]
        arguments += ["--state-dir", str(self.folder / name), "--device", "cpu"]
        self.start(name, [*arguments, "--threads", "1", "--metrics-port", metrics], folder=folder)

    def start(
        self,
        name: str,
        arguments: list[str],
        keep: tuple[int, ...] = (),
        folder: Path | None = None,
    ) -> None:
        """Start a partsum process; its output goes to NAME.log."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self.places.get(name, []), *PROGRAM, *arguments],
                cwd=folder or self.folder,
                stdout=log,
                stderr=log,
                pass_fds=keep,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """As the out-of-memory killer would."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def worker(self, name: str) -> psutil.Process | None:
        """The process that trains for a node, if there is one."""
        try:
            children = psutil.Process(self.processes[name].pid).children()
            found = [c for c in children if "multiprocessing.spawn" in " ".join(c.cmdline())]
        except psutil.Error:  # it died while it was looked at
            return None
        return found[0] if found else None

    def ranks(self) -> list[psutil.Process]:
        """The processes of the hand-off."""
        try:
            children = psutil.Process(self.processes["coordinator"].pid).children()
            return [c for c in children if any("handoff_job" in word for word in c.cmdline())]
        except psutil.Error:
            return []

    def limit_files(self, name: str, limit_bytes: int) -> None:
        """From now on no file of the process may grow beyond this."""
        pid, limits = self.processes[name].pid, (limit_bytes, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    def wait(self, name: str, seconds: float = 100.0) -> int:
        """A process's exit code."""
        return self.processes[name].wait(seconds)

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text()

    def until(self, name: str, text: str, seconds: float = 60.0, times: int = 1) -> None:
        """Wait until a process has said something."""
        end = time.monotonic() + seconds
        while self.log(name).count(text) < times:
            assert time.monotonic() < end, f"{name} never said {text!r}:\n{self.log(name)}"
            time.sleep(0.02)

    def listen(self) -> Callable[[str, str], float]:
        """Call what this gives to wait until a process says something, after now, once more.

        Returns the seconds from now until then.
        """
        begun = time.monotonic()
        paths = {name: self.folder / f"{name}.log" for name in self.processes}
        seen = {name: path.stat().st_size for name, path in paths.items()}

        def until(name: str, text: str) -> float:
            while text.encode() not in paths[name].read_bytes()[seen[name] :]:
                waited = time.monotonic() - begun
                assert waited < 90, f"{name} never said {text!r}:\n{self.log(name)}"
                time.sleep(0.005)
            return time.monotonic() - begun

        return until

    def metrics_port(self, name: str) -> int:
        """Where a process serves its metrics, once it has said so."""
        self.until(name, "/metrics\n")
        found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", self.log(name))
        assert found, self.log(name)
        return int(found[1])

    def summary(self) -> dict[str, object]:
        """The run's summary.json."""
        found: dict[str, object] = json.loads((self.run / "summary.json").read_text())
        return found

    def weights(self) -> bytes:
        """The newest base."""
        return max((self.run / "bases").glob("base-*")).read_bytes()

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
