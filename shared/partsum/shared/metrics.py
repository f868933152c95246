"""The HTTP door of a daemon: /metrics for Prometheus, /healthz for everyone, and pages beside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, make_wsgi_app

from partsum.shared.errors import PartsumError
from partsum.shared.http import make_http_server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class MetricsServer:
    """Serves a registry until closed; ``health()`` returns (well, a sentence).

    ``pages`` answers for all paths but /metrics and /healthz; without it, metrics are everywhere.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        health: Callable[[], tuple[bool, str]],
        pages: WSGIApplication | None = None,
    ) -> None:
        metrics = make_wsgi_app(registry)

        def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO")
            if path != "/healthz":
                answer = metrics if pages is None or path == "/metrics" else pages
                page: Iterable[bytes] = answer(environ, start)
                return page
            well, sentence = health()
            start("200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [f"{sentence}\n".encode()]

        try:
            self._server = make_http_server(host, port, app)
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
