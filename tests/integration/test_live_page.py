"""The live page of real coordinators over HTTP: what scripts and browsers get, and not."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, Any

from partsum.coordinator.folder import read_facts
from partsum.shared.cli import main
from partsum.shared.credentials import load_credentials

if TYPE_CHECKING:
    import pytest
    from tests.cluster import Cluster

    Make = Callable[..., Cluster]


class Page:
    """A coordinator's HTTP door."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def status_of(self, path: str, method: str = "GET", **headers: str) -> int:
        with closing(self.get(path, method, **headers)) as answer:
            return answer.status

    def json(self, path: str, **headers: str) -> Any:
        with closing(self.get(path, **headers)) as answer:
            assert answer.status == 200, answer.read()
            return json.loads(answer.read())

    def events(self) -> Iterator[tuple[str, Any]]:
        """The stream's messages until it ends."""
        with closing(self.get("/api/events")) as answer:
            assert answer.status == 200
            kind = ""
            for line in answer:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    yield kind, json.loads(value)


def page_of(cluster: Cluster) -> Page:
    return Page(int(str(read_facts(cluster.run)["metrics_port"])))


def listeners(page: Page, count: int, kept: ExitStack) -> list[HTTPResponse]:
    """Streams that are open and read no further."""
    streams = [kept.enter_context(closing(page.get("/api/events"))) for _ in range(count)]
    assert all(stream.status == 200 for stream in streams)
    return streams


def test_a_run_is_followed_from_its_waiting_to_its_last_word(make_cluster: Make) -> None:
    cluster = make_cluster(rounds=2, more="[trackers]\ntensorboard = true")
    cluster.coordinator()
    assert "live page on http://127.0.0.1:" in cluster.log("coordinator")
    page = page_of(cluster)
    waiting = page.json("/api/status")
    assert waiting["phase"] == "waiting"
    assert "waiting for nodes: 0 of 2 are ready; start each with" in waiting["reason"]
    events = page.events()
    assert next(events)[1]["phase"] == "waiting"
    for name in ("a", "b"):
        cluster.node(name)
    told = list(events)
    assert cluster.wait("coordinator") == 0
    statuses = [about for kind, about in told if kind == "status"]
    assert [kind for kind, _ in told][-2:] == ["history", "status"]
    phases = list(dict.fromkeys(status["phase"] for status in statuses))
    assert phases[-2:] == ["parts", "finished"]
    trained = {part["part"] for status in statuses for part in status["parts"] if part["node"]}
    assert trained == {0, 1}
    history, summary = told[-2][1], cluster.summary()
    assert [r["accuracy"] for r in history["rounds"]] == [r["accuracy"] for r in summary["rounds"]]  # type: ignore[attr-defined]
    assert history["report"] == "report.html"
    assert history["groups"] == summary["group_units"]
    assert [part["units"] for part in history["parts"]] == summary["parts"]
    assert {stay["state"] for stay in history["timeline"]} == {"receiving", "training", "sending"}
    assert history["history"] == statuses[-1]["history"]
    assert list((cluster.run / "tensorboard" / "parts").glob("events.out.tfevents.*"))


def test_strangers_and_crowds_do_not_get_in_the_way(make_cluster: Make) -> None:
    cluster = make_cluster()
    cluster.coordinator()
    page = page_of(cluster)
    with closing(page.get("/")) as answer:
        assert answer.status == 200
        assert b"live.js" in answer.read()
        policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy
    assert page.status_of("/live.js") == page.status_of("/report.css") == 200
    for path in ("/", "/api/status", "/api/history", "/api/events"):
        assert page.status_of(path, Host=f"evil.example:{page.port}") == 421, path
        assert page.status_of(path, "POST") == 405, path
        assert page.status_of(path, "DELETE") == 405, path
        assert page.status_of(path, "HEAD") == 200, path
    for path in ("/nothing", "/index.html", "/../report.css", "/live/page/live.js", "/login"):
        assert page.status_of(path) == 404, path
    for path in ("/metrics", "/healthz"):  # as ever, for whoever asks
        assert page.status_of(path, Host="prometheus.example") == 200, path
    with ExitStack() as kept:
        listeners(page, 8, kept)
        with closing(page.get("/api/events")) as ninth:
            assert ninth.status == 503
            assert "8 browsers" in json.loads(ninth.read())["error"]
        # Those who say nothing, and some who listen and never read: whoever scrapes is answered.
        for _ in range(20):
            kept.enter_context(closing(socket.create_connection(("127.0.0.1", page.port))))
        assert page.status_of("/metrics") == 200
        assert page.json("/api/status")["phase"] == "waiting"
        began = time.monotonic()
        cluster.processes["coordinator"].terminate()
        assert cluster.wait("coordinator", 30) == 130
        assert time.monotonic() - began < 15  # nobody who listens holds up the end


def test_beyond_loopback_only_an_operator_looks(
    make_cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(more='auth = "tokens"\nmetrics_host = "0.0.0.0"')
    monkeypatch.chdir(cluster.folder)
    assert main(["certs", "init"]) == 0
    assert main(["tokens", "operator", "eve"]) == 0
    cluster.coordinator()
    assert "in the clear over plain HTTP" in cluster.log("coordinator")
    page = page_of(cluster)
    token = load_credentials(cluster.folder / "eve.credentials.toml", "operator").token
    for path in ("/", "/api/status", "/api/history", "/api/events"):
        assert page.status_of(path) == 401, path
    assert (
        page.status_of("/metrics")
        == page.status_of("/healthz")
        == page.status_of("/live.css")
        == 200
    )
    with closing(page.get("/")) as answer:
        assert b'name="token"' in answer.read()
    assert page.json("/api/status", Authorization=f"Bearer {token}")["phase"] == "waiting"
    with closing(page.get("/login", "POST", "token=partsum-no")) as answer:
        assert answer.status == 401
        assert b"not in the coordinator&#x27;s register" in answer.read()
    assert page.status_of("/login", "POST") == 401
    with closing(page.get("/login", "POST", "token=" + "x" * 5000)) as answer:
        assert answer.status == 413
    with closing(page.get("/login", "POST", f"token={token}")) as answer:
        assert answer.status == 303
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
    assert page.json("/api/history", Cookie=cookie)["rounds"] == []
    assert str(token) not in cluster.log("coordinator")
    assert main(["tokens", "revoke", "eve"]) == 0
    assert page.status_of("/api/history", Cookie=cookie) == 401
