"""A real Prometheus on loopback, with the configuration that is shipped."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

SHIPPED = Path(__file__).parents[1] / "deploy" / "docker" / "prometheus"


class Prometheus:
    """Scrapes what it is told to; ends with the test.

    Only where targets are found, and how often they are asked, differs from what is shipped.
    """

    def __init__(self, folder: Path, targets: dict[str, list[int]], every: str = "250ms") -> None:
        config: Any = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": every, "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            for key in [key for key in job if key.endswith("_sd_configs")]:
                del job[key]
            ports = targets.pop(job["job_name"])
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
        assert not targets, "no such job"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(SHIPPED / "alerts.yml", folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        self._log = folder / "prometheus.log"
        command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*command, f"--web.listen-address={address}"], cwd=folder, stdout=log, stderr=log
            )

    def until_ready(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + 30
        while True:
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError),
                contextlib.closing(urllib.request.urlopen(f"{self.url}/-/ready", timeout=5)),
            ):
                return
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.05)

    def ask(self, path: str, **words: str | float) -> Any:
        """The data that its API answers with. A query that does not parse is an AssertionError."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        try:
            with contextlib.closing(urllib.request.urlopen(url, timeout=20)) as answer:
                said = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                raise AssertionError(f"{words}: {error.read().decode()}") from error
        return said["data"]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
