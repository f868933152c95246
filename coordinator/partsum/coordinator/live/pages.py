"""Paths to answers: the live page, its JSON, and its stream of events. Read-only.

/                the page; beyond loopback, to a stranger, the form that asks for a token
/api/status      the run at this moment
/api/history     the rounds so far
/api/events      the status again whenever it changes (Server-Sent Events); at the
                     run's end the history too
/login           POST: a cookie for a token
"""

from __future__ import annotations

import html
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from pydantic import BaseModel

from partsum.coordinator.live.chronicle import Chronicle
from partsum.coordinator.live.glimpse import Glimpses
from partsum.coordinator.live.guard import Guard, TurnedAway
from partsum.coordinator.live.status import StatusNow, status_now
from partsum.shared.errors import PartsumError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_STREAMS = 8  # at once, each with a thread
_STREAM_SECONDS = 3600.0  # then the browser asks for another
_NEWS_SECONDS = 0.5  # between two messages, and longer where they are large
_ALIVE_SECONDS = 5.0  # without news a message comes all the same
_LOGIN_BYTES = 4096
_ENDED = {"finished", "stopped", "failed"}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
]
_SAID = "<!-- said -->"


class LivePages:
    """A WSGI application; every call is in a thread of its own."""

    def __init__(self, glimpses: Glimpses, chronicle: Chronicle, guard: Guard) -> None:
        self._glimpses = glimpses
        self._chronicle = chronicle
        self._guard = guard
        self._files = _page_files()
        self._streams = threading.BoundedSemaphore(_STREAMS)
        self._ending = threading.Event()

    def end(self, seconds: float = 2.0) -> None:
        """Let streams say their last message and end; wait so long for those that are slow."""
        self._ending.set()
        deadline = time.monotonic() + seconds
        for _ in range(_STREAMS):
            self._streams.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
        reply = _Reply(start, method)
        try:
            if method == "POST":
                return self._post(environ, path, reply)
            if method not in ("GET", "HEAD"):
                raise TurnedAway("405 Method Not Allowed", "this page is to be looked at only")
            return self._get(environ, path, reply)
        except TurnedAway as error:
            return self._turn_away(path, error, reply)
        except PartsumError as error:
            return reply.json("503 Service Unavailable", {"error": str(error)})

    # -- looking ----------------------------------------------------------------------------------

    def _get(self, environ: WSGIEnvironment, path: str, reply: _Reply) -> Iterable[bytes]:
        if path in self._files and not path.endswith(".html"):  # nothing in them is of the run
            return reply.file(path, self._files[path])
        if path == "/favicon.ico":
            return reply.text("204 No Content", "image/x-icon", b"")
        answers: dict[str, Callable[[_Reply], Iterable[bytes]]] = {
            "/": lambda reply: reply.file("index.html", self._files["/index.html"]),
            "/api/status": lambda reply: reply.model(self._status()),
            "/api/history": lambda reply: reply.model(self._chronicle.history(self._ended())),
            "/api/events": self._events,
        }
        if path not in answers:
            raise TurnedAway("404 Not Found", "there is no such page")
        self._guard.check(environ)
        return answers[path](reply)

    def _status(self) -> StatusNow:
        glimpse = self._glimpses.now()
        holders, done = self._chronicle.open_round(glimpse.status.round)
        return status_now(glimpse, holders, done, self._chronicle.state())

    def _ended(self) -> bool:
        return self._glimpses.now().status.phase in _ENDED

    def _events(self, reply: _Reply) -> Iterable[bytes]:
        if reply.bodyless:
            return reply.text("200 OK", "text/event-stream", b"")
        if not self._streams.acquire(blocking=False):
            busy = f"{_STREAMS} browsers follow this run already; ask /api/status instead"
            return reply.json("503 Service Unavailable", {"error": busy})
        messages = self._messages()
        next(messages)  # from here on, whatever happens, it gives its place back
        reply.begin("200 OK", "text/event-stream", ("X-Accel-Buffering", "no"))
        return messages

    def _messages(self) -> Iterator[bytes]:
        """The status, and again on every change, until the run ends or the hour is over."""
        try:
            yield b""
            yield b"retry: 2000\n\n"
            begun, said_at, said = time.monotonic(), 0.0, None
            while time.monotonic() - begun < _STREAM_SECONDS:
                last = self._ending.is_set()
                status = self._status()
                news = status.model_copy(update={"elapsed_seconds": 0.0})
                if last:  # there is no time to ask for it
                    yield _event("history", self._chronicle.history(ended=True))
                if last or news != said or time.monotonic() - said_at > _ALIVE_SECONDS:
                    said, said_at = news, time.monotonic()
                    yield _event("status", status)
                if last:
                    return
                self._ending.wait(_NEWS_SECONDS + len(status.nodes) / 500)
        except PartsumError:
            return  # the browser asks again, and is told
        finally:
            self._streams.release()

    # -- coming in --------------------------------------------------------------------------------

    def _post(self, environ: WSGIEnvironment, path: str, reply: _Reply) -> Iterable[bytes]:
        if path != "/login":
            raise TurnedAway("405 Method Not Allowed", "this page is to be looked at only")
        length = environ.get("CONTENT_LENGTH") or ""
        if not length.isdecimal() or len(length) > 5 or int(length) > _LOGIN_BYTES:
            raise TurnedAway("413 Content Too Large", "a token is not so long")
        form = parse_qs(environ["wsgi.input"].read(int(length)).decode("latin-1"))
        return reply.moved(self._guard.cookie(environ, form.get("token", [""])[0]))

    def _turn_away(self, path: str, error: TurnedAway, reply: _Reply) -> Iterable[bytes]:
        more = [("WWW-Authenticate", "Bearer")] if error.status.startswith("401") else []
        if path in ("/", "/login") and error.login:
            said = html.escape(str(error)) if path == "/login" else ""
            page = self._files["/login.html"].decode().replace(_SAID, said)
            return reply.text(error.status, "text/html", page.encode(), *more)
        if path.startswith("/api/"):
            return reply.json(error.status, {"error": str(error)}, *more)
        return reply.text(error.status, "text/plain", f"{error}\n".encode(), *more)


