"""A stand-in for Grafana's image: reads the provisioning tree as Grafana does, draws nothing.

`/api/health` answers as Grafana's does. `/check?seconds=600` runs every panel's and every alert's
query through its provisioned data source, over that many seconds up to now, and answers with what
each returned and with all that is wrong. Grafana's own loading and drawing is not tested by this.

Runs alone inside a container: Python's standard library and PyYAML only.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

PROVISIONING = Path("/etc/grafana/provisioning")
_STEP_SECONDS = 5
_BUILT_IN = {
    "__rate_interval_ms": "30000",
    "__rate_interval": "30s",
    "__interval_ms": "5000",
    "__interval": "5s",
}
_LABEL_VALUES = re.compile(r"label_values\((?:(?P<match>.+),\s*)?(?P<label>\w+)\)")

Json = dict[str, Any]


class Problem(Exception):
    """Something that Grafana would not show as its author meant it."""


class Sources:
    """The provisioned data sources."""

    def __init__(self) -> None:
        self._known: dict[str, Json] = {}
        for _, config in _read(PROVISIONING / "datasources"):
            for source in config.get("datasources", []):
                if lacking := {"name", "type", "url", "uid"} - set(source):
                    raise Problem(f"a data source lacks {sorted(lacking)}")
                self._known[source["uid"]] = source

    def first(self, kind: str) -> str:
        """The uid that a variable of type datasource begins with."""
        found = [uid for uid, source in self._known.items() if source["type"] == kind]
        if not found:
            raise Problem(f"there is no data source of type {kind}")
        return found[0]

    def ask(self, uid: str, path: str, **query: object) -> Any:
        """What the Prometheus behind a data source answers. Raises Problem."""
        if uid not in self._known:
            raise Problem(f"there is no data source with the uid {uid!r}")
        address = self._known[uid]["url"].rstrip("/") + path
        try:
            with urllib.request.urlopen(
                f"{address}?{urllib.parse.urlencode(query, doseq=True)}", timeout=20
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = json.loads(error.read() or b"{}").get("error", error.reason)
            raise Problem(f"Prometheus refuses it: {said}") from error
        except OSError as error:
            raise Problem(f"{address} does not answer: {error}") from error


class Board:
    """One dashboard, its variables filled in."""

    def __init__(self, path: Path, sources: Sources, seconds: int) -> None:
        self.name = path.name
        self._sources, self._seconds = sources, seconds
        self._json = json.loads(path.read_text(encoding="utf-8"))
        self._values = {**_BUILT_IN, "__range": f"{seconds}s", "__range_s": str(seconds)}
        self.problems: list[str] = []
        for variable in self._json.get("templating", {}).get("list", []):
            try:
                self._values[variable["name"]] = self._value(variable)
            except Problem as problem:
                self.problems.append(f"{self.name}: variable {variable['name']}: {problem}")

    def _value(self, variable: Json) -> str:
        kind, query = variable["type"], variable.get("query", "")
        if kind == "datasource":
            return self._sources.first(query)
        if kind != "query":
            return str(variable.get("current", {}).get("value") or query).split(",")[0]
        text = query if isinstance(query, str) else query.get("query", "")
        if (asked := _LABEL_VALUES.fullmatch(text.strip())) is None:
            raise Problem(f"{text!r} is not label_values(METRIC, LABEL)")
        match = {"match[]": self._fill(asked["match"])} if asked["match"] else {}
        source = self._fill((variable.get("datasource") or {}).get("uid", ""))
        values = self._sources.ask(source, f"/api/v1/label/{asked['label']}/values", **match)
        if not values:
            raise Problem(f"{text} has no values")
        several = variable.get("includeAll") or variable.get("multi")
        if not several:
            return str(values[-1])  # as a person would: the newest of what is named by its date
        # A backslash of a regular expression is two in a PromQL string.
        return "(" + "|".join(re.escape(value).replace("\\", "\\\\") for value in values) + ")"

    def _fill(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            name = found["plain"] or found["braced"]
            if name not in self._values:
                raise Problem(f"there is no variable {name}")
            return self._values[name]

        return re.sub(r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?::\w+)?\})", value, text)

    def panels(self) -> Iterator[Json]:
        """Those that ask something, rows opened."""
        for panel in self._json["panels"]:
            for one in [panel, *panel.get("panels", [])]:
                if one["type"] not in {"row", "text"}:
                    yield one

    def results(self) -> Iterator[Json]:
        """What each query of each panel returned."""
        for panel in self.panels():
            for target in panel.get("targets", []):
                result = {"board": self.name, "panel": panel.get("title"), "query": target["expr"]}
                try:
                    uid = (target.get("datasource") or panel.get("datasource") or {}).get("uid", "")
                    yield {**result, **_run(self._sources, self._fill(uid),
                                            self._fill(target["expr"]), self._seconds)}  # fmt: skip
                except Problem as problem:
                    yield {**result, "series": 0, "points": 0, "problem": str(problem)}


def _run(sources: Sources, uid: str, query: str, seconds: int) -> Json:
    now = time.time()
    answer = sources.ask(
        uid, "/api/v1/query_range", query=query, start=now - seconds, end=now, step=_STEP_SECONDS
    )
    series = answer["result"]
    shown = [value for one in series for _, value in one["values"] if math.isfinite(float(value))]
    return {"series": len(series), "points": len(shown)}


def _read(folder: Path) -> Iterator[tuple[Path, Json]]:
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if config.get("apiVersion") != 1:
            raise Problem(f"{path}: apiVersion is not 1")
        yield path, config


def boards() -> Iterator[Path]:
    """The dashboards' files, by the providers' paths."""
    for path, config in _read(PROVISIONING / "dashboards"):
        for provider in config.get("providers", []):
            folder = Path(provider["options"]["path"])
            found = sorted(folder.rglob("*.json"))
            if not found:
                raise Problem(f"{path}: provider {provider['name']}: no dashboard in {folder}")
            yield from found


def check(seconds: int) -> Json:
    """All of it: what every query returned, and what is wrong."""
    panels: list[Json] = []
    problems: list[str] = []
    try:
        sources = Sources()
        for path in boards():
            board = Board(path, sources, seconds)
            panels += board.results()
            problems += board.problems
        problems += [*_alert_problems(sources, seconds)]
    except (Problem, OSError, ValueError, KeyError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    return {"panels": panels, "problems": problems}


def _alert_problems(sources: Sources, seconds: int) -> Iterator[str]:
    """Alert rules whose query is none; what they return is for the day when they fire."""
    for path, config in _read(PROVISIONING / "alerting"):
        for group in config.get("groups", []):
            for rule in group["rules"]:
                for query in rule["data"]:
                    if query.get("datasourceUid") in {"__expr__", "-100"}:
                        continue
                    try:
                        _run(sources, query["datasourceUid"], query["model"]["expr"], seconds)
                    except Problem as problem:
                        yield f"{path.name}: alert {rule['title']!r}: {problem}"


class Door(BaseHTTPRequestHandler):
    """Answers what the self-test and the health check ask."""

    def do_GET(self) -> None:
        """Serve /api/health and /check."""
        asked = urllib.parse.urlsplit(self.path)
        if asked.path == "/api/health":
            self._say(200, {"database": "ok"})
        elif asked.path == "/check":
            seconds = urllib.parse.parse_qs(asked.query).get("seconds", ["600"])[0]
            self._say(200, check(int(seconds)))
        else:
            self._say(404, {"message": "a stand-in: it knows /api/health and /check"})

    def _say(self, code: int, value: Json) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


if __name__ == "__main__":
    print("stand-in for Grafana on port 3000", file=sys.stderr)
    ThreadingHTTPServer(("", 3000), Door).serve_forever()
