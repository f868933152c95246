"""Flower in a virtual environment of its own: its dependencies are not partsum's."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

VERSION = "1.42.0"
_SAID = 1500  # characters of what pip said that go into the error

# Flower asks for a certifi of its own release week, which not every package index has yet. Only
# that bound is dropped; nothing is verified with it on loopback.
_REQUIREMENTS = """
from importlib.metadata import requires
for line in requires("flwr"):
    if "extra ==" not in line:
        print("certifi" if line.startswith("certifi") else line)
"""


class FlowerError(Exception):
    """Flower could not be installed, or its run did not come to its end; the message says why."""


@dataclass(frozen=True)
class Environment:
    """An installed Flower, and what its processes find in their environment."""

    folder: Path
    variables: dict[str, str]

    def program(self, name: str) -> str:
        """The path of one of its commands."""
        return str(self.folder / "bin" / name)

    def processes(self) -> dict[str, str]:
        """The environment of its processes. They start each other by name."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        silent = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        return {**os.environ, "PATH": path, **silent, **self.variables}


def install(folder: Path, variables: dict[str, str]) -> Environment:
    """Install Flower into ``folder``, unless it is there already.

    Raises:
        FlowerError: pip could not; what it said is in the message.
    """
    ready = folder / f"flwr-{VERSION}.ready"
    if not ready.exists():
        venv.create(folder, clear=True)
        python = str(folder / "bin" / "python")
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
        _said(*pip, "--no-deps", f"flwr=={VERSION}")
        requirements = folder / "requirements.txt"
        requirements.write_text(_said(python, "-c", _REQUIREMENTS), encoding="utf-8")
        _said(*pip, "-r", str(requirements))
        ready.touch()
    return Environment(folder, variables)


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise FlowerError(
            f"flwr {VERSION} could not be installed: `{' '.join(command[1:])[:200]}` ended with "
            f"code {done.returncode} and said:\n{done.stderr[-_SAID:]}\n"
            "It needs a package index: look at pip's settings (pip config list) and the network"
        )
    return done.stdout
