"""Print what partsum depends on, with the given extras: ``requirements.py EXTRA,EXTRA``.

pip can install a project's dependencies only together with the project; apart from it they make a
layer of the image that stays while the code changes.
"""

import sys
import tomllib
from pathlib import Path


def main(extras: str) -> None:
    """Print one requirement a line."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    wanted = [extra for extra in extras.split(",") if extra]
    if unknown := sorted(set(wanted) - set(known)):
        sys.exit(f"EXTRAS: {unknown} is not among {sorted(known)}")
    print(*project["dependencies"], *(line for extra in wanted for line in known[extra]), sep="\n")


main(sys.argv[1])
