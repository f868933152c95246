"""The HTTP door of a daemon: /metrics for Prometheus and /healthz for everyone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from partsum.shared.errors import PartsumError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ServerOnIpv6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10.0  # a caller that says nothing must not keep its thread for ever

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is not an event."""


class MetricsServer:
    """Serves a registry until closed; ``health()`` returns (well, a sentence)."""

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        health: Callable[[], tuple[bool, str]],
    ) -> None:
        metrics = make_wsgi_app(registry)

        def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            if environ.get("PATH_INFO") != "/healthz":
                page: Iterable[bytes] = metrics(environ, start)
                return page
            well, sentence = health()
            start("200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [f"{sentence}\n".encode()]

        try:
            kind = _ServerOnIpv6 if ":" in host else _Server
            self._server = make_server(host, port, app, kind, _Quiet)
        except OSError as error:
            raise PartsumError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}. "
                "Choose another metrics port; 0 takes a free one"
            ) from error
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
