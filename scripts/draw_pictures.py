"""Draw docs/pictures/; --check writes nothing, and fails where one is stale."""

from __future__ import annotations

import sys
from pathlib import Path

from pictures import gates, house, idea, rounds

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
DRAWN = (
    idea.idea,
    idea.part,
    idea.merge,
    gates.gates,
    rounds.round_trip,
    rounds.clusters,
    rounds.phases,
    house.house,
)


def main() -> int:
    """Draw or check; returns the exit code."""
    stale = False
    for draw in DRAWN:
        canvas = draw()
        path = FOLDER / f"{draw.__name__.replace('_', '-')}.svg"
        if path.exists() and path.read_text(encoding="utf-8") == canvas.svg():
            continue
        if "--check" in sys.argv:
            print(f"{path.name} is stale; run python scripts/draw_pictures.py", file=sys.stderr)
            stale = True
        else:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(canvas.svg(), encoding="utf-8")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
