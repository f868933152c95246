"""A throw-away Docker engine: its own data, its own network, gone afterwards.

Two ways to start it, on the same data: to *build*, in the machine's network, so that package
registries are reached without a bridge; to *run*, in a network namespace of its own, where bridges,
service names and published ports exist for nobody else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import IO

NAMESPACE = "partsum-selftest"
_START_SECONDS = 60.0
_TOOLS = ("dockerd", "containerd", "docker", "ip", "nsenter", "iptables")


def missing_tools() -> list[str]:
    """Programs that the engine needs and this machine lacks."""
    return [tool for tool in _TOOLS if shutil.which(tool) is None]


class Engine:
    """A dockerd whose files are all below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_BUILDKIT": "0",  # BuildKit wants a plugin that Debian's engine has not
            "DOCKER_CONFIG": str(folder / "config"),
        }
        self._daemon: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def build_mode(self) -> None:
        """Start it in the machine's own network, without bridge or firewall rules."""
        self._start(["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none"])

    def run_mode(self) -> None:
        """Start it in a network namespace of its own."""
        self.stop()
        subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
        subprocess.run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], check=True)
        # Not `ip netns exec`, which mounts another /sys without the control groups.
        self._start(["nsenter", f"--net=/run/netns/{NAMESPACE}", "dockerd"])

    def stop(self) -> None:
        """End it, its containers with it, and take the namespace away."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(120)
            self._daemon = None
        if self._log is not None:
            self._log.close()
            self._log = None
        if Path("/run/netns", NAMESPACE).exists():
            subprocess.run(["ip", "netns", "del", NAMESPACE], check=True)
        # Each dockerd leaves its network mounted on a file; Path.is_mount knows folders only.
        left = self.folder / "exec/netns/default"
        while os.path.ismount(left):
            subprocess.run(["umount", str(left)], check=True)

    def docker(self, *arguments: str, seconds: float = 600.0) -> str:
        """Run the docker client; returns what it prints. Raises RuntimeError."""
        return self.call("docker", *arguments, seconds=seconds)

    def call(self, *command: str, seconds: float = 600.0, folder: Path | None = None) -> str:
        """Run a command against this engine; returns what it prints. Raises RuntimeError."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=folder,
            timeout=seconds,
            text=True,
            capture_output=True,
        )
        if done.returncode:
            said = f"{done.stdout}\n{done.stderr}".strip()
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{said[-4000:]}")
        return done.stdout

    def inside(self, *command: str, seconds: float = 60.0) -> str:
        """Run a command in the namespace, where the published ports are."""
        return self.call("nsenter", f"--net=/run/netns/{NAMESPACE}", *command, seconds=seconds)

    def _start(self, command: list[str]) -> None:
        if self._daemon is not None:
            self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = open(self.folder / "log", "ab")  # noqa: SIM115 - held until stop()
        self._daemon = subprocess.Popen(
            [*command, *self._flags()], stdout=self._log, stderr=subprocess.STDOUT
        )
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._daemon.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the Docker engine does not start; see {self.folder / 'log'}")
            time.sleep(0.2)

    def _flags(self) -> list[str]:
        return [
            f"--data-root={self.folder / 'data'}",
            f"--exec-root={self.folder / 'exec'}",
            f"--pidfile={self.folder / 'pid'}",
            f"--host=unix://{self.socket}",
            "--storage-driver=overlay2",
            "--log-level=warn",
        ]

    def _answers(self) -> bool:
        command = ["docker", "info"]
        done = subprocess.run(command, env=self.environment, capture_output=True, timeout=30)
        return done.returncode == 0
