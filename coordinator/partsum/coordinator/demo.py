"""The demo: a whole run on this machine, watched until the end."""

from __future__ import annotations

import asyncio
from importlib import resources
from pathlib import Path

from rich.console import Console

from partsum.coordinator.local import LocalRun
from partsum.coordinator.summary import read_summary
from partsum.coordinator.watch import summary_table, watch
from partsum.shared.config import load_config
from partsum.shared.errors import EXIT_OK, ConfigError


def run_demo(nodes: int, config: Path | None, new: bool) -> int:
    """Run the demo; returns the exit code."""
    if nodes < 1:
        raise ConfigError(f"--nodes {nodes}: at least one node is needed")
    with resources.as_file(resources.files("partsum.coordinator") / "demo.toml") as built_in:
        path = config or built_in
        loaded = load_config(path)
        if loaded.server.auth != "none":
            raise ConfigError(
                f'{path}: the demo\'s nodes have no credentials; set auth = "none" under [server]'
            )
        folder = Path(loaded.folder) / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(watched(path, folder, nodes, new, Console()))


async def watched(config: Path, logs: Path, nodes: int, new: bool, console: Console) -> int:
    """A run on this machine, watched, and its summary; the exit code."""
    ended = await LocalRun(config, logs, nodes, new, console, watch).run()
    if ended.code == EXIT_OK and ended.folder is not None:
        summary = read_summary(ended.folder / "summary.json")
        console.print(summary_table(summary, ended.folder))
    return ended.code
