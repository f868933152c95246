"""What a user does with the cluster, and what must come of it."""

from __future__ import annotations

import json
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.docker.selftest.cluster import DOCKER, Cluster, Json, until

_START_SECONDS = 240.0
_RUN_SECONDS = 900.0
_SCRAPE_SECONDS = 60.0
_SEARCH = "./selftest/search.toml"
_ACCURACY = 0.9  # of ten digits; one guesses 0.1


@dataclass
class Record:
    """What was done, how long it took, what was skipped."""

    say: Callable[[str], None]
    lines: list[str] = field(default_factory=list)
    skipped: int = 0

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """A step; what is put into the list is told with it."""
        start, facts = time.monotonic(), list[str]()
        try:
            yield facts
        except BaseException:
            self._add(f"FAIL {time.monotonic() - start:6.1f} s  {title}")
            raise
        told = f": {'; '.join(facts)}" if facts else ""
        self._add(f"ok   {time.monotonic() - start:6.1f} s  {title}{told}")

    def skip(self, title: str, why: str) -> None:
        """A step that cannot be done here."""
        self.skipped += 1
        self._add(f"skip           {title}: {why}")

    def _add(self, line: str) -> None:
        self.lines.append(line)
        self.say(line)


def play(cluster: Cluster, record: Record) -> None:
    """All of it, in order. Raises whatever shows that something is amiss."""
    began = time.time()
    _comes_up(cluster, record)
    _is_closed(cluster, record)
    _scales(cluster, record)
    _survives(cluster, record)
    with record.step("the demo run finishes") as facts:
        _finishes(cluster, facts)
    _goes_on(cluster, record)
    _shows(cluster, record, int(time.time() - began) + 10)
    _goes_away(cluster, record)


def _comes_up(cluster: Cluster, record: Record) -> None:
    with record.step("docker compose up: all healthy") as facts:
        cluster.compose("up", "--detach", "--no-build")
        for service, count in {"coordinator": 1, "node": 2, "prometheus": 1, "grafana": 1}.items():
            what = f"{count} x {service} healthy"
            until(what, _START_SECONDS, lambda s=service, c=count: cluster.healthy(s, c))  # type: ignore[misc]
            facts.append(what)
        (access,) = cluster.containers("access")
        assert access["State"]["ExitCode"] == 0, access["State"]
    with record.step("Prometheus finds them") as facts:
        _targets(cluster, 2, facts)


def _targets(cluster: Cluster, nodes: int, facts: list[str]) -> None:
    wanted = {"partsum-coordinator": 1, "partsum-node": nodes}
    until(f"targets {wanted}", _SCRAPE_SECONDS, lambda: cluster.targets() == wanted or None)
    facts.append(f"up: {wanted}")


def _is_closed(cluster: Cluster, record: Record) -> None:
    with record.step("closed: no root, nothing writable, no key where it is not needed") as facts:
        for service in ("coordinator", "node", "prometheus", "grafana"):
            container = cluster.containers(service)[0]
            user, host = container["Config"]["User"], container["HostConfig"]
            assert user.split(":")[0] not in {"", "0", "root"}, f"{service} runs as {user!r}"
            assert host["ReadonlyRootfs"], service
            assert host["CapDrop"] == ["ALL"], service
            assert not host["Privileged"], service
        script = (
            "for place in / /opt/partsum/ /credentials/ /etc/; do"
            " ! touch ${place}x 2>/dev/null || exit 1; done; id -u; ls -A access 2>/dev/null; true"
        )
        seen = cluster.compose("exec", "-T", "node", "sh", "-c", script)
        assert seen.split() == ["10001"], f"a node sees {seen!r}"
        facts.append("a node is uid 10001 and cannot see the access folder")
    with record.step("no credentials in any log"):
        tokens = cluster.compose("exec", "-T", "node", "sh", "-c", "cat /credentials/*.toml")
        secrets = {tomllib.loads(text)["token"].strip() for text in _files(tokens)}
        assert len(secrets) >= 2
        logs = cluster.compose("logs", "--no-color")
        assert not [secret for secret in secrets if secret in logs]


def _files(text: str) -> list[str]:
    return [f"#{part}" for part in text.split("# The credentials of")[1:]]


def _scales(cluster: Cluster, record: Record) -> None:
    with record.step("--scale node=4: four names, four targets") as facts:
        cluster.compose("up", "--detach", "--no-build", "--no-recreate", "--scale", "node=4")
        until("4 x node healthy", _START_SECONDS, lambda: cluster.healthy("node", 4))
        _connected(cluster, 4, facts)
        _targets(cluster, 4, facts)


