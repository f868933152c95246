"""The dashboards as Grafana finds them: provisioning, files, panels, queries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from deploy.dashboards.picture import filled

WINDOW = "5s"  # of rates, where a test scrapes four times a second
GRAFANA = Path(__file__).parents[1] / "deploy" / "docker" / "grafana"
_MOUNTED = "/etc/grafana/dashboards"  # where the compose file mounts GRAFANA/dashboards


@dataclass(frozen=True)
class Panel:
    """A panel and where it stands."""

    board: str
    body: dict[str, Any]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.board}: {self.body.get('title')}"

    def queries(self) -> Iterator[str]:
        """What it asks, with Grafana's variables in place, as Grafana would fill them in."""
        for target in self.body["targets"]:
            yield filled(target["expr"], WINDOW)


def boards() -> dict[str, dict[str, Any]]:
    """Each dashboard's file name and body, by the provisioning's own path."""
    found = {}
    for path in (GRAFANA / "provisioning" / "dashboards").glob("*.y*ml"):
        for provider in yaml.safe_load(path.read_text())["providers"]:
            assert provider["options"]["path"] == _MOUNTED
            for file in (GRAFANA / "dashboards").glob("*.json"):
                found[file.name] = json.loads(file.read_text())
    return found


def panels() -> list[Panel]:
    """All panels of all dashboards; headings are none."""
    return [
        Panel(name, body)
        for name, board in sorted(boards().items())
        for body in board["panels"]
        if body["type"] != "row"
    ]
