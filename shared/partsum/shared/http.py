"""An HTTP server that callers cannot wear out: few connections, and little time to say something.

`wsgiref` in threads answers a handful of callers well. What it lacks is a bound on them: each has a
thread and a file, and one that says a byte a minute keeps both.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"


class _Complaints:
    """Where wsgiref writes its tracebacks: into the log, unless it is the caller who was slow."""

    def __init__(self) -> None:
        self._text = ""

    def write(self, text: str) -> None:
        """Take a piece."""
        self._text += text

    def flush(self) -> None:
        """A whole traceback is there."""
        text, self._text = self._text, ""
        if text and "TimeoutError" not in text:
            log.error("an error while answering over HTTP; please report it:\n%s", text)


class Handler(WSGIRequestHandler):
    """One connection. A request is read within ``timeout`` seconds, or not at all."""

    timeout = 10.0  # also for each piece of an answer that is not taken
    server: Server

    def parse_request(self) -> bool:
        """Whether it is a request; from here on it is ours to answer, and may take its time."""
        whole = super().parse_request()
        if whole and self.command in {"GET", "HEAD"}:  # what has a body is not all here
            self.server.heard(self.connection)
        return whole

    def get_stderr(self) -> Any:
        """Where what goes wrong is written."""
        return _Complaints()

    def address_string(self) -> str:
        """The caller's address; its name is asked of nobody."""
        return str(self.client_address[0])

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is not an event."""


class Server(ThreadingMixIn, WSGIServer):
    """Answers at most ``connections`` callers at once; others are told to come later."""

    daemon_threads = True
    connections = 32  # Prometheus takes one, a browser six

    def __init__(self, *arguments: Any) -> None:
        self._guard = threading.Lock()
        self._open = 0
        self._unheard: dict[socket.socket, float] = {}  # until when they may go on with a request
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Bind, and ask no name server what this host is called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there may be another."""
        with self._guard:
            full = self._open >= self.connections
            if not full:
                self._open += 1
                self._unheard[request] = time.monotonic() + Handler.timeout
        if not full:
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no thread is to be had
                self._leave(request)
                raise
            return
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one caller."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _leave(self, request: socket.socket) -> None:
        with self._guard:
            self._open -= 1
            self._unheard.pop(request, None)

    def heard(self, request: socket.socket) -> None:
        """Its request is whole."""
        with self._guard:
            self._unheard.pop(request, None)

    def service_actions(self) -> None:
        """Let those go who have not said what they want; called about twice a second."""
        now = time.monotonic()
        with self._guard:
            for request, until in self._unheard.items():
                if now > until:
                    with contextlib.suppress(OSError):  # its thread has closed it already
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away, or said nothing in time."""
        log.debug("HTTP: %s was not answered", client_address, exc_info=True)


class _ServerOnIpv6(Server):
    address_family = socket.AF_INET6


def make_http_server(host: str, port: int, app: WSGIApplication) -> WSGIServer:
    """A server that listens, and serves once told to. Raises OSError."""
    return make_server(host, port, app, _ServerOnIpv6 if ":" in host else Server, Handler)