class _Reply:
    """How one request is answered."""

    def __init__(self, start: StartResponse, method: str) -> None:
        self._start = start
        self.bodyless = method == "HEAD"

    def begin(self, status: str, kind: str, *more: tuple[str, str]) -> None:
        self._start(status, [("Content-Type", f"{kind}; charset=utf-8"), *_HEADERS, *more])

    def text(self, status: str, kind: str, body: bytes, *more: tuple[str, str]) -> list[bytes]:
        self.begin(status, kind, ("Content-Length", str(len(body))), *more)
        return [] if self.bodyless else [body]

    def file(self, path: str, body: bytes) -> list[bytes]:
        return self.text("200 OK", _KINDS[path[path.rindex(".") :]], body)

    def model(self, value: BaseModel) -> list[bytes]:
        return self.text("200 OK", "application/json", value.model_dump_json().encode())

    def json(self, status: str, value: object, *more: tuple[str, str]) -> list[bytes]:
        return self.text(status, "application/json", json.dumps(value).encode(), *more)

    def moved(self, cookie: str) -> list[bytes]:
        """Back to the page, with a cookie."""
        return self.text(
            "303 See Other", "text/plain", b"", ("Location", "/"), ("Set-Cookie", cookie)
        )


def _event(kind: str, value: BaseModel) -> bytes:
    return f"event: {kind}\ndata: {value.model_dump_json()}\n\n".encode()


def _page_files() -> dict[str, bytes]:
    """What the browser gets, by path; the report's style is the page's too."""
    house = resources.files("partsum.coordinator")
    files = {f"/{file.name}": file.read_bytes() for file in house.joinpath("live/page").iterdir()}
    return {**files, "/report.css": house.joinpath("report.css").read_bytes()}
