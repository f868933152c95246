"""The compose cluster as its user has it, and ways to look into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from deploy.docker.selftest.engine import Engine

DOCKER = Path(__file__).parent.parent
_FETCH = """
import sys, urllib.request
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=120).read().decode())
"""

Json = dict[str, Any]
Found = TypeVar("Found")


def find_compose() -> list[str]:
    """Docker's own Compose, or the one that set-up installs for the tests."""
    plugin = ["docker", "compose"]
    if subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    return [str(Path(sys.executable).with_name("docker-compose"))]


def until(what: str, seconds: float, look: Callable[[], Found | None]) -> Found:
    """Look again and again until there is something. Raises TimeoutError, with the last mishap."""
    end, mishap = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            if (found := look()) is not None:
                return found
        except (RuntimeError, OSError, ValueError) as error:
            mishap = f"; {error}"
        time.sleep(1.0)
    raise TimeoutError(f"{what}: not within {seconds:g} s{mishap}")


class Cluster:
    """compose.yaml on an engine, with nothing changed."""

    def __init__(self, engine: Engine, compose: list[str]) -> None:
        self.engine = engine
        self._compose = compose

    def compose(self, *arguments: str, seconds: float = 900.0, files: tuple[str, ...] = ()) -> str:
        """Run Compose in the folder of compose.yaml; returns what it prints."""
        flags = [flag for file in files for flag in ("--file", file)]
        command = [*self._compose, "--ansi=never", *flags, *arguments]
        return self.engine.call(*command, seconds=seconds, folder=DOCKER)

    def containers(self, service: str) -> list[Json]:
        """What the engine says of a service's containers, stopped ones too."""
        names = self.compose("ps", "--all", "--quiet", service).split()
        found: list[Json] = json.loads(self.engine.docker("inspect", *names)) if names else []
        return sorted(found, key=lambda one: str(one["Name"]))

    def healthy(self, service: str, count: int) -> list[Json] | None:
        """A service's containers, if so many run and all are healthy."""
        found = self.containers(service)
        well = [one for one in found if one["State"].get("Health", {}).get("Status") == "healthy"]
        return well if len(well) == len(found) == count else None

    def get(self, url: str) -> Json:
        """JSON from a published port."""
        answer: Json = json.loads(
            self.engine.inside(sys.executable, "-c", _FETCH, url, seconds=180)
        )
        return answer

    def query(self, expression: str) -> list[Json]:
        """An instant query to Prometheus."""
        url = f"http://127.0.0.1:9090/api/v1/query?query={quote(expression)}"
        result: list[Json] = self.get(url)["data"]["result"]
        return result

    def targets(self) -> dict[str, int]:
        """How many targets of each job are up; nothing counts while any is down."""
        active = self.get("http://127.0.0.1:9090/api/v1/targets?state=active")["data"]
        up: dict[str, int] = {}
        for target in active["activeTargets"]:
            job = target["labels"]["job"]
            up[job] = up.get(job, 0) + (1 if target["health"] == "up" else -1000)
        return up

    def status(self) -> Json:
        """`partsum run status` on the coordinator."""
        command = ["exec", "-T", "coordinator", "partsum", "run", "status", "--json"]
        answer: Json = json.loads(self.compose(*command, seconds=60))
        return answer

    def kill(self, container: Json) -> None:
        """End a container's processes as a crash would: the engine is not asked."""
        os.kill(int(container["State"]["Pid"]), 9)
