"""The HTTP server under all daemons: what a slow, silent or hostile caller can take of it."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from partsum.shared.http import Handler, Server, make_http_server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

GET = b"GET / HTTP/1.0\r\n\r\n"


@contextmanager
def serving(app: WSGIApplication) -> Iterator[int]:
    server = make_http_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hello(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def call(port: int, said: bytes = b"") -> socket.socket:
    caller = socket.create_connection(("127.0.0.1", port), timeout=20)
    caller.sendall(said)
    return caller


def answer(caller: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    with closing(caller):
        pieces = []
        while piece := caller.recv(1 << 16):
            pieces.append(piece)
        return b"".join(pieces)


def until(found: Callable[[], bytes], wanted: bytes) -> None:
    """Ask again until the answer has it: a thread that ends takes a moment to have ended."""
    for _ in range(200):
        if wanted in found():
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"never {wanted!r}")


def test_beyond_so_many_callers_others_are_told_to_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Server, "connections", 3)
    with serving(hello) as port:
        assert answer(call(port, GET)).endswith(b"hello")
        with ExitStack() as silent:
            callers = [silent.enter_context(closing(call(port))) for _ in range(3)]
            late = answer(call(port, GET))
            assert late.startswith(b"HTTP/1.0 503 ")
            assert b"Retry-After" in late
            callers[0].sendall(GET)
            assert answer(callers[0]).endswith(b"hello")
            until(lambda: answer(call(port, GET)), b"hello")


def test_a_caller_that_says_a_letter_at_a_time_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each letter is in time; a request is not."""
    monkeypatch.setattr(Handler, "timeout", 0.5)
    with serving(hello) as port, closing(call(port, b"GET / HTTP/1.0\r\n")) as caller:
        caller.settimeout(0.1)
        for _ in range(200):
            try:
                caller.sendall(b"x")
                if caller.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("it was listened to for 20 seconds")


def test_an_answer_that_takes_its_time_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "timeout", 0.3)

    def slowly(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        for piece in (b"a", b"b", b"c"):
            threading.Event().wait(0.4)
            yield piece

    with serving(slowly) as port:
        assert answer(call(port, GET)).endswith(b"abc")


def test_a_caller_that_does_not_read_is_let_go_and_is_no_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Handler, "timeout", 0.3)
    ended = threading.Event()

    def endless(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        try:
            while True:
                yield b"x" * (1 << 20)
        finally:
            ended.set()

    with caplog.at_level(logging.WARNING), serving(endless) as port, closing(call(port, GET)):
        assert ended.wait(20)
    assert not caplog.records


def test_what_goes_wrong_in_an_answer_is_in_the_log_and_not_on_the_wire(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wrong(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        raise ValueError("the secret reason")

    with serving(wrong) as port:
        said = answer(call(port, GET))
    assert said.startswith(b"HTTP/1.0 500 ")
    assert b"secret" not in said
    assert "ValueError: the secret reason" in caplog.text
