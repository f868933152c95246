"""Write the dashboards' JSON from their code; --check fails where it is stale.

python -m deploy.dashboards
"""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.dashboards.data_plane import data_plane
from deploy.dashboards.handoff import handoff
from deploy.dashboards.nodes import nodes
from deploy.dashboards.overview import overview
from deploy.dashboards.structures import structures

FOLDER = Path(__file__).parents[1] / "docker" / "grafana" / "dashboards"


def dashboards() -> dict[str, str]:
    """Each file's name and text."""
    return {
        "run.json": overview(),
        "nodes.json": nodes(),
        "data-plane.json": data_plane(),
        "handoff.json": handoff(),
        "structures.json": structures(),
    }


def main() -> int:
    """Write or check; returns the exit code."""
    made = dashboards()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    stale = sorted(name for name in made | there if made.get(name) != there.get(name))
    if "--check" in sys.argv:
        for name in stale:
            hint = "run python -m deploy.dashboards"
            print(f"{name} is not what the code makes; {hint}", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        if name in made:
            (FOLDER / name).write_text(made[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