def _connected(cluster: Cluster, count: int, facts: list[str]) -> None:
    def look() -> list[str] | None:
        nodes = cluster.status()["nodes"]
        names = sorted(node["name"] for node in nodes if node["state"] != "gone")
        return names if len(names) == count else None

    names = until(f"{count} nodes connected", _START_SECONDS, look)
    facts.append(f"connected: {', '.join(names)}")


def _survives(cluster: Cluster, record: Record) -> None:
    with record.step("a node killed: another takes its place and name") as facts:
        victim = cluster.containers("node")[1]
        cluster.kill(victim)

        def replaced() -> Json | None:
            now = next(c for c in cluster.containers("node") if c["Id"] == victim["Id"])
            return now if now["RestartCount"] and now["State"]["Running"] else None

        until("the engine restarts it", _START_SECONDS, replaced)
        until("4 x node healthy", _START_SECONDS, lambda: cluster.healthy("node", 4))
        _connected(cluster, 4, facts)
    with record.step("the coordinator restarted: the run goes on") as facts:
        before = cluster.status()
        cluster.compose("restart", "coordinator")
        until("coordinator healthy", _START_SECONDS, lambda: cluster.healthy("coordinator", 1))
        _connected(cluster, 4, facts)
        after = cluster.status()
        assert after["run"] == before["run"], f"{before['run']} became {after['run']}"
        assert after["round"] >= before["round"], f"{before['round']} became {after['round']}"
        facts.append(f"{after['run']} at round {after['round']}, before {before['round']}")
        assert "resuming the unfinished run" in cluster.compose("logs", "coordinator")


def _finishes(cluster: Cluster, facts: list[str]) -> None:
    def ended() -> Json | None:
        state: Json = cluster.containers("coordinator")[0]["State"]
        return None if state["Running"] or state["Restarting"] else state

    state = until("the coordinator ends", _RUN_SECONDS, ended)
    assert state["ExitCode"] == 0, cluster.compose("logs", "--tail=30", "coordinator")
    (coordinator,) = cluster.containers("coordinator")
    with tempfile.TemporaryDirectory() as folder:
        cluster.engine.docker("cp", f"{coordinator['Id']}:/var/lib/partsum/runs", folder)
        run = Path(folder, "runs", "latest").resolve()
        summary = json.loads((run / "summary.json").read_text())
        size = (run / "final.safetensors").stat().st_size
    assert summary["state"] == "finished", summary
    assert summary["final_accuracy"] > _ACCURACY, summary
    facts.append(f"{run.name}, accuracy {summary['final_accuracy']:.4f}, {size} bytes of weights")


def _shows(cluster: Cluster, record: Record, seconds: int) -> None:
    title = "every dashboard query returns data"
    if not list((DOCKER / "grafana/dashboards").glob("**/*.json")):
        record.skip(title, "there are no dashboards in grafana/dashboards")
        return
    with record.step(title) as facts:
        answer = cluster.get(f"http://127.0.0.1:3000/check?seconds={seconds}")
        wrong = list(answer["problems"])
        for one in answer["panels"]:
            what = f"{one['board']}, {one['panel']!r}: {one['query']}"
            if "problem" in one:
                wrong.append(f"{what}: {one['problem']}")
            elif not one["points"]:
                wrong.append(f"{what}: no data")
        assert not wrong, "\n".join(wrong)
        boards = {one["board"] for one in answer["panels"]}
        facts.append(f"{len(answer['panels'])} queries of {len(boards)} dashboards")


def _goes_on(cluster: Cluster, record: Record) -> None:
    with record.step("another config, up again: a search, by the nodes that wait") as facts:
        cluster.engine.environment["PARTSUM_CONFIG"] = _SEARCH
        flags = ["--detach", "--no-build", "--no-deps"]
        cluster.compose("up", *flags, "coordinator")
        until("coordinator healthy", _START_SECONDS, lambda: cluster.healthy("coordinator", 1))
        _connected(cluster, 4, facts)
        _finishes(cluster, facts)


def _goes_away(cluster: Cluster, record: Record) -> None:
    with record.step("down --volumes: nothing is left"):
        cluster.compose("down", "--volumes", "--timeout=30")
        for kind in ("ps --all", "volume ls", "network ls"):
            ours = ["--quiet", "--filter", "label=com.docker.compose.project=partsum"]
            left = cluster.engine.docker(*kind.split(), *ours)
            assert not left.strip(), f"docker {kind}: {left}"
